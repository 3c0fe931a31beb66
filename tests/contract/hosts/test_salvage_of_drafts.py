"""Salvage over the host's real scheduler and engine step, with asynchronous scheduling and speculative decoding.

Only the model is pretended: drafts are accepted at random, and an answer depends on nothing but the positions.
"""

from __future__ import annotations

import functools
import queue
import random
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched import scheduler as host_scheduler
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from contract.hosts.rig import BLOCK_SIZE
from contract.hosts.vllm_rig import engine_config
from holdfast.hosts.vllm.engine.rewind import rewind
from holdfast.hosts.vllm.engine.salvage import salvage

pytestmark = pytest.mark.host

DRAFTS = 3
LENGTHS = {"a": 30, "b": 41, "c": 17}
ROOMY, TIGHT = 64, 9  # blocks: with few of them requests are preempted

SEEDS = [2, 5, 7, 113]  # with the last and few blocks, a token is appended to a request that was preempted meanwhile


@functools.cache
def config() -> Any:
    # The host allows such drafts under asynchronous scheduling only on GPUs.
    return engine_config(
        speculative_config={"method": "ngram", "num_speculative_tokens": DRAFTS, "prompt_lookup_max": 3}
    )


def answer(request_id: str, length: int) -> list[int]:
    """Runs of equal tokens: an output does not tell which step appended a token."""
    return [10 + (ord(request_id) + i) // 5 % 3 for i in range(length)]


class Core:
    """The host's engine step around a scheduler and a pretended executor; everything sent is kept."""

    def __init__(self, seed: int, blocks: int) -> None:
        self.random = random.Random(seed)
        spec = FullAttentionSpec(BLOCK_SIZE, num_kv_heads=1, head_size=32, dtype=torch.float32)
        config().cache_config.num_gpu_blocks = blocks
        self.scheduler = AsyncScheduler(
            vllm_config=config(),
            kv_cache_config=KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(config()),
            block_size=BLOCK_SIZE,
            hash_block_size=BLOCK_SIZE,
        )
        self.engine = EngineCore.__new__(EngineCore)
        vars(self.engine).update(
            scheduler=self.scheduler,
            model_executor=self,
            batch_queue=deque(),
            batch_queue_size=2,
            output_queue=queue.Queue(),
            aborts_queue=queue.Queue(),
            vllm_config=config(),
            is_mm_encoder_only=False,
            is_pooling_model=False,
            check_for_draft_tokens=False,
            log_stats=False,
            _weight_version=None,
        )
        init_none_hash(sha256)
        hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
        for request_id, length in LENGTHS.items():
            params = SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True)
            self.scheduler.add_request(Request(request_id, [1] * 20, params, None, block_hasher=hasher))
        self.known = dict.fromkeys(LENGTHS, 0)  # output tokens that the worker has
        self.sent: dict[str, list[int]] = {request_id: [] for request_id in LENGTHS}

    # ---- executor

    def execute_model(self, step: Any, non_block: bool) -> Future[Any]:
        self._step = step
        done: Future[Any] = Future()
        done.set_result(None if step.total_num_scheduled_tokens else ModelRunnerOutput([], {}))
        return done

    def sample_tokens(self, grammar: Any, non_block: bool) -> Future[Any]:
        sampled = {request_id: self._sample(request_id) for request_id in self._step.num_scheduled_tokens}
        index = {request_id: i for i, request_id in enumerate(sampled)}
        done: Future[Any] = Future()
        done.set_result(ModelRunnerOutput(list(index), index, sampled_token_ids=list(sampled.values())))
        return done

    def _sample(self, request_id: str) -> list[int]:
        request = self.scheduler.requests[request_id]
        if request.is_prefill_chunk:
            return []
        drafts = self._step.scheduled_spec_decode_tokens.get(request_id, ())
        count = 1 + self.random.randint(0, len(drafts))
        known = self.known[request_id]
        self.known[request_id] += count
        return answer(request_id, 1000)[known : known + count]

    # ---- busy loop

    def run(self) -> int:
        """Run until no request is left; return the number of faults."""
        faults = 0
        for _ in range(500):
            if not self.scheduler.requests:
                return faults
            try:
                outputs, _ = self.engine.step_with_batch_queue()
                for output in (outputs or {}).items():
                    self.engine.output_queue.put_nowait(output)
            except (ValueError, KeyError) as error:
                faults += 1
                self._recover(error)
            self._take()
        raise AssertionError("the requests never finish")

    def _recover(self, error: Exception) -> None:
        salvage(self.engine, error)
        self.engine.batch_queue.clear()
        rewind(self.scheduler, (), keep_suspect_blocks=False)
        self.known = {r.request_id: r.num_output_tokens for r in self.scheduler.requests.values()}

    def _take(self) -> None:
        while not self.engine.output_queue.empty():
            for output in self.engine.output_queue.get_nowait()[1].outputs:
                self.sent[output.request_id] += output.new_token_ids


class Site:
    """A function of the host that raises now and then, before or after the function itself has run."""

    def __init__(self, seed: int, *, after: bool = False) -> None:
        self._random = random.Random(seed)
        self._after = after

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            is_due = self._random.random() < 0.04
            if is_due and not self._after:
                raise ValueError("injected")
            result = call(*args, **kwargs)
            if is_due:
                raise ValueError("injected")
            return result

        return run


SITES = {
    "as a token is appended": (host_scheduler, "check_stop", False),
    "after the tokens were appended": ("scheduler", "_update_request_with_output", True),
    "before the tokens are appended": ("scheduler", "_update_request_with_output", False),
    "as rejected drafts were taken off": ("scheduler", "make_spec_decoding_stats", False),
    "as blocks are cached": ("scheduler.kv_cache_manager", "cache_blocks", False),
    "in the grammar": ("scheduler.structured_output_manager", "accept_tokens", True),
}


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest) -> Iterator[tuple[Any, str, bool]]:
    return SITES[request.param]


@pytest.mark.parametrize("blocks", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_token_is_lost_or_repeated(
    monkeypatch: pytest.MonkeyPatch, site: tuple[Any, str, bool], seed: int, blocks: int
) -> None:
    """Draft placeholders of the steps in flight are no delivered tokens."""
    owner, name, after = site
    core = Core(seed, blocks)
    if isinstance(owner, str):
        owner = functools.reduce(getattr, owner.split("."), core)
    monkeypatch.setattr(owner, name, Site(seed, after=after).around(getattr(owner, name)))
    core.run()
    assert core.sent == {request_id: answer(request_id, length) for request_id, length in LENGTHS.items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_no_token_is_lost_or_repeated_when_a_reply_lacks_a_request(seed: int) -> None:
    """The host raises before rejected drafts are taken off; its variables are still those of another request."""
    core = Core(seed, ROOMY)
    sample, at = core.sample_tokens, random.Random(seed)

    def incomplete(grammar: Any, non_block: bool) -> Any:
        reply = sample(grammar, non_block)
        if at.random() < 0.1:
            output = reply.result()
            output.req_id_to_index = {i: n for i, n in output.req_id_to_index.items() if i != output.req_ids[-1]}
        return reply

    core.sample_tokens = incomplete  # type: ignore[method-assign]
    core.run()
    assert core.sent == {request_id: answer(request_id, length) for request_id, length in LENGTHS.items()}
