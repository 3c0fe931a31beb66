"""Shared memory of dead processes is removed; shared memory of live processes stays."""

from __future__ import annotations

import io
import json
import multiprocessing
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from holdfast.core.config import HoldfastConfig
from holdfast.hosts.vllm.process import shared_memory
from holdfast.hosts.vllm.process.settings import handed_down
from holdfast.hosts.vllm.process.shared_memory import (
    _make_and_record,
    attach_segment_records,
    attach_semaphore_records,
    remove_dead_segments,
)
from holdfast.progress.processes import UNKNOWN


def ring_buffer(memory: SharedMemory, *, is_creator: bool = True) -> Any:
    return SimpleNamespace(shared_memory=memory, is_creator=is_creator)


SIZES = (1, 1 << 20, 10)  # readers, bytes of a chunk, chunks


def make(buffer: Any, *sizes: Any) -> None:
    """Stand for the host's `__init__`, which has run already."""


@pytest.fixture
def segment() -> Iterator[SharedMemory]:
    made = SharedMemory(create=True, size=64)
    yield made
    made.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_there(made):
            made.unlink()


def is_there(segment: SharedMemory) -> bool:
    return Path("/dev/shm", segment.name.lstrip("/")).exists()


def notes_of(folder: Path, buffer: Any) -> Path:
    with handed_down(HoldfastConfig(runtime_dir=str(folder))):
        _make_and_record(make, buffer, *SIZES)
    [notes] = folder.iterdir()
    return notes


def as_if_by_the_dead(notes: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    notes.rename(notes.with_name(f"shm-{gone.pid}"))


def test_segments_of_a_dead_process_are_removed(tmp_path: Path, segment: SharedMemory) -> None:
    as_if_by_the_dead(notes_of(tmp_path, ring_buffer(segment)))
    remove_dead_segments(str(tmp_path))
    assert not is_there(segment)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("free_mib", "chunk_bytes"), [(4096, 24 << 20), (64, (64 << 20) // 80), (1, 1 << 16), (240, (240 << 20) // 80)]
)
def test_where_shared_memory_is_short_queues_are_smaller(
    monkeypatch: pytest.MonkeyPatch, free_mib: int, chunk_bytes: int
) -> None:
    """As in a container of Docker, with 64 MiB: the host refuses to start for want of 240 MiB."""
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda path: SimpleNamespace(free=free_mib << 20))
    made = []
    buffer = SimpleNamespace(is_creator=False)
    _make_and_record(lambda buffer, *sizes: made.append(sizes), buffer, 1, 24 << 20, 10)
    _make_and_record(lambda buffer, *sizes: made.append(sizes), buffer, 1, 24 << 20, 10, "of another process")
    assert made == [(1, chunk_bytes, 10, None), (1, 24 << 20, 10, "of another process")]


def test_segments_of_a_live_process_stay(tmp_path: Path, segment: SharedMemory) -> None:
    notes = notes_of(tmp_path, ring_buffer(segment))
    remove_dead_segments(str(tmp_path))
    assert is_there(segment)
    assert notes.exists()


def test_a_zombie_counts_as_dead(tmp_path: Path, segment: SharedMemory) -> None:
    notes = notes_of(tmp_path, ring_buffer(segment))
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as zombie:
        assert zombie.stdout is not None and zombie.stdout.read() == b""  # closed: it is ending
        notes.rename(notes.with_name(f"shm-{zombie.pid}"))
        while is_there(segment):  # the system needs a moment until it is a zombie
            remove_dead_segments(str(tmp_path))


def test_a_segment_removed_in_an_orderly_end_is_no_error(tmp_path: Path, segment: SharedMemory) -> None:
    as_if_by_the_dead(notes_of(tmp_path, ring_buffer(segment)))
    segment.unlink()
    remove_dead_segments(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_only_opens_a_segment_records_nothing(tmp_path: Path, segment: SharedMemory) -> None:
    with handed_down(HoldfastConfig(runtime_dir=str(tmp_path))):
        _make_and_record(make, ring_buffer(segment, is_creator=False), *SIZES)
    assert list(tmp_path.iterdir()) == []


def test_without_a_file_descriptor_the_memory_of_the_dead_is_removed_by_the_next_call(
    tmp_path: Path, segment: SharedMemory
) -> None:
    as_if_by_the_dead(notes_of(tmp_path, ring_buffer(segment)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        remove_dead_segments(str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    remove_dead_segments(str(tmp_path))
    assert not is_there(segment)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_note_fails_no_start(tmp_path: Path, segment: SharedMemory) -> None:
    with handed_down(HoldfastConfig(runtime_dir=str(tmp_path / "absent"))):
        _make_and_record(make, ring_buffer(segment), *SIZES)


# ---- named semaphores


def make_semaphores_and_die(said: Connection, shared: Any) -> None:
    """Run in a fork that makes locks as a spawned process does: named, so that others find them; a library's too."""
    attach_semaphore_records()
    attach_semaphore_records()
    multiprocessing.set_start_method("spawn", force=True)
    import tqdm

    tqdm.std.TqdmDefaultWriteLock.mp_lock = multiprocessing.RLock()  # as its first use in a new process makes one
    tqdm.tqdm.set_lock(tqdm.std.TqdmDefaultWriteLock())
    tqdm.tqdm(range(1), disable=False, file=io.StringIO()).close()
    assert shared.acquire()
    locks = (tqdm.tqdm.get_lock().locks[0], multiprocessing.Lock())
    said.send([semaphore_of(lock).name for lock in locks])
    signal.pause()


def test_the_semaphores_of_a_killed_process_are_removed_and_those_of_its_parent_stay(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # the host is imported here already
    hears, says = context.Pipe(duplex=False)
    shared = multiprocessing.get_context("spawn").Lock()
    with handed_down(HoldfastConfig(runtime_dir=str(tmp_path))):
        process = context.Process(target=make_semaphores_and_die, args=(says, shared), daemon=True)
        process.start()
    says.close()  # so that the end of the process is heard
    assert hears.poll(60.0)
    made = [Path("/dev/shm", name) for name in hears.recv()]
    remove_dead_segments(str(tmp_path))
    assert all(path.exists() for path in made)
    process.kill()
    process.join()
    assert all(path.exists() for path in made)
    remove_dead_segments(str(tmp_path))
    assert not any(path.exists() for path in made)
    assert semaphore_of(shared).exists()


def semaphore_of(lock: Any) -> Path:
    return Path("/dev/shm", f"sem.{lock._semlock.name.lstrip('/')}")


def make_a_queue_of_the_hosts(said: Connection) -> None:
    """Run in a separate process, which is then killed."""
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    attach_segment_records()
    queue = MessageQueue(1, 1)
    said.send(queue.export_handle().buffer_handle[3])
    signal.pause()


def test_the_memory_of_a_killed_writer_of_a_host_queue_is_removed(tmp_path: Path) -> None:
    """A killed writer leaves the memory of the host's own queue."""
    context = multiprocessing.get_context("fork")  # the host is imported here already
    hears, says = context.Pipe(duplex=False)
    with handed_down(HoldfastConfig(runtime_dir=str(tmp_path))):
        process = context.Process(target=make_a_queue_of_the_hosts, args=(says,), daemon=True)
        process.start()
    memory = Path("/dev/shm", hears.recv())
    remove_dead_segments(str(tmp_path))
    assert memory.exists()
    process.kill()
    process.join()
    assert memory.exists()
    remove_dead_segments(str(tmp_path))
    assert not memory.exists()
    assert not list(tmp_path.glob("shm-*"))


# Uses up every file descriptor, and then looks at the process that has started this one.
WITHOUT_FILES = """
import json, os, resource, sys
from pathlib import Path
from holdfast.hosts.vllm.process import shared_memory
from holdfast.progress.processes import look_at, start_ticks
folder = Path(sys.argv[1])
parent = os.getppid()
(folder / f"shm-{parent}").write_text("psm_of_a_living_process\\n")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.dup(0))
except OSError:
    pass
try:
    shared_memory.remove_dead_segments(str(folder))
except OSError:
    pass
state, started = look_at(parent).state, start_ticks(parent)
for fd in held:
    os.close(fd)
print(json.dumps([state, started, (folder / f"shm-{parent}").exists()]))
"""


def test_without_a_file_descriptor_a_living_process_is_unknown_and_keeps_its_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_FILES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout) == [UNKNOWN, None, True]
