"""Outputs of the encoder after a failed step, with the host's real scheduler: none counts as computed."""

from __future__ import annotations

import functools
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem, PlaceholderRange
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from contract.hosts.rig import BLOCK_SIZE, BLOCKS
from contract.hosts.vllm_rig import engine_config
from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.engine.rewind import encodes_again, rewind

pytestmark = pytest.mark.host

PROMPT = BLOCK_SIZE * 3
PICTURE = PlaceholderRange(offset=2, length=6)


@functools.cache
def config() -> Any:
    return engine_config()


@pytest.fixture
def scheduler() -> Scheduler:
    spec = FullAttentionSpec(BLOCK_SIZE, num_kv_heads=1, head_size=32, dtype=torch.float32)
    config().cache_config.num_gpu_blocks = BLOCKS
    made = Scheduler(
        vllm_config=config(),
        kv_cache_config=KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config()),
        block_size=BLOCK_SIZE,
        hash_block_size=BLOCK_SIZE,
    )
    made.encoder_cache_manager = EncoderCacheManager(100)
    made.max_num_encoder_input_tokens = 100
    init_none_hash(sha256)
    return made


def send(scheduler: Scheduler, request_id: str, picture: str) -> Request:
    params = SamplingParams(max_tokens=50, temperature=0.0, ignore_eos=True)
    feature = MultiModalFeatureSpec(data=None, modality="image", identifier=picture, mm_position=PICTURE)
    request = Request(
        request_id,
        [ord(request_id)] * PROMPT,
        params,
        None,
        mm_features=[feature],
        block_hasher=get_request_block_hasher(BLOCK_SIZE, sha256),
    )
    scheduler.add_request(request)
    return request


def step(scheduler: Scheduler) -> Any:
    """Run a step whose reply is one token of each request."""
    planned = scheduler.schedule()
    ids = list(planned.num_scheduled_tokens)
    index = {request_id: i for i, request_id in enumerate(ids)}
    scheduler.update_from_output(planned, ModelRunnerOutput(ids, index, sampled_token_ids=[[7]] * len(ids)))
    return planned


def fail(scheduler: Scheduler, memory_lost: bool = False) -> Any:
    planned = scheduler.schedule()
    rewind(scheduler, (), keep_suspect_blocks=False, memory_lost=memory_lost)
    return planned


def test_a_picture_of_a_failed_step_is_encoded_by_the_next(scheduler: Scheduler) -> None:
    send(scheduler, "a", "one")
    assert fail(scheduler).scheduled_encoder_inputs == {"a": [0]}
    send(scheduler, "b", "one")
    assert step(scheduler).scheduled_encoder_inputs == {"a": [0]}, "once, for both requests"


def test_a_picture_that_the_encoder_had_dropped_before_the_failed_step_is_not_dropped_again(
    scheduler: Scheduler,
) -> None:
    """What a failed step was to drop is gone with the rest: it is told to no rank, and taken from no later picture."""
    scheduler.encoder_cache_manager = EncoderCacheManager(PICTURE.length)
    one = send(scheduler, "a", "one")
    step(scheduler)
    scheduler.finish_requests(one.request_id, one.status.FINISHED_ABORTED)
    send(scheduler, "b", "two")  # drops the first picture as it is scheduled
    assert fail(scheduler).free_encoder_mm_hashes == ["one"]
    assert step(scheduler).free_encoder_mm_hashes == []
    assert scheduler.encoder_cache_manager.num_free_slots == 0


def test_a_request_behind_its_picture_keeps_what_it_has_computed(scheduler: Scheduler) -> None:
    request = send(scheduler, "a", "one")
    step(scheduler)
    step(scheduler)
    fail(scheduler)
    assert request.num_computed_tokens == PROMPT + 1
    assert not encodes_again(request)
    planned = step(scheduler)
    assert (planned.num_scheduled_tokens, planned.scheduled_encoder_inputs) == ({"a": 1}, {})


def test_a_picture_is_computed_as_a_whole(scheduler: Scheduler) -> None:
    """Attention may go both ways within a picture."""
    request = send(scheduler, "a", "one")
    request.mm_features[0].mm_position = PlaceholderRange(offset=2, length=PROMPT - 4)
    scheduler.max_num_scheduled_tokens = BLOCK_SIZE
    step(scheduler)
    assert request.num_computed_tokens == BLOCK_SIZE
    fail(scheduler)
    assert request.num_computed_tokens == 0
    assert encodes_again(request)


def test_runner_v2_is_sent_a_request_of_a_lost_worker_whole(scheduler: Scheduler) -> None:
    scheduler.use_v2_model_runner = True
    request = send(scheduler, "a", "one")
    request.mm_features[0].data = MultiModalKwargsItem({})
    step(scheduler)
    step(scheduler)
    fail(scheduler, memory_lost=True)
    [sent] = scheduler.schedule().scheduled_new_reqs
    assert sent.mm_features == request.mm_features
    assert sent.prefill_token_ids == [*[ord("a")] * PROMPT, 7, 7]


def test_a_connector_that_counts_transfers_of_encoder_outputs_needs_another_engine_core(scheduler: Scheduler) -> None:
    send(scheduler, "a", "one")
    scheduler.schedule()
    scheduler.ec_connector = type("ECCPUConnector", (), {})()
    with pytest.raises(RecoveryFailed, match="ECCPUConnector cannot be taken back"):
        rewind(scheduler, (), keep_suspect_blocks=False)
    scheduler.ec_connector = type("ECExampleConnector", (), {"request_finished": None})()
    rewind(scheduler, (), keep_suspect_blocks=False)
    scheduler.ec_connector = None
    assert step(scheduler).scheduled_encoder_inputs == {"a": [0]}
