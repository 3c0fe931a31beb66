"""How a defeated instance ends: a non-zero exit code and a last line that says why.

The host ends with code 0 after its engine core has died, and a supervisor takes that for a success.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from holdfast.hosts.vllm.front_end import current_front_end
from holdfast.hosts.vllm.register import SERVE_HTTP, attach

EXIT_DEFEATED = 70  # EX_SOFTWARE of sysexits.h


def attach_exit_hook() -> None:
    attach(SERVE_HTTP, _serve_then_judge)


async def _serve_then_judge(original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    """The host awaits what this returns after its engine client has been shut down."""
    shutdown = await original(*args, **kwargs)
    return _shut_down_then_judge(shutdown)


async def _shut_down_then_judge(shutdown: Awaitable[Any]) -> None:
    front_end = current_front_end()
    await shutdown
    if front_end is not None and front_end.defeat is not None:
        # The last of the log lines: handlers run in reverse order, so what registers now runs early,
        # but only the host's own output of the shutdown could follow, and that is already written.
        atexit.register(print, f"holdfast: instance ended: {front_end.defeat}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_DEFEATED)
