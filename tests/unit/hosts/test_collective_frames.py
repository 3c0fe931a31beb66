"""A thread that waits in a collective is known by the function on top, wherever the host has put the function."""

from __future__ import annotations

import _thread
import sys
import threading
import time
from typing import Any

import pytest

pytest.importorskip("torch")

from holdfast.hosts.vllm.communicators.gloo import collective_under_way

LONG_S = 10.0


def told_of(name: str, file: str) -> tuple[str | None, ...]:
    """Return what is told of a thread that waits in a function of a name and file, twice and after the wait."""
    lock, scope = _thread.allocate_lock(), dict[str, Any]()
    lock.acquire()
    exec(compile(f"def {name}(acquire, limit_s):\n    acquire(True, limit_s)", file, "exec"), scope)
    thread = threading.Thread(target=scope[name], args=(lock.acquire, LONG_S), daemon=True)
    thread.start()
    deadline = time.monotonic() + LONG_S
    while not _is_in(thread, name) and time.monotonic() < deadline:
        time.sleep(0.001)
    told = [collective_under_way(thread.ident or 0) for _ in range(2)]
    lock.release()
    thread.join(LONG_S)
    return *told, collective_under_way(thread.ident or 0)


def _is_in(thread: threading.Thread, name: str) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_name == name


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("all_reduce", "/site-packages/torch/distributed/distributed_c10d.py"),
        ("all_reduce", "/site-packages/vllm/distributed/parallel_state.py"),
        ("cpu_all_reduce_", "/site-packages/vllm/distributed/utils.py"),
    ],
)
def test_a_wait_in_a_collective_is_named(name: str, file: str) -> None:
    """The text is the same for the same call, and there is none afterwards."""
    first, second, afterwards = told_of(name, file)
    assert first is not None
    assert first.startswith(f"{name} (call ")
    assert (second, afterwards) == (first, None)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("create_tcp_store", "/site-packages/vllm/distributed/utils.py"),
        ("cpu_all_reduce_", "/site-packages/vllm/utils/other.py"),
    ],
)
def test_a_wait_elsewhere_is_none(name: str, file: str) -> None:
    """Not every wait in the host's communication code is one for a collective."""
    assert told_of(name, file) == (None, None, None)
