"""The file for full texts: each text once, for the server's user only, bounded."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import msgspec
import pytest

from holdfast.api import full_texts
from holdfast.api.full_texts import FullTextsFile
from holdfast.core.errors import BadConfiguration
from support.control_plane import MemoryControl, some_fault

SECRET = "the prompt of somebody"


def lines(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def take(file: FullTextsFile, *texts: str) -> None:
    """Let a file take every event of faults with these texts."""
    control = MemoryControl().attach()
    for text in texts:
        control._instance._state.keep_full_text(msgspec.structs.replace(some_fault(), full_text=text))
        file.take(control.events[-1], control._instance.view())


def test_each_text_is_written_once_for_the_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "texts"
    path.touch(0o644)
    file = FullTextsFile(str(path))
    take(file, SECRET, SECRET, "another")
    assert lines(path) == [SECRET, "another"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_has_grown_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_texts, "MAX_FILE_BYTES", 300)
    path = tmp_path / "texts"
    take(FullTextsFile(str(path)), *map(str, range(20)))
    assert {p.name for p in tmp_path.iterdir()} | {"texts"} == {"texts", "texts.1"}
    assert all(p.stat().st_size < 600 for p in tmp_path.iterdir())


@pytest.mark.parametrize("name", [".", "missing/texts", "link", "pipe"])
def test_a_path_that_is_no_file_ends_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "texts")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadConfiguration, match="cannot write full texts"):
        FullTextsFile(str(tmp_path / name))
