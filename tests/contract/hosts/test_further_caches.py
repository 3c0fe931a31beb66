"""Retries with a KV connector and with sliding windows: no request attends to KV that a failed step has left."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from safetensors.torch import save_file
from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import ExampleConnector

from contract.hosts.kv_world import BLOCK_SIZE, BLOCKS, Broken, KVWorld, prompts
from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.engine.connector_jobs import require_rewindable, take_back_jobs

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


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.matrix) for seed in range(2, 12))])
def test_faults_anywhere_change_no_token_and_leave_no_wrong_kv(world: KVWorld, seed: int) -> None:
    draw = random.Random(seed)
    for turn in range(3):
        ask_all(world, random.Random(seed), f"turn{turn}-")
        world.run(draw, chance=0.15)
        world.run()
        assert world.outputs == world.wanted
    assert world.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == BLOCKS - 1  # one is the null block


def broken_while_loading(*, new_rank: bool) -> KVWorld:
    """Return a world in which a request's prompt was offloaded, and broke as another request loaded it."""
    world, prompt = KVWorld(), list(range(3, 150))
    world.ask("first", prompt, 4)
    world.run()
    world.scheduler.kv_cache_manager.reset_prefix_cache()
    world.ask("second", prompt, 4)
    loaded = world.loaded_jobs
    with pytest.raises(Broken):
        world.step("after")
    assert world.loaded_jobs == loaded + 1
    world.repair(new_rank=new_rank)
    return world


def test_kv_that_was_offloaded_before_the_fault_is_loaded_after_a_retry() -> None:
    world = broken_while_loading(new_rank=False)
    loaded = world.loaded_jobs
    world.run()
    assert world.loaded_jobs == loaded + 1
    assert world.outputs == world.wanted


def test_nothing_is_loaded_from_memory_that_a_lost_worker_held() -> None:
    world = broken_while_loading(new_rank=True)
    loaded = world.loaded_jobs
    world.run()
    assert world.loaded_jobs == loaded
    assert world.outputs == world.wanted


def test_a_connector_that_is_not_known_is_named() -> None:
    class OfSomebody:
        """A connector from outside."""

    class MultiConnector:
        _connectors = (OfSomebody(),)

    for connector in (OfSomebody(), MultiConnector()):
        with pytest.raises(RecoveryFailed, match="OfSomebody"):
            require_rewindable(connector, memory_lost=False)


def test_a_new_worker_that_cannot_reach_the_offloaded_memory_of_its_peers_is_not_let_in() -> None:
    world = broken_while_loading(new_rank=False)
    connector = world.scheduler.connector
    connector._canonical_layout = True
    world.repair(new_rank=True)
    connector.connector_scheduler.config = connector.connector_scheduler.config._replace(num_workers=2)
    with pytest.raises(RecoveryFailed, match="no part in the memory"):
        world.repair(new_rank=True)


# ---- files, one folder per prompt


@pytest.fixture
def files(tmp_path: Path) -> ExampleConnector:
    connector = ExampleConnector.__new__(ExampleConnector)
    connector._block_size, connector._storage_path = BLOCK_SIZE, str(tmp_path)
    connector._requests_need_load = {}
    groups = [SimpleNamespace(layer_names=["one", "two"])]
    connector._kv_cache_config = SimpleNamespace(kv_cache_groups=groups)
    return connector


def stored(files: ExampleConnector, prompt: list[int], *layers: str) -> Any:
    """Return a request with a prompt whose folder holds some layers."""
    aligned = torch.tensor(prompt)[: (len(prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE]
    for layer in layers:
        save_file({"kv_cache": torch.ones(8)}, files._generate_filename_debug(layer, aligned, []))
    assert files._found_match_for_prompt(prompt, [])
    return SimpleNamespace(request_id="r", prompt_token_ids=prompt, mm_features=[])


def taken_back(files: ExampleConnector, request: Any) -> bool:
    """Take the jobs back; return whether the connector finds the prompt afterwards."""
    sets: dict[str, Any] = {name: set() for name in ("finished_recving_kv_req_ids", "failed_recving_kv_req_ids")}
    take_back_jobs(SimpleNamespace(connector=files, requests={}, **sets), [request], memory_lost=False)
    return files._found_match_for_request(request)


PROMPT = list(range(3, 43))


def test_a_folder_that_a_failed_step_left_unfinished_is_not_loaded(files: ExampleConnector) -> None:
    assert not taken_back(files, stored(files, PROMPT, "one"))


def test_a_folder_with_a_file_that_was_cut_off_is_not_loaded(files: ExampleConnector) -> None:
    request = stored(files, PROMPT, "one", "two")
    [file] = Path(files._storage_path).glob("*/two.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert not taken_back(files, request)


def test_a_whole_folder_stays(files: ExampleConnector) -> None:
    assert taken_back(files, stored(files, PROMPT, "one", "two"))
