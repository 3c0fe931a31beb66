"""Starting a process of the instance from a server at work."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from holdfast.core.config import HoldfastConfig
from holdfast.hosts.vllm.process.settings import handed_down

_spawning = threading.Lock()  # the settings travel in the environment, which is one for all


@contextlib.contextmanager
def spawning(config: HoldfastConfig, joins_epoch: int | None = None, sockets: str | None = None) -> Iterator[None]:
    """Processes that are started inside belong to the instance, as those of its start did."""
    with _spawning, handed_down(config, joins_epoch, sockets):
        yield


def why_cannot_spawn() -> str:
    """Why no engine core could be started from this process any more; empty where one can."""
    from vllm.utils.system_utils import get_mp_context

    method = get_mp_context().get_start_method()
    return "" if method == "spawn" else f"processes are started by {method} here, which a server at work cannot do"
