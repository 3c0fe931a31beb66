"""Take back what a KV connector has begun in steps that failed, on the scheduler's side.

A connector counts what it has asked of the workers: loads, stores, and the notices that end them. The notices of a
failed step are lost, and a store of a failed step would keep KV that was never computed. So every open job is taken
back: its blocks leave the connector's index or are released there, later notices of the job are ignored, and the
workers end the transfers before the next step (`worker/connector_transfers.py`). KV that was kept before stays.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from holdfast.core.errors import RecoveryFailed
from holdfast.core.faults.redaction import PublicText

_HEADER_BYTES = 8  # length of the header, at the begin of a file of tensors


def take_back_jobs(scheduler: Any, requests: Sequence[Any], *, memory_lost: bool) -> None:
    """Take back all open jobs of the scheduler's connector.

    Args:
        requests: the requests that were released.
        memory_lost: what the connector keeps in the memory of a worker is lost.
    """
    _take_back(scheduler.connector, requests, memory_lost)
    for request in [r for r in scheduler.requests.values() if r.is_finished()]:  # waited for the end of their loads
        scheduler._free_blocks(request)
    if hasattr(scheduler, "deferred_loads"):
        scheduler.deferred_loads.clear()
    scheduler.finished_recving_kv_req_ids.clear()
    scheduler.failed_recving_kv_req_ids.clear()


def require_rewindable(connector: Any | None, *, memory_lost: bool) -> None:
    """Raise `RecoveryFailed` for a connector whose engine core has to be replaced."""
    if connector is None:
        return
    if name := _first_unknown(connector):
        raise RecoveryFailed(
            PublicText(f"transfers of the KV connector {name} cannot be taken back: its engine core has to be replaced")
        )
    if memory_lost and _shares_memory(connector):
        raise RecoveryFailed(
            PublicText("a new worker has no part in the memory of the KV connector: its engine core has to be replaced")
        )


def require_rewindable_encoder(connector: Any | None) -> None:
    """Raise `RecoveryFailed` for a connector of encoder outputs that counts transfers: some may be of failed steps."""
    name = type(connector).__name__
    if connector is not None and name != "ECExampleConnector":
        raise RecoveryFailed(
            PublicText(f"transfers of the connector {name} cannot be taken back: its engine core has to be replaced")
        )


def _first_unknown(connector: Any) -> str:
    name = type(connector).__name__
    if name == "MultiConnector":
        return next(filter(None, map(_first_unknown, connector._connectors)), "")
    return "" if name in _KINDS else name


def _shares_memory(connector: Any) -> bool:
    """Tell whether processes read the offloaded KV of one another: the host removes the name of that memory."""
    if hasattr(connector, "_connectors"):
        return any(map(_shares_memory, connector._connectors))
    scheduler = getattr(connector, "connector_scheduler", None)
    if scheduler is None:
        return False
    if type(scheduler.manager).__name__ == "TieringOffloadingManager":  # the engine core copies between the tiers
        return True
    one_copy = connector._canonical_layout or connector._vllm_config.model_config.use_mla
    return bool(one_copy and scheduler.config.num_workers > 1)


def _take_back(connector: Any, requests: Sequence[Any], memory_lost: bool) -> None:
    _KINDS[type(connector).__name__](connector, requests, memory_lost)


def _of_several(connector: Any, requests: Sequence[Any], memory_lost: bool) -> None:
    for each in connector._connectors:
        _take_back(each, requests, memory_lost)
    for request in requests:
        connector._requests_to_connector.pop(request.request_id, None)
    connector._extra_async_saves.clear()


# ---- offloading into memory, and from there to disks


def _of_offloading(connector: Any, requests: Sequence[Any], memory_lost: bool) -> None:
    scheduler = connector.connector_scheduler
    scheduler._current_batch_load_jobs.clear()
    if hasattr(scheduler, "_current_batch_sync_loads"):
        scheduler._current_batch_sync_loads.clear()
    scheduler._current_batch_allocated_block_ids.clear()
    to_end = scheduler._current_batch_jobs_to_flush | set(scheduler._jobs)
    scheduler._current_batch_jobs_to_flush.clear()
    if memory_lost:
        scheduler.reset_cache()
    else:
        with _manager_of(scheduler):
            _end_jobs(scheduler)
    _end_fence(scheduler)
    for state in scheduler._req_status.values():
        _begin_anew(state)
    scheduler._current_batch_jobs_to_flush.update(to_end)


def _manager_of(scheduler: Any) -> AbstractContextManager[None]:
    """Hold the manager where a thread of the host polls the manager too, which is since 0.33."""
    if not hasattr(scheduler, "_manager_locked"):
        return contextlib.nullcontext()
    held: AbstractContextManager[None] = scheduler._manager_locked()
    return held


def _end_fence(scheduler: Any) -> None:
    """Wait for no notice of a flushed job, as 0.33 does: a lost worker sends none, and the others end theirs first."""
    if getattr(scheduler, "_reset_fence", None):
        scheduler._reset_fence.clear()
        with _manager_of(scheduler):
            scheduler.manager.on_reset_flushed()


def _end_jobs(scheduler: Any) -> None:
    """End each job as failed, and forget finished requests: what is left of their KV may be of a failed step."""
    for job in scheduler._jobs.values():
        context = scheduler._req_status[job.req_id].req_context
        if job.is_store:
            scheduler.manager.complete_store(job.keys, context, success=False)
        else:
            scheduler.manager.complete_load(job.keys, context)
    scheduler._stale_job_threshold = scheduler._job_counter  # later notices of these jobs are ignored
    scheduler._jobs.clear()
    scheduler._block_id_to_pending_jobs.clear()
    if scheduler._chunks_being_loaded is not None:
        scheduler._chunks_being_loaded.clear()
    for request_id, state in list(scheduler._req_status.items()):
        if state.req.is_finished():
            if not state.finished_signaled:
                scheduler.manager.on_request_finished(state.req_context)
            del scheduler._req_status[request_id]


def _begin_anew(state: Any) -> None:
    """Let a request's state know no block, and no key of tokens that may have been undone."""
    state.transfer_jobs.clear()
    state.partial_tail_boundary = None
    state.load_key_ranges.clear()
    for group in state.group_states:
        group.block_ids.clear()
        group.offload_keys.clear()
        group.next_stored_chunk_idx = group.num_hit_chunks = 0
        if hasattr(group, "lookup_hit_end_chunk_idx"):
            group.lookup_hit_end_chunk_idx = 0


# ---- files, one folder per prompt


def _of_files(connector: Any, requests: Sequence[Any], memory_lost: bool) -> None:
    """Remove folders that a failed step left unfinished: the connector takes every folder for complete."""
    connector._requests_need_load.clear()
    names = [name for group in connector._kv_cache_config.kv_cache_groups for name in group.layer_names]
    for request in requests:
        folder = _folder_of(connector, request)
        if folder.is_dir() and not all(_is_whole(folder / f"{name}.safetensors") for name in names):
            shutil.rmtree(folder, ignore_errors=True)


def _folder_of(connector: Any, request: Any) -> Path:
    import torch
    from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import align_to_block_size

    tokens = list(request.prompt_token_ids or [])
    aligned = torch.tensor(tokens)[: align_to_block_size(len(tokens), connector._block_size)]
    hashes = [feature.identifier for feature in request.mm_features]
    return Path(connector._generate_foldername_debug(aligned, hashes, create_folder=False))


def _is_whole(file: Path) -> bool:
    """Tell whether a file of tensors is as long as its header says."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_HEADER_BYTES), "little")
            header = json.loads(opened.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return file.stat().st_size == _HEADER_BYTES + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError):
        return False


_KINDS: Mapping[str, Callable[[Any, Sequence[Any], bool], None]] = {
    "OffloadingConnector": _of_offloading,
    "ExampleConnector": _of_files,
    "MultiConnector": _of_several,
}
