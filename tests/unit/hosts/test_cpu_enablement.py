"""CPU enablement: collectives with unequal shares, local experts, stage buffers, seeded prompts in chunks."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm", reason="vLLM is not installed here")
pytestmark = pytest.mark.host

from torch import Tensor  # noqa: E402

from holdfast.hosts.vllm.cpu import enablement  # noqa: E402
from holdfast.hosts.vllm.cpu.collectives import all_gatherv, reduce_scatterv  # noqa: E402
from holdfast.hosts.vllm.cpu.model_execution import (  # noqa: E402
    apply_to_local_experts,
    local_routing,
    sparing_generators,
    with_receive_buffers,
)

SIZES = [3, 1]
Ranks = Callable[[Callable[[Any], Any]], list[Any]]


# ---- collectives, over gloo


def _rank(rank: int, store: Path, work: Callable[[Any], Any], answers: Any) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2)
    answers.put((rank, work(SimpleNamespace(world_size=2, rank_in_group=rank, device_group=dist.group.WORLD))))


@pytest.fixture
def on_two_ranks(tmp_path: Path) -> Iterator[Ranks]:
    """Run a function in two processes with a common gloo group; return the answers in the order of ranks."""
    context = multiprocessing.get_context("fork")
    processes: list[Any] = []

    def run(work: Callable[[Any], Any]) -> list[Any]:
        answers = context.Queue()
        for rank in range(2):
            processes.append(context.Process(target=_rank, args=(rank, tmp_path / "store", work, answers)))
            processes[-1].start()
        return [answer for _, answer in sorted(answers.get(timeout=60) for _ in range(2))]

    yield run
    for process in processes:
        process.join(10)
        process.kill()


def tokens_of(rank: int, count: int, width: int = 2) -> Tensor:
    """Make distinct numbers per rank: 100s for rank 0, 200s for rank 1."""
    return torch.arange(count * width, dtype=torch.float32).reshape(count, width) + 100 * (rank + 1)


def test_each_rank_gets_every_rank_s_share(on_two_ranks: Ranks) -> None:
    def gather(group: Any) -> list[Any]:
        share = tokens_of(group.rank_in_group, SIZES[group.rank_in_group])
        return all_gatherv(group, share, 0, SIZES).tolist()

    expected = torch.cat([tokens_of(0, 3), tokens_of(1, 1)]).tolist()
    assert on_two_ranks(gather) == [expected, expected]


def test_a_list_is_gathered_tensor_by_tensor(on_two_ranks: Ranks) -> None:
    """Hidden states and ids of experts keep their types."""

    def gather(group: Any) -> list[Any]:
        count = SIZES[group.rank_in_group]
        ids = torch.full((count, 1), group.rank_in_group, dtype=torch.int32)
        gathered = all_gatherv(group, [tokens_of(group.rank_in_group, count), ids], sizes=SIZES)
        return [(str(tensor.dtype), tensor.shape[0], tensor[:, 0].tolist()) for tensor in gathered]

    expected = [("torch.float32", 4, [100.0, 102.0, 104.0, 200.0]), ("torch.int32", 4, [0, 0, 0, 1])]
    assert on_two_ranks(gather) == [expected, expected]


def test_without_sizes_the_shares_are_equal(on_two_ranks: Ranks) -> None:
    def gather(group: Any) -> list[Any]:
        return all_gatherv(group, tokens_of(group.rank_in_group, 2)).tolist()

    assert on_two_ranks(gather)[1] == torch.cat([tokens_of(0, 2), tokens_of(1, 2)]).tolist()


def test_shares_lie_along_any_dimension(on_two_ranks: Ranks) -> None:
    def gather(group: Any) -> list[Any]:
        return all_gatherv(group, tokens_of(group.rank_in_group, SIZES[group.rank_in_group]).T, 1, SIZES).tolist()

    assert on_two_ranks(gather)[0] == torch.cat([tokens_of(0, 3), tokens_of(1, 1)]).T.tolist()


def test_a_rank_gets_its_share_of_the_sum(on_two_ranks: Ranks) -> None:
    def scatter(group: Any) -> list[Any]:
        return reduce_scatterv(group, tokens_of(group.rank_in_group, 4), 0, SIZES).tolist()

    total = tokens_of(0, 4) + tokens_of(1, 4)
    assert on_two_ranks(scatter) == [total[:3].tolist(), total[3:].tolist()]


def test_without_sizes_a_rank_gets_an_equal_share_of_the_last_dimension(on_two_ranks: Ranks) -> None:
    def scatter(group: Any) -> list[Any]:
        return reduce_scatterv(group, tokens_of(group.rank_in_group, 2, width=4)).tolist()

    total = tokens_of(0, 2, width=4) + tokens_of(1, 2, width=4)
    assert on_two_ranks(scatter) == [total[:, :2].tolist(), total[:, 2:].tolist()]


def test_a_reduction_leaves_its_input_alone(on_two_ranks: Ranks) -> None:
    def scatter(group: Any) -> bool:
        given = tokens_of(group.rank_in_group, 4)
        reduce_scatterv(group, given, 0, SIZES)
        return bool(torch.equal(given, tokens_of(group.rank_in_group, 4)))

    assert on_two_ranks(scatter) == [True, True]


# ---- experts

EXPERT_MAP = torch.tensor([-1, -1, 0, 1])  # the second of two ranks, four experts


def test_experts_of_another_rank_add_nothing() -> None:
    ids, weights = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32), torch.tensor([[0.6, 0.4], [0.7, 0.3]])
    local_ids, local_weights = local_routing(ids, weights, EXPERT_MAP)
    assert (local_ids.tolist(), local_ids.dtype) == ([[0, 0], [0, 1]], torch.int32)
    assert local_weights.tolist() == [[pytest.approx(0.6), 0.0], [0.0, pytest.approx(0.3)]]


def _kernel(experts: Any, topk_weights: Tensor, topk_ids: Tensor, expert_map: Tensor | None) -> Any:
    return topk_ids.tolist(), topk_weights.tolist()


def test_the_kernel_sees_local_experts_only() -> None:
    ids, weights = torch.tensor([[3, 0]]), torch.tensor([[0.5, 0.5]])
    assert apply_to_local_experts(_kernel, None, topk_weights=weights, topk_ids=ids, expert_map=EXPERT_MAP) == (
        [[1, 0]],
        [[0.5, 0.0]],
    )


def test_without_expert_parallelism_the_routing_stays() -> None:
    ids, weights = torch.tensor([[3, 0]]), torch.tensor([[0.5, 0.5]])
    assert apply_to_local_experts(_kernel, None, weights, ids, expert_map=None) == ([[3, 0]], [[0.5, 0.5]])


# ---- pipeline stages


def test_a_stage_makes_its_buffers_once() -> None:
    made: list[dict[str, Any]] = []
    runner = SimpleNamespace(
        intermediate_tensors=None,
        max_num_tokens=256,
        model_config=SimpleNamespace(dtype=torch.float32),
        device="cpu",
        model=SimpleNamespace(make_empty_intermediate_tensors=lambda **sizes: made.append(sizes) or "buffers"),
    )
    for _ in range(2):
        assert with_receive_buffers(lambda runner, tokens: runner.intermediate_tensors, runner, 7) == "buffers"
    assert made == [{"batch_size": 256, "dtype": torch.float32, "device": "cpu"}]


# ---- seeded requests


def _runner(discarded: list[bool]) -> Any:
    return SimpleNamespace(
        input_batch=SimpleNamespace(generators={0: "first", 1: "second"}),
        discard_request_mask=SimpleNamespace(np=discarded),
    )


def test_a_discarded_token_is_drawn_without_the_generator_of_the_request() -> None:
    runner = _runner([False, True])
    assert sparing_generators(lambda runner: dict(runner.input_batch.generators), runner) == {0: "first"}
    assert runner.input_batch.generators == {0: "first", 1: "second"}


def test_the_generators_are_back_after_a_failed_step() -> None:
    runner = _runner([True, True])

    def fail(runner: Any) -> None:
        raise RuntimeError("in the sampler")

    with pytest.raises(RuntimeError, match="in the sampler"):
        sparing_generators(fail, runner)
    assert runner.input_batch.generators == {0: "first", 1: "second"}


# ---- when it attaches


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of touchpoints instead of attaching hooks."""
    names: list[str] = []
    monkeypatch.setattr(enablement, "attach", lambda touchpoint, around: names.append(touchpoint.name))
    return names


def test_on_the_cpu_the_enablement_waits_for_a_worker(hooked: list[str]) -> None:
    enablement.attach_cpu_enablement()
    assert hooked == ["WorkerWrapperBase.init_device"]


def test_further_platforms_stay_unchanged(hooked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    enablement.attach_cpu_enablement()
    assert hooked == []


def test_the_switch_leaves_the_host_unchanged(hooked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(enablement.SWITCH, "0")
    enablement.attach_cpu_enablement()
    assert hooked == []


def test_inherited_settings_decide(hooked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SETTINGS", '{"cpu_enablement": false}')
    enablement.attach_cpu_enablement()
    assert hooked == []
