"""A repair on a full disk: everything that it makes is in the reserve in memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from holdfast.chaos.temporary_files import temporary_folder
from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import WorldError
from holdfast.hosts.vllm.process import limits, members, sockets
from holdfast.hosts.vllm.process.queues import _in_a_folder_with_room
from holdfast.hosts.vllm.process.settings import handed_down, place_of_files
from holdfast.hosts.vllm.process.shared_memory import _record, remove_dead_segments
from holdfast.progress import ProgressReader, places, publish_progress, published
from holdfast.progress.stacks import ask_for_stacks
from support.full_disk import can_mount, fill, small_disk

pytestmark = pytest.mark.skipif(not can_mount(), reason="mounts a file system")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The folder of an instance, on a disk that is full from now on."""
    monkeypatch.delenv(sockets.VARIABLE, raising=False)
    with temporary_folder() as disk, small_disk(Path(disk)):
        made = tempfile.mkdtemp(prefix=places.PREFIX, dir=disk)
        fill(disk)
        yield made
        members.remove_folder(made)
    assert not places.reserve_of(made).exists()


def test_an_engine_core_finds_a_folder_for_sockets_and_files(folder: str) -> None:
    found = Path(sockets.empty_folder(folder, 0))
    assert found.parent == places.reserve_of(folder)
    assert [path.stat().st_mode & 0o777 for path in (found, found.parent)] == [0o700, 0o700]
    assert list(found.iterdir()) == []
    (found / "left").touch()
    assert Path(sockets.empty_folder(folder, 0)) == found
    assert list(found.iterdir()) == []
    with handed_down(HoldfastConfig(runtime_dir=folder), sockets=str(found)):
        assert place_of_files(folder) == str(found)
        assert os.environ[sockets.VARIABLE] == str(found)
    assert place_of_files(folder) == folder


def test_once_there_is_room_again_the_instances_folder_is_used_again(folder: str) -> None:
    sockets.empty_folder(folder, 0)
    for file in Path(folder).parent.glob("[cf]*"):
        file.unlink()
    assert sockets.empty_folder(folder, 0) == f"{folder}/e0"
    assert list(places.reserve_of(folder).iterdir()) == []


def test_a_socket_of_a_queue_is_in_a_folder_with_room(folder: str) -> None:
    def path() -> str:
        return f"ipc://{folder}/0123"

    with handed_down(HoldfastConfig(runtime_dir=folder)):
        assert _in_a_folder_with_room(path) == f"ipc://{places.reserve_of(folder)}/0123"
    for file in Path(folder).parent.glob("[cf]*"):
        file.unlink()
    with handed_down(HoldfastConfig(runtime_dir=folder)):
        assert _in_a_folder_with_room(path) == f"ipc://{folder}/0123"
    assert _in_a_folder_with_room(path) == path()


def test_records_notes_and_progress_are_kept_and_found(folder: str) -> None:
    program = f"""
import sys
from holdfast.progress import publish_progress
from holdfast.progress.stacks import answer_for_stacks
publish_progress({folder!r})
answer_for_stacks({folder!r})
print(flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        assert process.pid in published(folder)
        ProgressReader.of(folder, process.pid).look()
        assert "line" in ask_for_stacks(folder, [process.pid])[process.pid]
        process.kill()
    publish_progress(folder)
    assert published(folder) == {os.getpid()}


def test_the_memory_of_a_dead_process_is_known_and_removed(folder: str) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with handed_down(HoldfastConfig(runtime_dir=folder)):
        _record(["psm_not_there"])
    [notes] = places.reserve_of(folder).glob("shm-*")
    notes.rename(notes.with_name(f"shm-{gone.pid}"))
    remove_dead_segments(folder)
    assert list(places.reserve_of(folder).glob("shm-*")) == []


def test_a_member_is_recorded_and_ended(folder: str) -> None:
    program = f"from holdfast.hosts.vllm.process.members import join_members\njoin_members({folder!r})\ninput('\\n')"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        assert members.end_remains(folder) == 1
    assert not Path(folder).exists() and not places.reserve_of(folder).exists()


def test_a_process_finds_a_temporary_folder_where_all_others_are_full(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any temporary folder the host cannot be imported."""
    monkeypatch.delenv("TMP", raising=False)
    monkeypatch.delenv("TEMP", raising=False)
    monkeypatch.setenv("TMPDIR", str(Path(folder).parent))
    assert places.ready_reserve(folder)
    with handed_down(HoldfastConfig(runtime_dir=folder)):
        environ = dict(os.environ)
    shows = (
        "import json, os, tempfile; from holdfast.hosts.vllm.process.limits import settle_temporary_folder as settle\n"
    )
    shows += "settle(); print(json.dumps([tempfile.gettempdir(), os.environ['TMPDIR']]))"
    done = subprocess.run([sys.executable, "-c", shows], env=environ, capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [str(places.reserve_of(folder))] * 2


def test_a_reserve_that_another_made_is_never_used(folder: str) -> None:
    reserve = places.reserve_of(folder)
    reserve.mkdir()
    reserve.chmod(0o755)
    with pytest.raises(WorldError, match="no folder takes the sockets of engine core 0"):
        sockets.empty_folder(folder, 0)
    assert list(reserve.iterdir()) == []
    shutil.rmtree(reserve)


def test_a_reserve_that_the_system_removed_is_made_anew(folder: str) -> None:
    sockets.empty_folder(folder, 0)
    shutil.rmtree(places.reserve_of(folder))
    assert Path(sockets.empty_folder(folder, 0)).is_dir()


def test_a_dead_instance_of_which_only_the_reserve_is_left_is_removed(folder: str) -> None:
    members.record_owner(folder)
    reserve = places.reserve_of(folder)
    record = json.loads((reserve / "owner").read_text())
    members.end_dead_instances()  # of others, if any
    assert reserve.exists()
    (reserve / "owner").write_text(json.dumps({**record, "start_ticks": 1} if isinstance(record, dict) else record))
    assert str(reserve) in members.end_dead_instances()
    assert not reserve.exists()


@pytest.mark.parametrize(
    ("runs_code", "before", "expected"),
    [
        (True, "", None),
        (True, "/full/torchinductor_me", None),
        (True, "/of/the/operator", "/of/the/operator"),
        (False, "", f"/full/{Path(default_cache_dir()).name}"),
        (False, "/of/the/operator", "/of/the/operator"),
    ],
)
def test_compiled_code_goes_where_there_is_room_unless_it_cannot_be_run_from_there(
    monkeypatch: pytest.MonkeyPatch, runs_code: bool, before: str, expected: str | None
) -> None:
    monkeypatch.setenv("TMPDIR", "/full")
    monkeypatch.setenv(limits.COMPILED, before)
    if not before:
        monkeypatch.delenv(limits.COMPILED)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/dev/shm/holdfast-1")
    flags = 0 if runs_code else os.ST_NOEXEC
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=flags))
    limits.settle_temporary_folder()
    assert os.environ["TMPDIR"] == "/dev/shm/holdfast-1"
    assert os.environ.get(limits.COMPILED) == expected
    monkeypatch.delenv(limits.COMPILED, raising=False)
