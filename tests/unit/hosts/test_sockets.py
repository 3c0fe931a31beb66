"""The host's sockets are in the instance's folder, unless the operator names a folder, and are removed with it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from holdfast.chaos.temporary_files import temporary_folder
from holdfast.core.config import HoldfastConfig
from holdfast.hosts.vllm.process.settings import handed_down
from holdfast.hosts.vllm.process.sockets import VARIABLE, empty_folder, holds_sockets, remove_sockets


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_processes_of_an_instance_put_sockets_into_its_folder_and_this_one_does_not() -> None:
    with handed_down(HoldfastConfig(runtime_dir="/tmp/holdfast-1")):
        assert os.environ[VARIABLE] == "/tmp/holdfast-1"
    assert VARIABLE not in os.environ


def test_a_replacement_has_a_folder_of_its_own() -> None:
    with handed_down(HoldfastConfig(runtime_dir="/tmp/holdfast-1"), sockets="/tmp/holdfast-1/e0"):
        assert os.environ[VARIABLE] == "/tmp/holdfast-1/e0"


def test_a_folder_that_the_operator_names_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/run/sockets")
    with handed_down(HoldfastConfig(runtime_dir="/tmp/holdfast-1")):
        assert os.environ[VARIABLE] == "/run/sockets"
    assert os.environ[VARIABLE] == "/run/sockets"


def test_with_too_long_paths_the_host_keeps_its_own_folder() -> None:
    """The limit is the system's: the longest accepted path can be bound, and a longer path cannot."""
    with temporary_folder() as folder:
        longest = f"{folder}/".ljust(107 - 37, "x")
        os.mkdir(longest)
        assert holds_sockets(longest) and not holds_sockets(longest + "x")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"{longest}/{'u' * 36}")
        with socket.socket(socket.AF_UNIX) as bound, pytest.raises(OSError, match="too long"):
            bound.bind(f"{longest}/{'u' * 37}")
        with handed_down(HoldfastConfig(runtime_dir=longest + "x")):
            assert VARIABLE not in os.environ


def test_a_replacement_finds_an_empty_folder(tmp_path: Path) -> None:
    first = Path(empty_folder(str(tmp_path), 1))
    (first / "socket").touch()
    again = Path(empty_folder(str(tmp_path), 1))
    assert again == first
    assert list(again.iterdir()) == []
    assert again.stat().st_mode & 0o777 == 0o700


def test_sockets_are_removed_by_their_addresses(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    remove_sockets([f"ipc://{tmp_path}/one", f"ipc://{tmp_path}/gone", "tcp://127.0.0.1:1", None])
    assert list(tmp_path.iterdir()) == []
