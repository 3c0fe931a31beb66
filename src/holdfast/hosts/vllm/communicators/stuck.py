"""Whether a thread still waits in a collective that was broken. Looks from another thread, costs nothing before.

gloo tells an error to the operations that have not begun to send or receive, not to one that is in the middle of it
(`Pair::signalException` leaves `tx_` and `rx_` out, torch 2.13): that one waits on until the group's own timeout, half
an hour by default. It is rare, and nothing that reaches gloo ends it: only the end of the process does.
"""

from __future__ import annotations

import sys
from types import FrameType

# Where the interpreter stands while a process group's operation is waited for.
_COLLECTIVES = ("torch/distributed/distributed_c10d.py", "vllm/distributed/parallel_state.py")


def collective_under_way(thread_id: int) -> str | None:
    """The collective that a thread waits in; the same text as long as it is the same call. None: in none."""
    frame = sys._current_frames().get(thread_id)
    if frame is None or not frame.f_code.co_filename.endswith(_COLLECTIVES):
        return None
    return f"{frame.f_code.co_name} (call {id(frame):x}, for {_caller(frame)})"


def _caller(frame: FrameType) -> str:
    """Who asked for it: the first that is no part of torch's or the host's communication."""
    at: FrameType | None = frame
    while at is not None and "/distributed/" in at.f_code.co_filename:
        at = at.f_back
    return at.f_code.co_qualname if at is not None else "nobody"
