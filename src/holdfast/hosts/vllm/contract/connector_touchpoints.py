"""Touchpoints for retries with KV connectors and caches of several kinds; part of the registry."""

from __future__ import annotations

from holdfast.hosts.vllm.contract.touchpoint import Touchpoint, attributes, call, only

_SCHEDULER = "vllm.v1.core.sched.scheduler"
_KV = "vllm.v1.core.kv_cache_manager"
_CONNECTORS = "vllm.distributed.kv_transfer.kv_connector.v1"
_JOBS = f"{_CONNECTORS}.offloading.scheduler"
_COPIES = f"{_CONNECTORS}.offloading.worker"
_FILES = f"{_CONNECTORS}.example_connector"
_RUNNER_V2 = "vllm.v1.worker.gpu.kv_connector"
_SHARED = "memory that processes share cannot be joined by a new worker"
_TAKEN_BACK = "the jobs of a failed step are taken back"

CONNECTOR_TOUCHPOINTS: tuple[Touchpoint, ...] = (
    Touchpoint(
        "vllm.distributed.ec_transfer.ec_connector.example_connector",
        "ECExampleConnector",
        "class",
        None,
        "its only state is what the next step loads",
    ),
    call(_SCHEDULER, "Scheduler._free_blocks", ("request",), "finished requests that waited for a load"),
    call(_SCHEDULER, "Scheduler._free_cow_retained_blocks", ("blocks", "fence_seq"), "copies that were never sent"),
    call(_KV, "KVCacheManager.take_boundary_state_offloads", (), "hand-offs that were never sent"),
    call(_KV, "KVCacheManager.take_kv_cache_block_copies", (), "copies that were never sent"),
    *attributes("vllm.v1.core.block_pool", "BlockPool", "cached_block_hashes_by_block", "emptying the prefix cache"),
    call(
        "vllm.distributed.aux_output_connector.connector",
        "AuxOutputSchedulerConnector.reset",
        (),
        "routed experts are gathered again with the KV",
    ),
    *attributes(
        _JOBS,
        "OffloadingConnectorScheduler",
        "_jobs _req_status _current_batch_load_jobs _current_batch_allocated_block_ids _current_batch_jobs_to_flush "
        "_stale_job_threshold _job_counter _block_id_to_pending_jobs _chunks_being_loaded manager",
        _TAKEN_BACK,
    ),
    *(
        only("0.33", touchpoint)
        for touchpoint in (
            *attributes(_SCHEDULER, "Scheduler", "deferred_loads", _TAKEN_BACK),
            *attributes(_JOBS, "OffloadingConnectorScheduler", "_current_batch_sync_loads _reset_fence", _TAKEN_BACK),
            *attributes(_JOBS, "RequestGroupState", "lookup_hit_end_chunk_idx", _TAKEN_BACK),
            call(_JOBS, "OffloadingConnectorScheduler._manager_locked", (), "a thread of the host polls the manager"),
            call("vllm.v1.kv_offload.base", "OffloadingManager.on_reset_flushed", (), _TAKEN_BACK),
        )
    ),
    call(_JOBS, "OffloadingConnectorScheduler.reset_cache", (), "the memory of a lost worker held the chunks"),
    *attributes(_JOBS, "TransferJobStatus", "req_id keys is_store", _TAKEN_BACK),
    *attributes(
        _JOBS,
        "RequestOffloadState",
        "req req_context group_states transfer_jobs partial_tail_boundary load_key_ranges finished_signaled",
        _TAKEN_BACK,
    ),
    *attributes(
        _JOBS,
        "RequestGroupState",
        "offload_keys block_ids next_stored_chunk_idx num_hit_chunks",
        _TAKEN_BACK,
    ),
    call(
        "vllm.v1.kv_offload.base",
        "OffloadingManager.complete_store",
        ("keys", "req_context", "success"),
        _TAKEN_BACK,
    ),
    call("vllm.v1.kv_offload.base", "OffloadingManager.complete_load", ("keys", "req_context"), _TAKEN_BACK),
    call("vllm.v1.kv_offload.base", "OffloadingManager.on_request_finished", ("req_context",), _TAKEN_BACK),
    call("vllm.v1.kv_offload.base", "OffloadingWorker.wait", ("job_ids",), "loads end before their blocks are reused"),
    call("vllm.v1.kv_offload.base", "OffloadingWorker.get_finished", (), "notices of a failed step are dropped"),
    *attributes(
        f"{_CONNECTORS}.offloading_connector",
        "OffloadingConnector",
        "connector_scheduler connector_worker _canonical_layout",
        _TAKEN_BACK,
    ),
    *attributes(_JOBS, "OffloadingConnectorScheduler", "config", _SHARED),
    *attributes(_JOBS, "SchedulerOffloadConfig", "num_workers", _SHARED),
    Touchpoint("vllm.v1.kv_offload.tiering.manager", "TieringOffloadingManager", "class", None, _SHARED),
    *attributes("vllm.config.model", "ModelConfig", "use_mla", _SHARED),
    *attributes(_COPIES, "OffloadingConnectorWorker", "worker _unsubmitted_store_jobs _load_jobs", _TAKEN_BACK),
    call(_COPIES, "OffloadingConnectorWorker.build_connector_worker_meta", (), "notices of a failed step are dropped"),
    *attributes(
        f"{_CONNECTORS}.multi_connector",
        "MultiConnector",
        "_connectors _requests_to_connector _extra_async_saves",
        _TAKEN_BACK,
    ),
    *attributes(_FILES, "ExampleConnector", "_requests_need_load _block_size", _TAKEN_BACK),
    call(
        _FILES,
        "ExampleConnector._generate_foldername_debug",
        ("token_ids", "mm_hashes", "create_folder"),
        "a folder that a failed step left unfinished",
    ),
    call(_FILES, "align_to_block_size", ("num_tokens", "block_size"), "a folder that a failed step left unfinished"),
    *attributes(f"{_CONNECTORS}.base", "KVConnectorBase_V1", "_kv_cache_config _vllm_config", "what a connector keeps"),
    call(f"{_CONNECTORS}.base", "KVConnectorBase_V1.clear_connector_metadata", (), "the metadata of a failed step"),
    call("vllm.distributed.kv_transfer.kv_transfer_state", "has_kv_transfer_group", (), "the connector of a rank"),
    call("vllm.distributed.kv_transfer.kv_transfer_state", "get_kv_transfer_group", (), "the connector of a rank"),
    *attributes(_RUNNER_V2, "ActiveKVConnector", "_pending_load_kwargs", "the load of a failed step"),
    call(_RUNNER_V2, "ActiveKVConnector.set_disabled", ("disabled",), "a failed dummy step leaves it switched off"),
    *attributes("vllm.v1.worker.gpu.model_runner", "GPUModelRunner", "kv_connector", "the connector of runner V2"),
)
