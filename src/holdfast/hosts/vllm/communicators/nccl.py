"""NCCL communicators: aborted from any thread, made again in place.

UNTESTED ON A GPU: written from the sources of the host and of torch. `tests/integration/test_nccl.py` runs on any
machine with a GPU. Aborting may block while CUDA graphs captured on the communicator live, so the wait is bounded;
such graphs are refused beforehand (`limits`). Communicators are made again within a deadline (`nccl_init`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import torch

from holdfast.core.errors import RankFenced
from holdfast.hosts.vllm.communicators.nccl_init import bounded_init

logger = logging.getLogger("holdfast")

ABORT_TIMEOUT_S = 5.0


class AbortedLibrary:
    """Replaces the host's binding of an aborted communicator: every call raises, and the handle is never used again.

    Disabling the host's communicator instead would make some operations return without doing anything.
    """

    def __getattr__(self, name: str) -> NoReturn:
        raise RankFenced(f"{name}: the NCCL communicator was aborted")


def break_nccl(coordinators: Iterable[Any], groups: Iterable[Any]) -> int:
    """Abort the host's own communicators and torch's NCCL groups; return how many. Never raises."""
    aborts = [_abort_of(comm) for comm in _communicators(coordinators) if _usable(comm)]
    aborts += [group.abort for group in groups if torch.device("cuda") in group._device_types]
    threads = [threading.Thread(target=_attempt, args=(abort,), daemon=True) for abort in aborts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ABORT_TIMEOUT_S)
    if stuck := sum(thread.is_alive() for thread in threads):
        logger.error("%d NCCL abort(s) did not end in %g s", stuck, ABORT_TIMEOUT_S)
    return len(aborts)


def rebuild_nccl(coordinators: Iterable[Any], deadline: float) -> None:
    """Make the host's communicators again in the same objects, over the new groups of the coordinators.

    Raises:
        RecoveryFailed: the peers did not meet before `deadline`.
    """
    with bounded_init(deadline):
        for comm in _communicators(coordinators):
            if comm.world_size > 1 and comm.group is not None and hasattr(comm, "comm"):
                if _usable(comm):  # a rebuild without a break: free the old communicator
                    _attempt(_abort_of(comm))
                comm.__init__(group=comm.group, device=comm.device)


def _communicators(coordinators: Iterable[Any]) -> Iterator[Any]:
    for coordinator in coordinators:
        communicator = getattr(coordinator.device_communicator, "pynccl_comm", None)
        if communicator is not None:
            yield communicator


def _usable(comm: Any) -> bool:
    return bool(comm.available) and not isinstance(comm.nccl, AbortedLibrary)


def _abort_of(comm: Any) -> Callable[[], None]:
    """Return the abort of a communicator. Takes the binding away first: no operation may use a handle being freed."""
    library, comm.nccl = comm.nccl, AbortedLibrary()

    def abort() -> None:
        vars(library).pop("NCCL_CHECK", None)  # of `nccl_init`: would ask a communicator that is being freed
        with torch.accelerator.device_index(comm.device.index):
            library.ncclCommAbort(comm.comm)

    return abort


def _attempt(abort: Callable[[], None]) -> None:
    try:
        abort()
    except Exception:
        logger.exception("aborting an NCCL communicator failed")
