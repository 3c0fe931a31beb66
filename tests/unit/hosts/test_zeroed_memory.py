"""Large tensors of zeros take memory when they are written, and otherwise equal those of torch."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from holdfast.hosts.vllm.worker.zeroed_memory import LARGE_BYTES, FreshZeros  # noqa: E402

PAGE_BYTES = 4096


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def test_a_large_tensor_of_zeros_takes_no_memory_until_it_is_written() -> None:
    size = 4 * LARGE_BYTES
    before = resident_bytes()
    with FreshZeros():
        zeros = torch.zeros(size, dtype=torch.int8, device=torch.device("cpu"))
    assert resident_bytes() - before < LARGE_BYTES
    zeros.fill_(1)
    assert resident_bytes() - before > size - LARGE_BYTES  # other threads may release memory meanwhile
    del zeros
    assert resident_bytes() - before < LARGE_BYTES


@pytest.mark.parametrize("n_elements", [3, LARGE_BYTES])
def test_the_tensors_equal_those_of_torch(n_elements: int) -> None:
    with FreshZeros():
        made = [torch.zeros(2, n_elements), torch.zeros((n_elements,), dtype=torch.int16), torch.zeros([1, n_elements])]
    plain = [torch.zeros(2, n_elements), torch.zeros((n_elements,), dtype=torch.int16), torch.zeros([1, n_elements])]
    for ours, usual in zip(made, plain, strict=True):
        assert torch.equal(ours, usual)
        assert (ours.dtype, ours.device, ours.stride()) == (usual.dtype, usual.device, usual.stride())
        assert torch.equal(ours.add_(1), torch.ones_like(usual))


def test_memory_of_another_device_is_left_to_torch() -> None:
    with FreshZeros():
        zeros = torch.zeros(LARGE_BYTES, device="meta")
    assert zeros.device.type == "meta"


def test_an_impossible_size_fails_as_in_torch() -> None:
    with FreshZeros(), pytest.raises(RuntimeError):
        torch.zeros(1 << 62, dtype=torch.int8)
