"""A killed owner leaves nothing behind: real processes, killed and stopped, without a model."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from subprocess import PIPE

import msgspec
import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.owner import guard
from holdfast.hosts.vllm.owner.exit import end_start_on_signal
from holdfast.hosts.vllm.owner.guard import look
from holdfast.hosts.vllm.process import members
from holdfast.hosts.vllm.process.members import end_dead_instances, end_remains
from holdfast.progress.identity import Identity
from holdfast.progress.processes import GONE, ZOMBIE, look_at

WITHIN_S = 5.0

# An owner with a guard, a member that knows the folder, and a child of the member that knows nothing.
OWNER = """
import os, subprocess, sys
from holdfast.hosts.vllm.owner.guard import Guard
from holdfast.hosts.vllm.process.members import record_owner
folder = sys.argv[1]
record_owner(folder)
guard = Guard(folder)
member = subprocess.Popen([sys.executable, "-c", sys.argv[2], folder], stdout=subprocess.PIPE)
grandchild = int(member.stdout.readline())
print(member.pid, grandchild, guard.pid, flush=True)
if sys.stdin.readline() == "close\\n":
    guard.close()
    print("closed", flush=True)
sys.stdin.read()
"""
MEMBER = """
import subprocess, sys, time
from holdfast.hosts.vllm.process.members import join_members
join_members(sys.argv[1])
print(subprocess.Popen(["sleep", "300"]).pid, flush=True)
time.sleep(300)
"""


def has_ended(pid: int) -> bool:
    return look_at(pid).state in (GONE, ZOMBIE)


def await_end(*pids: int) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not all(map(has_ended, pids)):
        assert time.monotonic() < deadline, [pid for pid in pids if not has_ended(pid)]
        time.sleep(0.01)


class Owner:
    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", OWNER, str(folder), MEMBER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.member, self.grandchild, self.guard = map(int, self.process.stdout.readline().split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "holdfast-instance"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def owner(folder: Path) -> Iterator[Owner]:
    made = Owner(folder)
    yield made
    made.process.kill()
    made.process.communicate()
    for pid in (made.member, made.grandchild):
        if not has_ended(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("is_stopped", [False, True], ids=["running", "stopped"])
def test_whoever_loses_the_owner_ends_and_takes_the_shared_memory_along(
    owner: Owner, folder: Path, is_stopped: bool
) -> None:
    segment = SharedMemory(create=True, size=4096)
    (folder / f"shm-{owner.member}").write_text(f"{segment.name}\n")
    if is_stopped:
        os.kill(owner.member, signal.SIGSTOP)
    owner.process.kill()
    await_end(owner.member, owner.grandchild, owner.guard)
    assert not folder.exists()
    assert not Path("/dev/shm", segment.name).exists()
    segment.close()


def test_a_process_without_a_record_is_known_to_the_guard_once_its_parent_has_ended() -> None:
    """A full disk takes no record, and the host's title of a process lies over the environment that names the folder.

    The guard looks at the owner's descendants while the owner lives; the parent of a descendant may end first.
    """
    program = "import subprocess, sys; print(subprocess.Popen(['sleep', '300']).pid, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=PIPE, stdout=PIPE, text=True) as parent:
        assert parent.stdout is not None
        orphan = int(parent.stdout.readline())
        known: dict[int, int] = {}
        look(os.getpid(), known)
        assert {parent.pid, orphan} <= known.keys()
        parent.kill()
        parent.wait()
    known = {pid: started for pid, started in known.items() if pid == orphan}
    assert end_remains("/nowhere/holdfast-none", {os.getpid(): 1, orphan: known[orphan] + 1}) == 0
    assert not has_ended(orphan)
    assert end_remains("/nowhere/holdfast-none", known) == 1
    await_end(orphan)


def start_that_blocks(said: int, log: int) -> None:
    """Block in a write to the log, with an owner that has nothing to end: what the signal finds."""

    class Owner:
        def end_start(self) -> None:
            os.write(said, b"ended")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    end_start_on_signal(Owner())  # type: ignore[arg-type]
    stream = os.fdopen(log, "w")
    os.write(said, b"begin")
    while True:
        print("x" * 4096, file=stream)


def test_a_signal_ends_a_starting_server_whose_log_nobody_reads() -> None:
    (heard, said), (unread, log) = os.pipe(), os.pipe()
    starting = multiprocessing.get_context("fork").Process(target=start_that_blocks, args=(said, log), daemon=True)
    starting.start()
    os.close(said)
    try:
        assert starting.pid is not None
        assert os.read(heard, 5) == b"begin"
        deadline = time.monotonic() + WITHIN_S
        while look_at(starting.pid).state != "S":
            assert time.monotonic() < deadline, "the pipe is never full"
            time.sleep(0.01)
        starting.terminate()
        starting.join(WITHIN_S)
        assert starting.exitcode == -signal.SIGTERM
        assert os.read(heard, 5) == b"ended"
    finally:
        starting.kill()
        for descriptor in (heard, unread, log):
            os.close(descriptor)


def test_sockets_outside_of_the_folder_go_and_other_files_stay(folder: Path, tmp_path: Path) -> None:
    path, file = tmp_path / "client", tmp_path / "file"
    file.write_text("mine")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        members.record_sockets(str(folder), [f"ipc://{path}", f"ipc://{file}", "tcp://127.0.0.1:1"])
        end_remains(str(folder))
    assert not path.exists()
    assert file.exists()


def test_a_guard_that_was_closed_ends_and_kills_nothing(owner: Owner, folder: Path) -> None:
    assert owner.process.stdin is not None and owner.process.stdout is not None
    owner.process.stdin.write("close\n")
    owner.process.stdin.flush()
    assert owner.process.stdout.readline() == "closed\n"
    await_end(owner.guard)
    owner.process.kill()
    owner.process.wait()
    assert not has_ended(owner.member)
    assert folder.exists()


def test_the_next_start_ends_what_a_dead_instance_and_its_dead_guard_have_left(
    owner: Owner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members.tempfile, "gettempdir", lambda: str(folder.parent))
    assert end_dead_instances() == []
    assert not has_ended(owner.member)
    os.kill(owner.guard, signal.SIGKILL)
    owner.process.kill()
    owner.process.wait()
    assert end_dead_instances() == [str(folder)]
    await_end(owner.member, owner.grandchild)
    assert not folder.exists()


@pytest.mark.parametrize("harm", ["another namespace", "no owner", "garbage", "open folder"])
def test_a_folder_whose_owner_is_not_certainly_dead_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.setattr(members.tempfile, "gettempdir", lambda: str(folder.parent))
    dead = msgspec.structs.replace(Identity.of(os.getpid()), start_ticks=1)
    record = folder / "owner"
    match harm:
        case "another namespace":
            record.write_bytes(msgspec.json.encode(msgspec.structs.replace(dead, pid_namespace=1)))
        case "garbage":
            record.write_bytes(b"\xff{")
        case "open folder":
            record.write_bytes(msgspec.json.encode(dead))
            folder.chmod(0o755)
    assert end_dead_instances() == []
    assert folder.exists()


def test_after_a_new_start_of_the_machine_an_owner_has_ended_whatever_has_its_id() -> None:
    assert not Identity.of(os.getpid()).has_ended
    assert msgspec.structs.replace(Identity.of(os.getpid()), boot="another").has_ended
    assert msgspec.structs.replace(Identity.of(os.getpid()), start_ticks=1).has_ended


def test_a_member_without_a_record_is_found_by_its_environment(folder: Path) -> None:
    environment = {**os.environ, "HOLDFAST_SETTINGS": json.dumps({"runtime_dir": str(folder)})}
    with subprocess.Popen(["sleep", "300"], env=environment) as mine, subprocess.Popen(["sleep", "300"]) as foreign:
        assert end_remains(str(folder)) == 1
        assert mine.wait(WITHIN_S) == -signal.SIGKILL
        assert foreign.poll() is None
        foreign.kill()


# ---- cleaners of the temporary folder

LONG_AGO = 1_000_000_000.0


def test_every_file_of_an_instance_becomes_young_again(folder: Path, tmp_path: Path) -> None:
    inner = folder / "e1"
    inner.mkdir()
    files = [folder / "progress-1", inner / "socket"]
    outside = tmp_path / "client"
    for file in (*files, outside):
        file.write_text("")
    members.record_sockets(str(folder), [f"ipc://{outside}"])
    paths = [folder, inner, *files, outside]
    for path in paths:
        os.utime(path, (LONG_AGO, LONG_AGO))
    members.touch_files(str(folder))
    assert [path for path in paths if path.stat().st_mtime < LONG_AGO + 1 or path.stat().st_atime < LONG_AGO + 1] == []


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="runs a real cleaner")
@pytest.mark.parametrize("is_guarded", [True, False])
def test_a_real_cleaner_leaves_a_guarded_instance_alone(
    folder: Path, tmp_path: Path, request: pytest.FixtureRequest, is_guarded: bool
) -> None:
    if is_guarded:
        request.getfixturevalue("owner")
    old = folder / "progress-1"
    old.write_text("")
    os.utime(old, (LONG_AGO, LONG_AGO))
    os.utime(folder, (LONG_AGO, LONG_AGO))
    rules = tmp_path / "rules.conf"
    rules.write_text(f"e {tmp_path} - - - m:1h\n")
    command = ["systemd-tmpfiles", "--clean", str(rules)]
    subprocess.run(command, check=True, timeout=30, capture_output=True)
    assert old.exists() is is_guarded


def test_the_guard_touches_the_files_until_the_owner_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    listens, says = os.pipe()
    stdin = os.dup(0)
    os.dup2(listens, 0)
    request.addfinalizer(lambda: os.dup2(stdin, 0))
    touched: list[str] = []

    def touch(folder: str) -> None:
        touched.append(folder)
        os.write(says, b"done")

    late = threading.Timer(WITHIN_S, os.write, (says, b"done"))
    late.start()
    request.addfinalizer(late.cancel)
    monkeypatch.setattr(guard, "TOUCH_S", 0.01)
    monkeypatch.setattr(guard, "touch_files", touch)
    assert guard._await_done(os.getppid(), str(folder), {})
    assert touched == [str(folder)]


def test_a_file_outside_is_kept_as_young_as_the_folder(folder: Path, tmp_path: Path) -> None:
    record = tmp_path / "8000-1.json"
    record.write_text("{}")
    members.keep_with(str(folder), record)
    members.keep_with(str(folder), tmp_path / "absent")
    os.utime(record, (LONG_AGO, LONG_AGO))
    members.touch_files(str(folder))
    assert record.stat().st_mtime > LONG_AGO + 1
