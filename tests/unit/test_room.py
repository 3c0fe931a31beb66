"""What the system leaves to a server, from files as the kernel writes them; what is short is told with figures."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from holdfast.cli.doctor import judge_room
from holdfast.core.errors import WorldError
from holdfast.hosts.vllm.serving.serve_command import refuse_full_disk
from holdfast.progress import room
from holdfast.progress.room import Room, look_for_room, shortages

MIB = 1 << 20
ENOUGH = Room(
    descriptors=4096,
    threads=4000,
    shared_bytes=1024 * MIB,
    temporary_folder="/tmp",
    temporary_bytes=1024 * MIB,
    temporary_files=100_000,
)


def test_where_nothing_is_short_or_known_nothing_is_told() -> None:
    assert [f.severity for f in judge_room(ENOUGH, 8)] == ["fine"]
    assert list(shortages(Room(), 1)) == []


@pytest.mark.parametrize(
    ("left", "about", "figures"),
    [
        ({"descriptors": 256}, "open files", ("256", "1024")),
        ({"threads": 300}, "threads", ("300", "320")),
        ({"shared_bytes": 60 * MIB}, "shared memory", ("60 MiB", "64 MiB")),
        ({"temporary_bytes": 0}, "temporary files", ("/tmp", "0 MiB", "64 MiB")),
        ({"temporary_files": 5}, "temporary files", ("/tmp", "5 files", "1000")),
    ],
)
def test_what_is_short_is_told_with_figures_and_what_to_do(
    left: dict[str, int], about: str, figures: tuple[str, ...]
) -> None:
    fields = {name: getattr(ENOUGH, name) for name in Room.__struct_fields__}
    [finding] = judge_room(Room(**{**fields, **left}), 2)
    assert (finding.about, finding.severity) == (about, "warning")
    assert all(figure in finding.text for figure in figures)
    assert finding.hint


def test_the_control_group_with_the_fewest_threads_left_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    groups = tmp_path / "sys/fs/cgroup"
    for folder, most, present in (
        (groups / "pod/app", "max", "7"),
        (groups / "pod", "100", "30"),
        (groups, "500", "9"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pids.max").write_text(f"{most}\n")
        (folder / "pids.current").write_text(f"{present}\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/pod/app\n")
    assert look_for_room("/tmp", tmp_path).threads == 70
    assert look_for_room("/tmp", tmp_path / "absent").threads is None


def test_the_users_threads_count_against_the_users_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10_000, 10_000))
    left = look_for_room("/tmp", tmp_path).threads
    assert left is not None and 0 < left < 10_000


def test_the_real_folder_is_measured() -> None:
    seen = look_for_room(tempfile.gettempdir())
    assert seen.temporary_bytes is not None and seen.shared_bytes is not None
    assert look_for_room("/absent").temporary_bytes is None


def test_a_start_without_any_temporary_folder_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    with pytest.raises(WorldError, match="no temporary folder can be written"):
        refuse_full_disk()


def test_the_hard_limit_counts_for_a_server_raises_the_other() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300));"
        "from holdfast.progress.room import look_for_room; print(look_for_room('/tmp').descriptors)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "300\n"
    assert room.DESCRIPTORS > 300
