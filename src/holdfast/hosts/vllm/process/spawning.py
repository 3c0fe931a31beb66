"""Start of a process of the instance from a serving process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from holdfast.core.config import HoldfastConfig
from holdfast.hosts.vllm.process.settings import handed_down

_spawning = threading.Lock()  # the settings travel in the environment, which all threads share


@contextlib.contextmanager
def spawning(config: HoldfastConfig, joins_epoch: int | None = None, sockets: str | None = None) -> Iterator[None]:
    """Let processes that are started inside inherit the settings of the instance. Threads take turns.

    `joins_epoch` and `sockets` are passed on as by `handed_down`.
    """
    with _spawning, handed_down(config, joins_epoch, sockets):
        yield


def why_cannot_spawn() -> str:
    """Return why the current process cannot start processes; empty when a start is possible."""
    from vllm.utils.system_utils import get_mp_context

    method = get_mp_context().get_start_method()
    return (
        ""
        if method == "spawn"
        else f"this process starts others by {method}, which is unsafe in a serving process; spawn is needed"
    )
