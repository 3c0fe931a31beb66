"""A retired queue of the host leaves neither files nor threads nor shared memory."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

from holdfast.hosts.vllm.process.queues import retire, unlink_sockets


def queue(subscribe: str | None, notify: str | None) -> SimpleNamespace:
    return SimpleNamespace(handle=SimpleNamespace(local_subscribe_addr=subscribe, local_notify_addr=notify))


def test_the_sockets_of_a_queue_are_removed(tmp_path: Path) -> None:
    """Remove both sockets; ignore missing sockets and addresses that are no files."""
    files = [tmp_path / name for name in ("calls", "news", "another")]
    for file in files:
        file.touch()
    unlink_sockets(queue(f"ipc://{files[0]}", f"ipc://{files[1]}"))
    assert [file.exists() for file in files] == [False, False, True]
    unlink_sockets(queue(f"ipc://{files[0]}", None))
    unlink_sockets(queue("tcp://127.0.0.1:1", None))


def resources() -> tuple[int, int, int]:
    """Count open files, threads and mappings of shared memory of the process."""
    mappings = Path("/proc/self/maps").read_text().count("/dev/shm/")
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), mappings


def test_a_retired_queue_holds_no_resources_while_it_is_still_referenced() -> None:
    def writer_and_reader() -> list[MessageQueue]:
        writer = MessageQueue(1, 1)
        return [writer, MessageQueue.create_from_handle(writer.export_handle(), 0)]

    first = writer_and_reader()
    for queue in first:
        retire(queue)
    before = resources()
    second = writer_and_reader()
    assert resources() > before
    for queue in second:
        retire(queue)
    assert resources() == before
