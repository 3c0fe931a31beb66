"""NCCL communicators on one GPU: aborted while a kernel waits, refused afterwards, made again.

Runs on any machine with a GPU and the host's GPU build: `make test PYTEST_ARGS=tests/integration/test_nccl.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.core.errors import RankFenced

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.host, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

SPIN_CYCLES = 2_000_000_000  # about a second of a waiting kernel
SOON_S = 5.0


@dataclass
class Communicator:
    """What the host's communicator is to whoever breaks it. The host's own class disables itself with one rank."""

    nccl: Any
    comm: Any
    device: Any
    available: bool = True
    world_size: int = 1

    def sum(self, tensor: Any) -> Any:
        from vllm.distributed.device_communicators import pynccl_wrapper as nccl

        stream = torch.cuda.current_stream()
        where = nccl.buffer_type(tensor.data_ptr())
        kind = nccl.ncclDataTypeEnum.from_torch(tensor.dtype)
        operation = nccl.ncclRedOpTypeEnum.from_torch(torch.distributed.ReduceOp.SUM)
        on = nccl.cudaStream_t(stream.cuda_stream)
        self.nccl.ncclAllReduce(where, where, tensor.numel(), kind, operation, self.comm, on)
        stream.synchronize()
        return tensor


def make() -> Communicator:
    from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

    library = NCCLLibrary()
    return Communicator(library, library.ncclCommInitRank(1, library.ncclGetUniqueId(), 0), torch.device("cuda:0"))


def coordinators(communicator: Communicator) -> list[Any]:
    return [SimpleNamespace(device_communicator=SimpleNamespace(pynccl_comm=communicator))]


@pytest.fixture
def communicator() -> Communicator:
    torch.cuda.set_device(0)
    return make()


def ones() -> Any:
    return torch.ones(1024, device="cuda:0")


def test_an_abort_while_a_kernel_waits_ends_in_time_and_refuses_what_comes_later(
    communicator: Communicator,
) -> None:
    from holdfast.hosts.vllm.communicators.nccl import break_nccl

    assert communicator.sum(ones()).sum().item() == 1024
    torch.cuda._sleep(SPIN_CYCLES)
    began = time.monotonic()
    assert break_nccl(coordinators(communicator), []) == 1
    assert time.monotonic() - began < SOON_S
    with pytest.raises(RankFenced):
        communicator.sum(ones())


def test_two_aborts_are_one(communicator: Communicator) -> None:
    from holdfast.hosts.vllm.communicators.nccl import break_nccl

    assert break_nccl(coordinators(communicator), []) == 1
    assert break_nccl(coordinators(communicator), []) == 0


def test_after_an_abort_a_new_communicator_works(communicator: Communicator) -> None:
    from holdfast.hosts.vllm.communicators.nccl import break_nccl

    for _ in range(20):
        break_nccl(coordinators(communicator), [])
        communicator = make()
        assert communicator.sum(ones()).sum().item() == 1024
