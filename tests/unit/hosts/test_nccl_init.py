"""NCCL is initialised without blocking and given up at a deadline; a replacement initialises nothing without peers."""

from __future__ import annotations

import ctypes
import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.distributed.device_communicators import custom_all_reduce, pynccl, symm_mem
from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.communicators import nccl_init, placeholder_groups
from holdfast.hosts.vllm.communicators.limits import limits_of
from holdfast.hosts.vllm.communicators.nccl import rebuild_nccl
from holdfast.hosts.vllm.process.nccl_config import IN_PROGRESS, SUCCESS, Config

UNHANDLED = 1


class Function:
    """A function of a C library, as the standard library binds one."""

    restype: Any = None

    def __init__(self, do: Any) -> None:
        self._do = do

    def __call__(self, *args: Any) -> int:
        return int(self._do(*args))


class Nccl:
    """The C functions of NCCL: a communicator is in progress for `turns` questions, and `then` in another state."""

    def __init__(self, turns: int, then: int = SUCCESS) -> None:
        self.turns, self.then, self.aborted = turns, then, 0
        self.asked_for: list[tuple[int, ...]] = []
        self.ncclCommInitRankConfig = Function(self._init)
        self.ncclCommGetAsyncError = Function(self._ask)

    def _init(self, comm: Any, size: Any, unique_id: Any, rank: Any, config: Any) -> int:
        made = config._obj
        self.asked_for.append((made.size, made.magic, made.blocking, size.value, rank.value))
        return IN_PROGRESS

    def _ask(self, comm: Any, state: Any) -> int:
        self.turns -= 1
        state._obj.value = IN_PROGRESS if self.turns >= 0 else self.then
        return SUCCESS

    def abort(self, comm: Any) -> int:
        self.aborted += 1
        return SUCCESS


def library(nccl: Nccl) -> Any:
    """The host's own class over these functions."""
    made: Any = NCCLLibrary.__new__(NCCLLibrary)
    made.lib = nccl
    made._funcs = {"ncclCommAbort": nccl.abort, "ncclGetErrorString": lambda result: b"said by NCCL"}
    return made


def test_a_communicator_is_asked_until_it_is_ready() -> None:
    nccl = Nccl(turns=3)
    with nccl_init.bounded_init(time.monotonic() + 10):
        comm = library(nccl).ncclCommInitRank(2, object(), 1)
    assert comm is not None
    assert nccl.asked_for == [(ctypes.sizeof(Config), 0xCAFEBEEF, 0, 2, 1)]
    assert nccl.turns < 0


def test_a_peer_that_does_not_come_ends_the_wait_at_the_deadline() -> None:
    nccl = Nccl(turns=1_000_000)
    with nccl_init.bounded_init(time.monotonic() + 0.02), pytest.raises(RecoveryFailed, match="met no peers"):
        library(nccl).ncclCommInitRank(2, object(), 1)
    assert nccl.aborted == 1


def test_an_error_is_that_of_nccl() -> None:
    with nccl_init.bounded_init(time.monotonic() + 10), pytest.raises(RuntimeError, match="said by NCCL"):
        library(Nccl(turns=0, then=UNHANDLED)).ncclCommInitRank(2, object(), 0)


def test_a_later_call_that_is_in_progress_is_no_error() -> None:
    nccl = Nccl(turns=0)
    made = library(nccl)
    with nccl_init.bounded_init(time.monotonic() + 10):
        made.ncclCommInitRank(2, object(), 0)
    nccl.turns = 2
    made.NCCL_CHECK(IN_PROGRESS)
    assert nccl.turns < 0
    with pytest.raises(RuntimeError, match="said by NCCL"):
        made.NCCL_CHECK(UNHANDLED)


def test_without_a_bound_the_host_initialises_as_ever() -> None:
    with nccl_init.bounded_init(0.0):
        pass
    made, called = library(Nccl(turns=0)), []

    def init(*args: Any) -> int:
        called.append(args[1])
        return SUCCESS

    made._funcs["ncclCommInitRank"] = init
    made.ncclCommInitRank(2, object(), 0)
    assert called == [2]


# ---- placeholders


class Group:
    """A group with two members over any backend."""

    world_size, rank = 2, 1


@pytest.fixture
def without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placeholder_groups, "_placeholders", True)


def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("waits for peers")


@pytest.mark.usefixtures("without_peers")
def test_a_replacement_makes_no_nccl_communicator_before_its_peers() -> None:
    comm: Any = pynccl.PyNcclCommunicator.__new__(pynccl.PyNcclCommunicator)
    placeholder_groups._no_nccl_yet(refuse, comm, Group(), 0)
    assert (comm.disabled, comm.available, comm.world_size, comm.rank) == (True, False, 2, 1)
    assert comm.device == torch.device("cuda:0")
    assert comm.all_reduce(torch.ones(1)) is None, "the host takes the group of torch instead"


def test_the_rebuild_makes_the_communicator_over_the_real_group() -> None:
    made: list[Any] = []

    class Comm:
        available, disabled, comm, world_size = False, True, None, 2
        group, device = "the new group", "cuda:0"

        def __init__(self, **about: Any) -> None:
            made.append(about)

    coordinator = SimpleNamespace(device_communicator=SimpleNamespace(pynccl_comm=Comm.__new__(Comm)))
    rebuild_nccl([coordinator], time.monotonic() + 1)
    assert made == [{"group": "the new group", "device": "cuda:0"}]


@pytest.mark.usefixtures("without_peers")
@pytest.mark.parametrize("part", [custom_all_reduce.CustomAllreduce, symm_mem.SymmMemCommunicator])
def test_parts_that_share_memory_with_peers_are_off_and_named_as_a_limit(part: Any) -> None:
    """Otherwise the replacement would reduce in another way than its peers."""
    off = part.__new__(part)
    placeholder_groups._no_peer_memory_yet(refuse, off, Group(), 0)
    assert off.disabled
    communicator = SimpleNamespace(ca_comm=off, all2all_manager=None)
    coordinator = SimpleNamespace(world_size=2, unique_name="tp:0", device_communicator=communicator)
    assert any("custom all-reduce" in limit for limit in limits_of([coordinator], None))


def test_a_part_that_the_host_has_switched_off_is_no_limit() -> None:
    communicator = SimpleNamespace(ca_comm=SimpleNamespace(disabled=True), all2all_manager=None)
    coordinator = SimpleNamespace(world_size=2, unique_name="tp:0", device_communicator=communicator)
    assert list(limits_of([coordinator], None)) == []
