"""The host's real scheduler over a small cache; its steps are computed by nobody."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from contract.hosts.vllm_rig import vllm_config
from holdfast.hosts.vllm.engine.rewind import FreedInFlight, rewind

BLOCK = 4
MAX_TURNS = 2000  # far more than any load of these tests needs
SCHEDULER_SETTINGS = (
    "policy",
    "long_prefill_token_threshold",
    "scheduler_reserve_full_isl",
    "max_num_seqs",
    "watermark",
)
HASH = get_hash_fn_by_name("sha256")
init_none_hash(HASH)

LONG_PREFILL_IN_A_FULL_CACHE: dict[str, Any] = {
    "policy": "fcfs",
    "blocks": 19,
    "step_tokens": 4,
    "long_prefill_token_threshold": 2,
    "scheduler_reserve_full_isl": True,
    "max_num_seqs": 2,
    "lookahead": 0,
    "watermark": 0.0,
    "is_async": False,
    "enable_prefix_caching": False,
    "requests": [(0, 69, 1, 0, False), (0, 1, 1, 0, False), (2, 1, 2, 0, False)],
    "faults": [2],
}


class Core:
    """A scheduler of the host, its steps computed by nobody."""

    def __init__(self, load: dict[str, Any]) -> None:
        config = copy.copy(vllm_config())
        config.scheduler_config = copy.copy(config.scheduler_config)
        config.cache_config = copy.copy(config.cache_config)
        for name in SCHEDULER_SETTINGS:
            setattr(config.scheduler_config, name, load[name])
        config.scheduler_config.max_num_batched_tokens = load["step_tokens"]
        config.scheduler_config.max_num_scheduled_tokens = load["step_tokens"]
        config.cache_config.num_gpu_blocks = load["blocks"]
        config.cache_config.block_size = BLOCK
        config.cache_config.enable_prefix_caching = load["enable_prefix_caching"]
        spec = FullAttentionSpec(BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32)
        cache = KVCacheConfig(load["blocks"], [], [KVCacheGroupSpec(["layer"], spec)])
        kind = AsyncScheduler if load["is_async"] else Scheduler
        self.scheduler = kind(config, cache, StructuredOutputManager(config), BLOCK)
        self.scheduler.num_lookahead_tokens = load["lookahead"]  # of drafts; nothing is drafted here
        self._depth = 2 if load["is_async"] else 1
        self._freed = FreedInFlight(self.scheduler, self._depth + 1)
        self._hasher = get_request_block_hasher(BLOCK, HASH)
        self._in_flight: deque[Any] = deque()

    def add(self, name: str, prompt: int, output: int, priority: int, is_twin: bool) -> None:
        start = 0 if is_twin else 1000 * int(name)
        tokens = [start + i for i in range(prompt)]
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        request = Request(
            name, tokens, sampling, None, priority=priority, arrival_time=float(name), block_hasher=self._hasher
        )
        self.scheduler.add_request(request)

    def turn(self) -> bool:
        """Schedule a step, and process the oldest. Return whether anything was in flight."""
        step = self.scheduler.schedule()
        if step.total_num_scheduled_tokens:
            self._in_flight.append(step)
        moved = bool(self._in_flight)
        if len(self._in_flight) >= self._depth or not step.total_num_scheduled_tokens:
            self._process()
        return moved

    def _process(self) -> None:
        if not self._in_flight:
            return
        step = self._in_flight.popleft()
        sampled = [[7] if self._samples(step, i) else [] for i in step.num_scheduled_tokens]
        order = {i: index for index, i in enumerate(step.num_scheduled_tokens)}
        self.scheduler.update_from_output(step, ModelRunnerOutput(list(order), order, sampled_token_ids=sampled))

    def _samples(self, step: Any, request_id: str) -> bool:
        request = self.scheduler.requests.get(request_id)
        if request is None:
            return False
        start = next((n.num_computed_tokens for n in step.scheduled_new_reqs if n.req_id == request_id), None)
        if start is None:
            cached = step.scheduled_cached_reqs
            start = cached.num_computed_tokens[cached.req_ids.index(request_id)]
        return start + step.num_scheduled_tokens[request_id] >= request.num_tokens

    def waiting(self) -> list[tuple[str, str, int, int]]:
        requests = self.scheduler.requests.values()
        return [(r.request_id, r.status.name, r.num_computed_tokens, r.num_tokens) for r in requests]

    def fail(self, *, give_kv_up: bool = False) -> None:
        """Drop what is in flight, and rewind."""
        self._in_flight.clear()
        rewind(self.scheduler, self._freed.requests(), keep_suspect_blocks=False, give_kv_up=give_kv_up)
        self._freed.clear()
