"""After an error of memory the tensors of the failed step are gone before the retry; full devices are recognised."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.worker.utils import request_memory

from holdfast.core.errors import RankFenced
from holdfast.core.faults.faults import Phase
from holdfast.hosts.vllm.worker import memory_shortage, standby
from holdfast.hosts.vllm.worker.fence import StepFence
from holdfast.hosts.vllm.worker.memory_shortage import is_memory_shortage, release_memory


class Activation:
    """Stands for a tensor of a step."""


def allocate_and_fail(alive: list[weakref.ref[Activation]], error: Exception) -> None:
    activation = Activation()
    alive.append(weakref.ref(activation))
    try:
        raise ValueError("inner")
    except ValueError:
        raise error from None


class NoPeers:
    def break_all(self) -> int:
        return 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("any")])
def test_a_fenced_rank_holds_no_tensor_of_the_failed_step(error: Exception) -> None:
    """The host keeps the error until its next call, and the error keeps the frames."""
    alive: list[weakref.ref[Activation]] = []
    step = StepFence(0, 0, NoPeers()).fenced(Phase.FORWARD, lambda: allocate_and_fail(alive, error))  # type: ignore[arg-type]
    with pytest.raises(type(error)) as held:
        step()
    assert held.value is error
    assert alive[0]() is None
    with pytest.raises(RankFenced):
        step()


def test_the_allocator_is_emptied_only_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(memory_shortage, "_empty_allocator", lambda: emptied.append(True))
    release_memory(RuntimeError("any"))
    assert emptied == []
    release_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert emptied == [True]


def test_an_accelerator_gets_its_cached_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: emptied.append(True))
    release_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert emptied == [True]


def of_the_host() -> Exception:
    """What the host raises where the worker of the rank fills the device already."""
    snapshot = SimpleNamespace(total_memory=2**30, free_memory=2**20, device_="cuda:0")
    with pytest.raises(ValueError) as raised:
        request_memory(snapshot, SimpleNamespace(gpu_memory_utilization=0.9))  # type: ignore[arg-type]
    return raised.value


def behind_another() -> Exception:
    error = RuntimeError("the worker did not start")
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory.")
    return error


@pytest.mark.parametrize("error", [of_the_host(), behind_another(), MemoryError()])
def test_a_full_device_is_recognised(error: Exception) -> None:
    assert is_memory_shortage(error)


def test_other_errors_are_no_shortage() -> None:
    assert not is_memory_shortage(RuntimeError("an illegal memory access was encountered"))


@pytest.mark.parametrize("has_rank", [False, True])
def test_a_standby_ends_where_its_weights_do_not_fit_and_a_worker_fails(
    has_rank: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "_has_rank", has_rank)

    def load(proc: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError if has_rank else SystemExit) as ended:
        standby._end_when_full(load, object())
    if not has_rank:
        assert ended.value.code == standby.DEVICE_FULL
