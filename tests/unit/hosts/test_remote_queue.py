"""A queue of replies from another node: a wait ends by a reply, by its bound, or when the rank is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

from holdfast.core.errors import PeerSilent
from holdfast.hosts.vllm.process.queues import interruptible, retire, wait_until_ready

SOON_S = 5.0


@pytest.fixture
def ends() -> Iterator[tuple[Any, Any]]:
    """The two ends of a queue over TCP: the worker's and the engine core's."""
    writer = MessageQueue(1, 0, connect_ip="127.0.0.1")
    reader = interruptible(MessageQueue.create_from_handle(writer.export_handle(), -1))
    deadline = time.monotonic() + SOON_S
    greeting = threading.Thread(target=wait_until_ready, args=(writer, deadline, "no reader"))
    greeting.start()
    wait_until_ready(reader, deadline, "no writer")
    greeting.join(SOON_S)
    yield writer, reader
    retire(writer)
    retire(reader)


def test_a_reply_is_read_and_a_missing_one_ends_at_its_bound(ends: tuple[Any, Any]) -> None:
    writer, reader = ends
    writer.enqueue("reply")
    assert reader.dequeue(timeout=SOON_S) == "reply"
    for timeout_s in (0.0, 0.02):
        with pytest.raises(TimeoutError):
            reader.dequeue(timeout=timeout_s)


@pytest.mark.parametrize("timeout_s", [None, 60.0])
def test_a_wait_ends_when_the_rank_is_lost_and_later_replies_are_read(
    ends: tuple[Any, Any], timeout_s: float | None
) -> None:
    writer, reader = ends
    threading.Timer(0.02, reader.shutdown).start()
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="cancelled"):
        reader.dequeue(timeout=timeout_s)
    assert time.monotonic() - began < SOON_S
    reader.shutting_down = False
    writer.enqueue("after the return")
    assert reader.dequeue(timeout=SOON_S) == "after the return"


def test_a_reader_that_never_opens_the_queue_is_named_within_the_bound() -> None:
    writer = MessageQueue(1, 0, connect_ip="127.0.0.1")
    with pytest.raises(PeerSilent, match="rank 1 does not open its queue"):
        wait_until_ready(writer, time.monotonic() + 0.02, "rank 1 does not open its queue")
    retire(writer)
