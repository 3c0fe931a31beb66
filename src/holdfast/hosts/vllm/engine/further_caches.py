"""Rewind requests whose KV is more than one group of full attention: sliding windows, Mamba, connectors.

Nothing that these requests hold is kept: each returns to its first token, the prefix cache is emptied block by block,
and the connector takes its jobs back. Requests that load KV or wait with blocks are among them.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.request import RequestStatus

from holdfast.hosts.vllm.engine.connector_jobs import require_rewindable, require_rewindable_encoder, take_back_jobs


def rewind_to_first_tokens(scheduler: Any, *, memory_lost: bool) -> list[Any]:
    """Release every request with blocks, and return these requests. Idempotent.

    Args:
        memory_lost: the memory of a rank is lost, and with it what a connector kept there.

    Raises:
        RecoveryFailed: transfers of the connector cannot be taken back.
    """
    require_rewindable(scheduler.connector, memory_lost=memory_lost)
    require_rewindable_encoder(scheduler.ec_connector)
    _drop_pending_copies(scheduler)
    requests = _requests_to_release(scheduler)
    scheduler.running = []
    _remove_from_waiting(scheduler, requests)
    began_at = time.monotonic()
    for request in reversed(requests):
        if request.status is RequestStatus.RUNNING:
            scheduler._preempt_request(request, began_at, drop_stale_output=True)
        else:
            _put_back(scheduler, request)
    for request in requests:
        _wait_anew(request)
    if scheduler.connector is not None:
        # The restore tells the workers. The connector would take loads of the next step for jobs from before.
        scheduler.reset_preempted_req_ids.clear()
        take_back_jobs(scheduler, requests, memory_lost=memory_lost)
    _empty_prefix_cache(scheduler)
    return requests


def _requests_to_release(scheduler: Any) -> list[Any]:
    """Return the running requests in their order, then waiting requests that hold blocks or were in a schedule's hands.

    A schedule that raises leaves the requests that it has passed over in no queue.
    """
    running = [r for r in scheduler.running if r.request_id in scheduler.requests and not r.is_finished()]
    ran = {r.request_id for r in running}
    queued = {r.request_id for queue in (scheduler.kv_holding_waiting, scheduler.waiting) for r in queue}
    return running + [
        r
        for r in scheduler.requests.values()
        if r.request_id not in ran
        and not r.is_finished()
        and r.status is not RequestStatus.WAITING_FOR_STREAMING_REQ
        and (r.request_id not in queued or any(scheduler.kv_cache_manager.get_block_ids(r.request_id)))
    ]


def _remove_from_waiting(scheduler: Any, requests: list[Any]) -> None:
    for queue in (scheduler.kv_holding_waiting, scheduler.waiting):
        queue.remove_requests(requests)
    scheduler.deferred_waiting.difference_update(requests)


def _put_back(scheduler: Any, request: Any) -> None:
    """Release a request that holds blocks and does not run: the host preempts running requests only."""
    scheduler.kv_cache_manager.free(request)
    scheduler.encoder_cache_manager.free(request)
    scheduler._inflight_prefills.discard(request)
    scheduler.finished_recving_kv_req_ids.discard(request.request_id)
    scheduler.failed_recving_kv_req_ids.discard(request.request_id)
    request.num_computed_tokens = 0
    request.num_preemptions += 1
    if request.status is not RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
        request.status = RequestStatus.PREEMPTED
    scheduler.waiting.prepend_request(request)


def _wait_anew(request: Any) -> None:
    """Let a request without output count as new: after a load, the host tells new requests by their preemptions."""
    if not request.num_output_tokens:
        request.num_preemptions = 0
        if request.status is RequestStatus.PREEMPTED:
            request.status = RequestStatus.WAITING


def _drop_pending_copies(scheduler: Any) -> None:
    """Forget copies and hand-offs of blocks that a schedule prepared and never sent."""
    manager = scheduler.kv_cache_manager
    manager.take_boundary_state_offloads()
    _, retained = manager.take_kv_cache_block_copies()
    if retained:
        scheduler._free_cow_retained_blocks(retained, 0)


def _empty_prefix_cache(scheduler: Any) -> None:
    """Take every block out of the prefix cache. The host's reset refuses while a request holds blocks."""
    pool = scheduler.kv_cache_manager.block_pool
    cached = {block.block_id for block in pool.blocks if block.block_hash is not None}
    scheduler.kv_cache_manager.evict_blocks(cached | set(pool.cached_block_hashes_by_block))
    if scheduler.aux_output_connector is not None:
        scheduler.aux_output_connector.reset()
