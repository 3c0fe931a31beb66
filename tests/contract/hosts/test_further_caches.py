"""Retries with a KV connector and with sliding windows: no request attends to KV that a failed step has left."""

from __future__ import annotations

import random

import pytest

from contract.hosts.kv_world import KVWorld, prompts

pytestmark = pytest.mark.host

KINDS = {
    "offloading": {"offloads": True},
    "window": {"offloads": False, "has_window": True},
    "window-offloading": {"offloads": True, "has_window": True},
}


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest) -> KVWorld:
    return KVWorld(**KINDS[request.param])


def ask_all(world: KVWorld, draw: random.Random, tag: str, tokens: int = 12) -> None:
    for i, prompt in enumerate(prompts(draw, 8)):
        world.ask(f"{tag}{i}", prompt, tokens)


@pytest.mark.parametrize("seed", range(6))
def test_faults_anywhere_change_no_token_and_leave_no_wrong_kv(world: KVWorld, seed: int) -> None:
    draw = random.Random(seed)
    for turn in range(3):
        ask_all(world, random.Random(seed), f"turn{turn}-")
        world.run(draw, chance=0.15)
        world.run()
        assert world.outputs == world.wanted
    assert world.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 39
