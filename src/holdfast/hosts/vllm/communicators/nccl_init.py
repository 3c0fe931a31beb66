"""NCCL communicators of a recovery: made without blocking, asked until ready, given up at a deadline.

NEVER RUN ON A GPU: written from the sources of the host and the documents of NCCL. `make gpu-check` runs it on one.

The host's `ncclCommInitRank` waits for all peers, for ever if one has died meanwhile. A communicator made without
blocking may answer *in progress* to later calls too, which the host would take for an error, so they are asked again.
The host's own start is left as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.contract.communicator_touchpoints import NCCL_INIT_RANK
from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.process.nccl_config import IN_PROGRESS, SUCCESS, nonblocking_config

ASK_S = 0.005
CALL_TIMEOUT_S = 10.0  # of a later call that is in progress: it connects to peers that have met just before

_deadline: float | None = None


@contextlib.contextmanager
def bounded_init(deadline: float) -> Iterator[None]:
    """Bound every initialisation of NCCL in the block by a time of the monotonic clock. Main thread."""
    global _deadline
    attach(NCCL_INIT_RANK, _init)
    _deadline = deadline
    try:
        yield
    finally:
        _deadline = None


def _init(original: Callable[..., Any], library: Any, world_size: int, unique_id: Any, rank: int) -> Any:
    """Make a communicator, in place of the host's call. Raises `RecoveryFailed` at the deadline."""
    if _deadline is None or not hasattr(library.lib, "ncclCommInitRankConfig"):
        return original(library, world_size, unique_id, rank)
    from vllm.distributed.device_communicators.pynccl_wrapper import ncclComm_t

    comm, config = ncclComm_t(), nonblocking_config()
    make = library.lib.ncclCommInitRankConfig
    make.restype = ctypes.c_int
    result = make(ctypes.byref(comm), ctypes.c_int(world_size), unique_id, ctypes.c_int(rank), ctypes.byref(config))
    check = library.NCCL_CHECK
    if result not in (SUCCESS, IN_PROGRESS):
        check(result)
    result = _await(library, comm, _deadline)
    if result == IN_PROGRESS:
        library._funcs["ncclCommAbort"](comm)
        raise RecoveryFailed(f"rank {rank} of {world_size} met no peers over NCCL in time")
    check(result)
    library.NCCL_CHECK = functools.partial(_check_later_call, library, comm, check)
    return comm


def _check_later_call(library: Any, comm: Any, check: Callable[[int], None], result: int) -> None:
    if result == IN_PROGRESS:
        result = _await(library, comm, time.monotonic() + CALL_TIMEOUT_S)
    check(result)


def _await(library: Any, comm: Any, deadline: float) -> int:
    """Ask for the state of a communicator until it is known, or until the deadline; return the result."""
    ask = library.lib.ncclCommGetAsyncError
    ask.restype = ctypes.c_int
    state = ctypes.c_int(IN_PROGRESS)
    while True:
        asked = ask(comm, ctypes.byref(state))
        if asked != SUCCESS:
            return int(asked)
        if state.value != IN_PROGRESS or time.monotonic() >= deadline:
            return state.value
        time.sleep(ASK_S)
