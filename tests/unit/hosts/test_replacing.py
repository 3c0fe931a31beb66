"""Files of queues that nobody comes to any more do not stay."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.workers.replacing import unlink_sockets


def queue(subscribe: str | None, notify: str | None) -> SimpleNamespace:
    return SimpleNamespace(handle=SimpleNamespace(local_subscribe_addr=subscribe, local_notify_addr=notify))


def test_the_sockets_of_a_queue_are_removed(tmp_path: Path) -> None:
    """Both of them; and none that is not there, or is no file."""
    files = [tmp_path / name for name in ("calls", "news", "another")]
    for file in files:
        file.touch()
    unlink_sockets(queue(f"ipc://{files[0]}", f"ipc://{files[1]}"))
    assert [file.exists() for file in files] == [False, False, True]
    unlink_sockets(queue(f"ipc://{files[0]}", None))
    unlink_sockets(queue("tcp://127.0.0.1:1", None))
