"""After a restore every rank draws the same numbers, takes the same slots, and holds the experts in the same places."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.states import SamplingStates
from vllm.v1.worker.gpu.states import RequestState

from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.engine.lockstep_wave import agree_on_wave
from holdfast.hosts.vllm.worker.equal_state import expert_placement, make_equal

SEED = 2**32 - 1


@dataclass
class Experts:
    """The host's state of moved experts, for one model."""

    places: list[list[int]]
    expert_rearrangement_step: int = 0
    model_states: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.model_states = {"model": SimpleNamespace(physical_to_logical_map=torch.tensor(self.places))}


def rank(experts: Experts | None = None) -> SimpleNamespace:
    return SimpleNamespace(eplb_state=experts)


def draws() -> tuple[float, int, list[int]]:
    """Return what the samplers of both runners draw next."""
    host_draw = int(np.random.randint(0, 2**31))
    return random.random(), host_draw, torch.randint(0, 2**31, (4,)).tolist()


def test_two_ranks_draw_the_same_numbers_whatever_each_drew_before() -> None:
    make_equal(rank(), SEED)
    one = draws()
    torch.rand(7)
    np.random.rand(3)
    make_equal(rank(), SEED)
    assert draws() == one


def test_another_recovery_draws_other_numbers() -> None:
    make_equal(rank(), SEED)
    one = draws()
    make_equal(rank(), SEED - 1)
    assert draws() != one


def test_an_unseeded_request_of_runner_v2_has_the_same_seed_on_two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_the_cpu(size: int, dtype: torch.dtype) -> SimpleNamespace:
        tensor = torch.zeros(size, dtype=dtype)
        return SimpleNamespace(np=tensor.numpy(), copy_to_uva=lambda: None)

    monkeypatch.setattr("vllm.v1.worker.gpu.sample.states.UvaBackedTensor", on_the_cpu)
    seeds = []
    for drawn_before in (0, 3):
        np.random.rand(drawn_before)
        make_equal(rank(), SEED)
        states = SamplingStates(4, 16)
        states.add_request(0, SamplingParams(temperature=1.0))
        seeds.append(int(states.seeds.np[0]))
    assert seeds[0] == seeds[1]


def test_requests_take_the_same_slots_on_a_new_rank_and_on_one_that_served_others() -> None:
    def next_slots(*served: str) -> list[int]:
        states = SimpleNamespace(free_indices=list(range(4)), max_num_reqs=4, index_to_req_id={})
        states.req_id_to_index = {request_id: states.free_indices.pop() for request_id in served}
        for request_id in sorted(served, reverse=True):
            RequestState.remove_request(states, request_id)
        make_equal(SimpleNamespace(req_states=states, eplb_state=None), SEED)
        return [states.free_indices.pop() for _ in range(4)]

    assert next_slots() == next_slots("a", "b", "c")


def test_ranks_move_experts_at_the_same_step_again() -> None:
    experts = Experts([[0, 1]], expert_rearrangement_step=41)
    make_equal(rank(experts), SEED)
    assert experts.expert_rearrangement_step == 0


def test_the_placement_of_experts_is_equal_only_where_every_expert_is_in_the_same_place() -> None:
    one, same, other = (expert_placement(rank(Experts([places]))) for places in ([0, 1], [0, 1], [1, 0]))
    assert one == same
    assert one != other
    assert 0 < one < 2**62
    assert expert_placement(rank()) == 0


def lockstep_member(monkeypatch: pytest.MonkeyPatch, peer: list[int]) -> SimpleNamespace:
    """Return an engine core whose only peer says `peer`."""

    def all_reduce(state: torch.Tensor, op: Any, group: Any) -> None:
        state.copy_(torch.maximum(state, torch.tensor(peer)))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return SimpleNamespace(
        scheduler=SimpleNamespace(has_unfinished_requests=lambda: True),
        current_wave=3,
        pending_pause=False,
        ignore_start_dp_wave=False,
        dp_group=None,
    )


def test_engine_cores_in_lockstep_resume_with_one_placement_of_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = lockstep_member(monkeypatch, [4, 0, 0, 1, 77, -77])
    agree_on_wave(engine, 77)
    assert engine.current_wave == 4


@pytest.mark.parametrize("peer", [76, 78])
def test_engine_cores_in_lockstep_never_resume_with_two_placements_of_experts(
    monkeypatch: pytest.MonkeyPatch, peer: int
) -> None:
    engine = lockstep_member(monkeypatch, [4, 0, 0, 1, peer, -peer])
    with pytest.raises(RecoveryFailed, match="EPLB"):
        agree_on_wave(engine, 77)
