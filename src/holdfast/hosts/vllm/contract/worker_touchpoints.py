"""Touchpoints for starting, watching and replacing worker processes; part of the registry."""

from __future__ import annotations

from holdfast.hosts.vllm.contract.touchpoint import Touchpoint, attributes, call, text, wrap

_EXECUTOR = "vllm.v1.executor.multiproc_executor"
_QUEUE = "vllm.distributed.device_communicators.shm_broadcast"
_ADOPTED = "an engine core takes over the workers of a dead one"

CANCELLED = "cancelled"

_RUNNER_V1, _FINISHES = "vllm.v1.worker.gpu_model_runner", "a failed rank runs the rest of its step for its peers"
_UNSHOWN = "steps are not finished where it was never shown to be exact"

INIT_GROUPS = wrap(
    "torch.distributed",
    "init_process_group",
    ("backend", "init_method"),
    "a replacement worker starts without its peers",
)
SAME_NODE = wrap(
    "vllm.distributed.parallel_state", "in_the_same_node_as", ("pg",), "a replacement worker starts without its peers"
)
BROADCAST_QUEUE = wrap(
    _QUEUE, "MessageQueue.create_from_process_group", ("pg",), "a replacement worker starts without a shared queue"
)
WORKER_INIT = wrap(
    _EXECUTOR,
    "WorkerProc.__init__",
    ("vllm_config", "local_rank", "rank"),
    "a preloaded standby that does not fit on the device says so",
)
FILE_STORE = wrap(
    _EXECUTOR,
    "get_file_store_init_method",
    (),
    "killed workers leave the rendezvous file: it is put into the instance's folder",
)
SOCKET_PATH = wrap(
    _QUEUE, "get_open_zmq_ipc_path", (), "a full disk must not prevent a repair: the path is in a folder with room"
)
RING_BUFFER = wrap(
    _QUEUE,
    "ShmRingBuffer.__init__",
    ("n_reader", "max_chunk_bytes", "max_chunks", "name"),
    "the shared memory of a killed process stays until a recorded name is used to remove it",
)
LOAD_ADAPTER = wrap(
    "vllm.lora.worker_manager",
    "WorkerLoRAManager._load_adapter",
    ("lora_request",),
    "a step that cannot load an adapter names the adapter",
)

DEATH_PIPE = wrap(
    _EXECUTOR,
    "WorkerProc.monitor_death_pipe",
    ("death_pipe", "shutdown_requested"),
    "a worker outlives a killed engine core, and is adopted by the next",
)
WORKER_LOOP = wrap(_EXECUTOR, "WorkerProc.worker_busy_loop", (), "a worker outlives a killed engine core")

# Attached only in replacement workers; a contract test checks these like all touchpoints.
WORKER_TOUCHPOINTS: tuple[Touchpoint, ...] = (
    INIT_GROUPS,
    SAME_NODE,
    BROADCAST_QUEUE,
    WORKER_INIT,
    FILE_STORE,
    SOCKET_PATH,
    RING_BUFFER,
    LOAD_ADAPTER,
    call(_RUNNER_V1, "GPUModelRunner._dummy_run", ("num_tokens",), _FINISHES),
    *attributes(
        _RUNNER_V1,
        "GPUModelRunner",
        "is_pooling_model supports_mm_inputs enable_prompt_embeds kv_cache_config",
        _UNSHOWN,
    ),
    *attributes("vllm.v1.worker.gpu_worker", "Worker", "use_v2_model_runner", _UNSHOWN),
    *attributes("vllm.v1.core.sched.output", "SchedulerOutput", "scheduled_encoder_inputs", _UNSHOWN),
    *attributes("vllm.v1.kv_cache_interface", "KVCacheConfig", "kv_cache_groups", _UNSHOWN),
    *attributes("vllm.v1.kv_cache_interface", "KVCacheGroupSpec", "kv_cache_spec", _UNSHOWN),
    *attributes(
        "vllm.config",
        "VllmConfig",
        "parallel_config speculative_config lora_config kv_transfer_config ec_transfer_config",
        _UNSHOWN,
    ),
    *attributes(
        "vllm.config.parallel",
        "ParallelConfig",
        "pipeline_parallel_size",
        _UNSHOWN,
    ),
    DEATH_PIPE,
    WORKER_LOOP,
    *attributes(_QUEUE, "ShmRingBuffer", "is_creator shared_memory", "what a process has made"),
    *attributes("vllm.distributed.parallel_state", "GroupCoordinator", "mq_broadcaster", "gone after a rebuild"),
    call("vllm.v1.sample.ops.logprobs", "batched_count_greater_than", ("x", "values"), "compiled beforehand"),
    call(
        "vllm.model_executor.layers.vocab_parallel_embedding",
        "get_masked_input_and_mask",
        ("input_", "org_vocab_start_index"),
        "compiled beforehand",
    ),
    call(_EXECUTOR, "WorkerProc.worker_main", None, "what the process of a worker runs"),
    call(_EXECUTOR, "WorkerProc.wait_for_ready", ("unready_proc_handles",), "attaching to a replacement worker"),
    call(_EXECUTOR, "MultiprocExecutor._init_executor", (), "the configuration that workers were started with"),
    call(_EXECUTOR, "MultiprocExecutor.start_worker_monitor", ("inline",), "a dead worker does not end its siblings"),
    call(_EXECUTOR, "MultiprocExecutor._get_parallel_sizes", (), "which ranks are on this node"),
    call(_EXECUTOR, "set_multiprocessing_worker_envs", ("local_world_size",), "a node that waits for its ranks"),
    *attributes("vllm.config.parallel", "ParallelConfig", "local_world_size nnodes_within_dp", "ranks of each node"),
    *attributes(
        "vllm.config.parallel", "ParallelConfig", "node_rank_within_dp node_rank master_addr", "an agent's own place"
    ),
    Touchpoint(_EXECUTOR, "WorkerProcHandle", "class", None, "a worker of a further node, as the host has its own"),
    call(_EXECUTOR, "MultiprocExecutor._is_driver_worker", ("rank",), "starting a replacement worker"),
    call(
        "vllm.v1.worker.worker_base",
        "WorkerWrapperBase.initialize_from_config",
        ("kv_cache_configs",),
        "a replacement's cache",
    ),
    Touchpoint(_EXECUTOR, "UnreadyWorkerProcHandle", "class", None, "starting a replacement worker"),
    *attributes(_EXECUTOR, "MultiprocExecutor", "workers shutting_down", "whose process is gone"),
    *attributes(
        "vllm.config.parallel", "ParallelConfig", "_coord_store_port", "a replacement worker has no peers there"
    ),
    Touchpoint(_EXECUTOR, "OMPProcessManager", "class", None, "starting a replacement worker"),
    call(_QUEUE, "MessageQueue.create_from_handle", ("handle", "rank"), "survivors read from a new queue"),
    call(_QUEUE, "MessageQueue.wait_until_ready", (), "survivors read from a new queue"),
    call(_QUEUE, "MessageQueue.export_handle", (), "survivors read from a new queue"),
    Touchpoint(_QUEUE, "Handle", "class", None, "survivors read from a new queue"),
    *attributes(_QUEUE, "MessageQueue", "local_socket", "a bounded wait for its readers"),
    *attributes(_QUEUE, "MessageQueue", "remote_socket buffer shutting_down handle", "giving a queue's files back"),
    *attributes(_QUEUE, "MessageQueue", "current_idx local_reader_rank", "calls that a dead engine core has left"),
    call(_QUEUE, "ShmRingBuffer.get_metadata", ("current_idx",), "calls that a dead engine core has left"),
    call(_EXECUTOR, "WorkerProc._execute_worker_rpc", ("rpc_request",), _ADOPTED),
    call(_EXECUTOR, "MultiprocExecutor._get_output_rank", (), _ADOPTED),
    call(_EXECUTOR, "MultiprocExecutor._post_init_executor", (), _ADOPTED),
    call("vllm.utils.torch_utils", "set_torch_threads_for_runtime", (), _ADOPTED),
    call("vllm.config", "VllmConfig.compute_hash", (), "a worker is adopted under its own configuration only"),
    *attributes(_EXECUTOR, "WorkerProc", "worker_response_mq rpc_broadcast_mq async_output_queue", _ADOPTED),
    text(_QUEUE, CANCELLED, "a reader that is woken by the death of an engine core raises exactly this"),
)
