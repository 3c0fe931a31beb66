"""How a defeated instance ends: a non-zero exit code and a last line that says why.

The host ends with code 0 after its engine core has died, and a supervisor takes that for a success.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from multiprocessing import resource_tracker
from typing import Any, NoReturn

from holdfast.hosts.vllm.contract.front_end_touchpoints import SERVE_HTTP, SERVE_MANY
from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.owner.owner import current_owner

TRACKER_TIMEOUT_S = 2.0
EXIT_DEFEATED = 70  # EX_SOFTWARE of sysexits.h


def attach_exit_hook() -> None:
    """In a process that serves for its own engine cores; the host's server is imported by then."""
    attach(SERVE_HTTP, _serve_then_judge)


def attach_launcher_exit_hook() -> None:
    """In a process that may launch several API servers."""
    if SERVE_MANY.module in sys.modules:  # the command is there before any plugin is loaded
        attach(SERVE_MANY, _serve_many_then_judge)


async def _serve_then_judge(original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    """The host awaits what this returns after its engine client has been shut down."""
    shutdown = await original(*args, **kwargs)
    return _shut_down_then_judge(shutdown)


async def _shut_down_then_judge(shutdown: Awaitable[Any]) -> None:
    owner = current_owner()
    await shutdown
    if owner is not None and owner.defeat is not None:
        await asyncio.to_thread(owner.await_end)
        owner.close()  # nothing is cleaned up after the last line
        end_defeated(owner.defeat)


def _serve_many_then_judge(original: Callable[[Any], None], args: Any) -> None:
    """The host raises when an engine core or an API server has died, after it has ended the others."""
    try:
        original(args)
    finally:
        owner = current_owner()
        if owner is not None and owner.defeat is not None:
            owner.await_end()  # the host's own thread for that would not outlive the last line
            owner.close()
            end_defeated(owner.defeat)


def end_defeated(reason: str) -> NoReturn:
    atexit.register(_last_line, reason)
    raise SystemExit(EXIT_DEFEATED)


def _last_line(reason: str) -> None:
    """Say why, as the last thing that is said, and leave at once.

    What would follow is noise of libraries being torn down; the resource tracker is a process of its own
    with something to say about shared memory that killed processes left, so it goes first.
    """
    first = threading.Thread(target=_stop_resource_tracker, daemon=True)
    first.start()
    first.join(TRACKER_TIMEOUT_S)  # it waits for every process that shares it, and one of them may be stuck
    print(f"holdfast: instance ended: {reason}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(EXIT_DEFEATED)


def _stop_resource_tracker() -> None:
    with contextlib.suppress(Exception):  # only the order of two last words depends on it
        resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
