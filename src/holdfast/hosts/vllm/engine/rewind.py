"""Rewind a scheduler's requests to the tokens that were really computed, with the host's own queues and blocks.

With a single group of full attention a request keeps its good blocks and waits in the queue in which the host keeps
requests whose KV arrived from another instance: with blocks, and a count of computed tokens. With any further cache
(sliding window, Mamba, several groups, connectors) requests return to their first token and the prefix cache is
emptied (`further_caches`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import RequestStatus

from holdfast.core.requests.rewind import (
    RequestBlocks,
    RewindPlan,
    given_up,
    given_up_blocks,
    plan_restart,
    plan_rewind,
    release_until_rest_fits,
)
from holdfast.hosts.vllm.engine.further_caches import rewind_to_first_tokens
from holdfast.hosts.vllm.engine.streaming_sessions import keep_parked
from holdfast.hosts.vllm.engine.waiting_queues import put_first, queues, remove_from_waiting

# States in which a request has blocks but no step in flight.
PARKED = frozenset({RequestStatus.WAITING_FOR_REMOTE_KVS, RequestStatus.WAITING_FOR_STREAMING_REQ})


@dataclass(frozen=True)
class RewindResult:
    """The outcome of a rewind."""

    requests: int
    kept_blocks: int
    evicted_blocks: int
    tokens_to_recompute: int


class FreedInFlight:
    """Blocks of requests that were freed while a step was in flight, within the depth of the pipeline.

    Blocks enter the prefix cache when they are scheduled. A request that is aborted, finished or preempted before its
    step has ended leaves blocks in the cache that may never be written. Works once per such request, never per step.
    """

    def __init__(self, scheduler: Any, steps_in_flight: int) -> None:
        self._scheduler = scheduler
        self._depth = steps_in_flight
        self._freed: deque[tuple[int, RequestBlocks]] = deque()
        self._free: Callable[[Any], None] = scheduler._free_request_blocks
        scheduler._free_request_blocks = self._record_and_free

    def requests(self) -> list[RequestBlocks]:
        """Return the requests freed during the steps that may still be in flight."""
        self._drop_older_steps()
        return [blocks for _, blocks in self._freed]

    def clear(self) -> None:
        """Drop all requests: no step is in flight any more."""
        self._freed.clear()

    def _record_and_free(self, request: Any) -> None:
        if request.num_in_flight_tokens:
            self._drop_older_steps()
            groups = self._scheduler.kv_cache_manager.get_block_ids(request.request_id)
            blocks = _request_blocks(request, groups[0], request_id=f"freed {request.request_id}")
            self._freed.append((self._scheduler.current_step, blocks))
        self._free(request)

    def _drop_older_steps(self) -> None:
        oldest = self._scheduler.current_step - self._depth
        while self._freed and self._freed[0][0] < oldest:
            self._freed.popleft()


def rewind(
    scheduler: Any,
    freed: Sequence[RequestBlocks],
    *,
    keep_suspect_blocks: bool,
    memory_lost: bool = False,
    give_kv_up: bool = False,
) -> RewindResult:
    """Put every running request back to waiting with nothing in flight.

    Args:
        freed: requests that were freed while a step was in flight.
        memory_lost: the memory of a rank is lost, and with it all KV.
        give_kv_up: no request keeps blocks; good ones stay in the prefix cache.
        keep_suspect_blocks: leave suspect KV in the prefix cache (tests only: answers go wrong).
    """
    if scheduler.defer_block_free:
        scheduler.processed_step_seq = scheduler.sched_step_seq
        scheduler._drain_deferred_frees()
    manager = only_full_attention(scheduler)
    keep_parked(scheduler, kv_lost=memory_lost or manager is None)
    if manager is None:
        rewound = _rewind_all(scheduler, memory_lost=memory_lost)
    elif memory_lost:
        rewound = _rewind_to_start(scheduler, manager)
    else:
        rewound = _rewind_in_place(scheduler, manager, freed, keep_suspect_blocks, give_kv_up)
    for request in scheduler.requests.values():
        _clear_in_flight(request)
        if request.status is RequestStatus.PREEMPTED:  # including requests that the host had preempted before
            request.status = _waiting_status(request)
    scheduler.prev_step_scheduled_req_ids.clear()
    # Outputs of the encoder count as computed when they are scheduled, and as dropped when another step is told.
    # Nobody knows which of them a failed step has left: the workers drop them all.
    scheduler.encoder_cache_manager.reset()
    return rewound


def encodes_again(request: Any) -> bool:
    """Tell whether a rewound request computes a picture, or another input of the encoder, again."""
    return any(_end(feature) > request.num_computed_tokens for feature in request.mm_features or ())


def _end(feature: Any) -> int:
    """Return the position behind an input of the encoder."""
    return feature.mm_position.offset + feature.mm_position.length


# ---- a single group of full attention: in place


def only_full_attention(scheduler: Any) -> Any | None:
    """Return the only manager of the cache where requests can be rewound in place, else None."""
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    further = (scheduler.connector, scheduler.ec_connector, scheduler.aux_output_connector)
    if any(connector is not None for connector in further) or len(managers) != 1:
        return None
    manager = managers[0]
    whole_blocks = manager.block_size == scheduler.kv_cache_manager.block_pool.hash_block_size
    return manager if type(manager) is FullAttentionManager and whole_blocks else None


def _rewind_in_place(
    scheduler: Any, manager: Any, freed: Sequence[RequestBlocks], keep_suspect_blocks: bool, give_kv_up: bool
) -> RewindResult:
    requests = _requests_to_rewind(scheduler, manager)
    present = [_blocks_now(request, manager) for request in requests]
    plan = plan_rewind([*present, *freed], manager.block_size)
    plan = given_up(plan) if give_kv_up else _fitting_plan(scheduler, plan, present)
    evicted = _cached(scheduler, plan.suspect_blocks)
    if not keep_suspect_blocks:
        scheduler.kv_cache_manager.evict_blocks(evicted)
    _remove_from_queues(scheduler, requests)
    for request in reversed(requests):
        _put_back(scheduler, manager, request, plan)
    return RewindResult(
        requests=len(requests),
        kept_blocks=sum(plan.kept_blocks(h.request_id) for h in present),
        evicted_blocks=len(evicted),
        tokens_to_recompute=sum(h.total - plan.good_tokens[h.request_id] for h in present),
    )


def _rewind_to_start(scheduler: Any, manager: Any) -> RewindResult:
    requests = _requests_to_rewind(scheduler, manager)
    present = [_blocks_now(request, manager) for request in requests]
    plan = plan_restart(present, manager.block_size)
    evicted = _cached(scheduler, range(len(scheduler.kv_cache_manager.block_pool.blocks)))
    scheduler.kv_cache_manager.evict_blocks(evicted)
    _remove_from_queues(scheduler, requests)
    for request in reversed(requests):
        _put_back(scheduler, manager, request, plan)
    return RewindResult(
        requests=len(requests),
        kept_blocks=0,
        evicted_blocks=len(evicted),
        tokens_to_recompute=sum(h.total for h in present),
    )


def _requests_to_rewind(scheduler: Any, manager: Any) -> list[Any]:
    """Return every request to rewind in the order of the host's queue.

    That is by priority where the host goes by it, else running requests in their order, then waiting requests with
    blocks.
    """
    running = [r for r in scheduler.running if r.request_id in scheduler.requests]
    ran = {r.request_id for r in running}
    queued = {r.request_id for queue in queues(scheduler) for r in queue}
    others = [
        r
        for r in scheduler.requests.values()
        if r.request_id not in ran
        and r.status not in PARKED
        and not r.is_finished()
        and (manager.req_to_blocks.get(r.request_id) or r.request_id not in queued)
    ]
    return sorted(running + others) if scheduler.policy is SchedulingPolicy.PRIORITY else running + others


def _blocks_now(request: Any, manager: Any) -> RequestBlocks:
    blocks = [b.block_id for b in manager.req_to_blocks.get(request.request_id, ())]
    return _request_blocks(
        request, blocks, request.request_id, keepable=_keepable(request), together=_pictures(request)
    )


def _request_blocks(
    request: Any, blocks: list[int], request_id: str, *, keepable: bool = True, together: int = 0
) -> RequestBlocks:
    return RequestBlocks(
        request_id=request_id,
        total=request.num_tokens,
        computed=request.num_computed_tokens,
        in_flight=request.num_in_flight_tokens,
        blocks=blocks,
        keepable=keepable,
        together=together,
    )


def _keepable(request: Any) -> bool:
    """Tell whether a prefill may continue in the middle: not if a result is gathered over the whole prompt."""
    params = request.sampling_params
    gathers = request.pooling_params is not None or (
        params is not None and params.prompt_logprobs is not None and request.num_output_tokens == 0
    )
    return not (gathers or request.resumable)


def _pictures(request: Any) -> int:
    """Return how many first tokens a picture ends behind that has been begun: attention may go both ways within one."""
    written = request.num_computed_tokens - request.num_in_flight_tokens
    begun = [_end(feature) for feature in request.mm_features or () if feature.mm_position.offset < written]
    return max(begun, default=0)


def _fitting_plan(scheduler: Any, plan: RewindPlan, present: Sequence[RequestBlocks]) -> RewindPlan:
    """Release what the host would not admit beside the rest: by its rule, from the end of its queue."""
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks() + given_up_blocks(plan, present)
    reserves = scheduler.scheduler_reserve_full_isl  # the host admits a request only if its whole sequence fits
    tokens = scheduler.max_model_len if reserves else scheduler.max_num_scheduled_tokens
    spare = 1 + scheduler.num_lookahead_tokens // plan.block_size
    return release_until_rest_fits(plan, present, free, tokens, spare_blocks=spare)


def _cached(scheduler: Any, suspect: Iterable[int]) -> set[int]:
    """Return the suspect blocks that are in the prefix cache."""
    blocks = scheduler.kv_cache_manager.block_pool.blocks
    return {block_id for block_id in suspect if blocks[block_id].block_hash is not None}


def _remove_from_queues(scheduler: Any, requests: Iterable[Any]) -> None:
    removed = list(requests)
    scheduler.running = []
    remove_from_waiting(scheduler, removed)


def _put_back(scheduler: Any, manager: Any, request: Any, plan: RewindPlan) -> None:
    good = plan.good_tokens[request.request_id]
    if good:
        _trim(scheduler, manager, request, plan)
        request.status = _waiting_status(request)
        scheduler.kv_holding_waiting.prepend_request(request)
    else:
        release(scheduler, request)
        put_first(scheduler, request)
    request.num_computed_tokens = good
    scheduler._inflight_prefills.discard(request)


def _trim(scheduler: Any, manager: Any, request: Any, plan: RewindPlan) -> None:
    """Free the blocks behind the good tokens; count only whole good blocks as cached."""
    request_id = request.request_id
    blocks = manager.req_to_blocks[request_id]
    kept = plan.kept_blocks(request_id)
    tail = blocks[kept:]
    del blocks[kept:]
    scheduler.kv_cache_manager.block_pool.free_blocks(reversed(tail))
    whole = plan.good_tokens[request_id] // manager.block_size
    manager.num_cached_block[request_id] = min(manager.num_cached_block.get(request_id, 0), whole)


def release(scheduler: Any, request: Any) -> None:
    """Take the KV of a request, which waits to compute all of it again."""
    scheduler.kv_cache_manager.free(request)
    scheduler.encoder_cache_manager.free(request)
    if request.status is not RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
        request.status = _waiting_status(request)
    request.num_preemptions += 1


def _waiting_status(request: Any) -> Any:
    """Return the status to wait with. A request without output is sent to the workers again."""
    return RequestStatus.PREEMPTED if request.num_output_tokens else RequestStatus.WAITING


def recompute(scheduler: Any, request_id: str) -> None:
    """Drop the KV of a request that waits after a rewind. Caches of further kinds were dropped by the rewind."""
    request, manager = scheduler.requests.get(request_id), only_full_attention(scheduler)
    if request is None or manager is None or request not in scheduler.kv_holding_waiting:
        return
    block_ids = [block.block_id for block in manager.req_to_blocks.get(request_id, ())]
    scheduler.kv_cache_manager.evict_blocks(_cached(scheduler, block_ids))
    release(scheduler, request)
    put_first(scheduler, request)
    request.num_computed_tokens = 0


# ---- caches of further kinds


def _rewind_all(scheduler: Any, *, memory_lost: bool) -> RewindResult:
    requests = rewind_to_first_tokens(scheduler, memory_lost=memory_lost)
    for request in reversed(requests):
        put_first(scheduler, request)
    return RewindResult(
        requests=len(requests),
        kept_blocks=0,
        evicted_blocks=0,
        tokens_to_recompute=sum(r.num_tokens for r in requests),
    )


# ---- all requests


def _clear_in_flight(request: Any) -> None:
    """Clear counts of tokens in flight: the host would discard the next real output as stale."""
    request.num_in_flight_tokens = 0
    request.num_stale_output_tokens = 0
    request.drop_stale_output = False
    request.num_output_placeholders = 0
    request.spec_token_ids = []
    request.next_decode_eligible_step = 0
    request.is_prefill_chunk = False
