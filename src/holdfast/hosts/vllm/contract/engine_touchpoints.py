"""Where Holdfast reaches into the host's engine core, scheduler and model runners: part of the registry."""

from __future__ import annotations

from holdfast.hosts.vllm.contract.touchpoint import Touchpoint, attributes, call, only, wrap

_CORE = "vllm.v1.engine.core"
_EXECUTOR = "vllm.v1.executor.multiproc_executor"
_SCHEDULER = "vllm.v1.core.sched.scheduler"
_KV = "vllm.v1.core.kv_cache_manager"
_KV_TYPES = "vllm.v1.core.single_type_kv_cache_manager"
_POOL = "vllm.v1.core.block_pool"
_REQUEST = "vllm.v1.request"
_RUNNER_V1 = "vllm.v1.worker.gpu_model_runner"
_BATCH_V1 = "vllm.v1.worker.gpu_input_batch"
_RUNNER_V2 = "vllm.v1.worker.gpu.model_runner"

_ENCODER_CACHE = "vllm.v1.core.encoder_cache_manager"

_ENCODED = "no output of the encoder counts as computed after a rewind"
_STRIPPED = "a rank is spared pictures that the prefix cache covers, and may need them after a rewind"
_COMPARED = "a second request, with which the only present request can be compared"
_EXPERTS = "vllm.distributed.eplb.eplb_state"
_EQUAL = "state that every rank holds for itself is made equal on all ranks"
_SESSIONS = "a streaming session is parked between two turns, and what it keeps is the count of computed tokens"
_READY = "whether the scheduler rightly plans no step"
_PAUSES = "a pause of the host waits for rewound requests, and takes their KV"
_LOOKED_AT = "flags of a step's logits are looked at once its tokens are there"

ENGINE_INIT = wrap(
    _CORE,
    "EngineCoreProc.__init__",
    ("vllm_config", "local_client"),
    "the EngineCoreSentinel must listen before the workers start",
)
BUSY_LOOP = wrap(_CORE, "EngineCoreProc.run_busy_loop", (), "faults of a step surface here")
LOCKSTEP_BUSY_LOOP = wrap(
    _CORE, "DPEngineCoreProc.run_busy_loop", (), "faults of a step surface here, in a lockstep group of engine cores"
)
WORKER_QUEUES = wrap(
    _EXECUTOR,
    "WorkerProc._init_message_queues",
    ("input_shm_handle", "vllm_config"),
    "the last step of a worker's start: the model is loaded, no step has run",
)

MAKE_REQUEST = wrap(
    _CORE,
    "EngineCore.preprocess_add_request",
    ("request",),
    "a request that another engine core began brings its history",
)
ADD_TO_SCHEDULER = wrap(
    _CORE,
    "EngineCore.add_request",
    ("request", "request_wave"),
    "workers must know such a request before it is scheduled",
)

REFUSE_WHILE_PAUSED = only(
    "0.33",
    wrap(
        _CORE,
        "EngineCoreProc._reject_add_while_paused",
        ("request",),
        "a request that is sent again waits for the resume: its client has been answered in part",
    ),
)

FAILED_STEP = wrap(
    _CORE,
    "EngineCore.log_error_detail",
    ("scheduler_output",),
    "the host writes its configuration and the failed step into the log, which takes 7 to 15 ms of each repair",
)

ENGINE_TOUCHPOINTS: tuple[Touchpoint, ...] = (
    ENGINE_INIT,
    BUSY_LOOP,
    LOCKSTEP_BUSY_LOOP,
    FAILED_STEP,
    WORKER_QUEUES,
    MAKE_REQUEST,
    ADD_TO_SCHEDULER,
    REFUSE_WHILE_PAUSED,
    *attributes(
        _CORE,
        "DPEngineCoreProc",
        "dp_group current_wave engines_running pending_pause ignore_start_dp_wave step_counter dp_sync_interval",
        "engine cores in lockstep resume at one step of one wave",
    ),
    call(_CORE, "DPEngineCoreProc._has_global_unfinished_reqs", ("local_unfinished",), "injection before agreeing"),
    call(
        _EXECUTOR,
        "MultiprocExecutor.collective_rpc",
        ("method", "timeout", "args", "kwargs"),
        "telling workers of a request; the calls that make the first workers ready make a replacement ready",
    ),
    call(_REQUEST, "Request.append_output_token_ids", ("token_ids",), "resuming"),
    call(_REQUEST, "Request.take_prefill_stats", (), "resuming"),
    call(
        "vllm.v1.structured_output",
        "StructuredOutputManager.accept_tokens",
        ("request", "new_token_ids"),
        "the grammar of a resumed request stands where its history ends",
    ),
    call(_SCHEDULER, "Scheduler.add_request", ("request",), _COMPARED),
    Touchpoint("vllm.v1.engine", "EngineCoreRequest", "class", None, _COMPARED),
    Touchpoint("vllm.sampling_params", "SamplingParams", "class", None, _COMPARED),
    *attributes("vllm.v1.structured_output.request", "StructuredOutputRequest", "_grammar", "resuming"),
    *attributes(_CORE, "EngineCore", "structured_output_manager", "resuming"),
    call(
        _CORE,
        "EngineCoreProc.process_input_sockets",
        ("input_addresses", "coord_input_address", "identity", "ready_event"),
        "reporting ready once more to a client",
        "input_socket",
        "ready_payload",
    ),
    *attributes(_CORE, "EngineCoreProc", "ft_sentinel", "where a client's greeting arrives"),
    *attributes("vllm.v1.engine", "EngineCoreRequestType", "ABORT", "dropping the requests of a dead API server"),
    *attributes(_CORE, "EngineCoreProc", "has_coordinator last_counts", "telling a new coordinator of the load"),
    call(_SCHEDULER, "Scheduler.has_unfinished_requests", (), "telling a new coordinator the wave that runs"),
    *attributes(_CORE, "EngineCoreProc", "input_queue", "interrupting an idle busy loop"),
    *attributes("vllm.v1.engine", "EngineCoreRequestType", "EXECUTOR_FAILED", "interrupting an idle busy loop"),
    *attributes("vllm.config.model", "ModelConfig", "enforce_eager", "whether a step on a CPU may compile"),
    Touchpoint("vllm.third_party.pynvml", "nvmlInit", "call", None, "the devices' health, where no bindings are"),
    Touchpoint(_EXECUTOR, "MultiprocExecutor", "class", None, "its subclass drains stale replies"),
    call(_EXECUTOR, "WorkerProc.enqueue_output", ("output",), "asynchronous outputs raise here"),
    *attributes(_EXECUTOR, "MultiprocExecutor", "rpc_broadcast_mq response_mqs futures_queue is_failed", "draining"),
    *attributes("vllm.v1.worker.gpu_worker", "Worker", "_pp_send_work", "sends without a receiver after a fault"),
    *attributes(_EXECUTOR, "WorkerProc", "worker rank use_async_scheduling", "guarding steps"),
    call("vllm.distributed.device_communicators.shm_broadcast", "MessageQueue.enqueue", ("obj", "timeout"), "draining"),
    call("vllm.distributed.device_communicators.shm_broadcast", "MessageQueue.dequeue", ("timeout",), "draining"),
    *attributes(
        "vllm.v1.core.sched.output",
        "SchedulerOutput",
        "total_num_scheduled_tokens num_scheduled_tokens scheduled_spec_decode_tokens",
        "how much work a step is, and what a salvage finds",
    ),
    call("vllm.v1.worker.worker_base", "WorkerWrapperBase.execute_model", ("scheduler_output",), "guarding steps"),
    *attributes(
        _CORE,
        "EngineCoreProc",
        "output_queue batch_queue batch_queue_size scheduler model_executor engine_index shutdown_state",
        "rewinding and salvaging",
    ),
    call(_CORE, "EngineCoreProc.is_running", (), "an orderly shutdown ends a pause"),
    call(_CORE, "EngineCoreProc._send_error_outputs_to_client", ("req_ids", "client_index"), "failing one request"),
    call(_CORE, "EngineCore._attach_iteration_details", ("outputs",), "injection and progress after outputs"),
    call(_CORE, "EngineCore.step", (), "salvage", "engine_core_outputs"),
    call(_CORE, "EngineCore.step_with_batch_queue", (), "salvage", "engine_core_outputs"),
    call(_SCHEDULER, "Scheduler.schedule", (), "injection around scheduling, and the progress of it"),
    call(
        _SCHEDULER,
        "Scheduler.update_from_output",
        ("scheduler_output", "model_runner_output"),
        "salvage",
        "outputs",
        "request",
        "new_token_ids",
        "new_logprobs",
        "output_is_stale",
        "generated_token_ids",
        "num_rejected",
        "finish_reason",
    ),
    call(_CORE, "EngineCoreProc._handle_client_request", ("request_type", "request"), "an input that raised"),
    call(_CORE, "DPEngineCoreProc._handle_client_request", ("request_type", "request"), "the same, in lockstep"),
    *attributes("vllm.v1.engine", "EngineCoreRequestType", "ADD", "an input that raised"),
    call(_SCHEDULER, "Scheduler._update_request_with_output", ("request", "new_token_ids"), "injection"),
    call(_SCHEDULER, "Scheduler._preempt_request", ("request", "timestamp"), "releasing a request's blocks"),
    call(_SCHEDULER, "Scheduler.finish_requests", ("request_ids", "finished_status"), "failing one request"),
    call(_SCHEDULER, "Scheduler._handle_blocked_waiting_request", ("request",), "who waits is not scheduled"),
    call(_SCHEDULER, "Scheduler._update_request_as_session", ("session", "update"), _SESSIONS),
    call(_SCHEDULER, "Scheduler._enqueue_waiting_request", ("request",), _SESSIONS),
    call(_SCHEDULER, "Scheduler._handle_stopped_request", ("request",), _SESSIONS),
    *attributes(_REQUEST, "Request", "streaming_queue", _SESSIONS),
    *attributes(_SCHEDULER, "Scheduler", "num_waiting_for_streaming_input", _SESSIONS),
    call(_SCHEDULER, "Scheduler.set_pause_state", ("pause_state",), _PAUSES),
    call(_SCHEDULER, "Scheduler._holds_kv_blocks", ("request",), _PAUSES),
    call(_SCHEDULER, "Scheduler._free_request_blocks", ("request",), "who leaves with a step in flight"),
    call(_KV, "KVCacheManager.get_block_ids", ("request_id",), "who leaves with a step in flight"),
    call(_SCHEDULER, "Scheduler._drain_deferred_frees", (), "deferred blocks return before a rewind"),
    *attributes(
        _SCHEDULER,
        "Scheduler",
        "running waiting kv_holding_waiting requests kv_cache_manager encoder_cache_manager connector "
        "ec_connector prev_step_scheduled_req_ids max_num_scheduled_tokens use_v2_model_runner defer_block_free "
        "sched_step_seq processed_step_seq current_step _inflight_prefills deferred_waiting num_spec_tokens "
        "scheduler_config aux_output_connector reset_preempted_req_ids finished_recving_kv_req_ids "
        "failed_recving_kv_req_ids",
        "rewinding",
    ),
    *attributes(
        _SCHEDULER,
        "Scheduler",
        "policy scheduler_reserve_full_isl num_lookahead_tokens max_model_len",
        "a rewind plans with the host's rule of admission, in the order of its queues",
    ),
    *attributes(_SCHEDULER, "Scheduler", "deferred_frees pause_state", _READY),
    Touchpoint("vllm.v1.core.sched.interface", "PauseState", "class", None, _READY),
    *attributes("vllm.v1.executor.abstract", "Executor", "is_sleeping", _READY),
    Touchpoint("vllm.v1.core.sched.request_queue", "SchedulingPolicy", "class", None, "the order of the queues"),
    call(_KV, "KVCacheManager.free", ("request",), "releasing a request's blocks"),
    call(_KV, "KVCacheManager.evict_blocks", ("block_ids",), "suspect KV leaves the prefix cache"),
    *attributes(_KV, "KVCacheManager", "coordinator block_pool", "rewinding"),
    *attributes(_KV_TYPES, "SingleTypeKVCacheManager", "req_to_blocks num_cached_block block_size", "trimming blocks"),
    Touchpoint(_KV_TYPES, "FullAttentionManager", "class", None, "the one cache kind that is rewound in place"),
    call(_POOL, "BlockPool.free_blocks", ("ordered_blocks",), "trimming blocks"),
    call(_POOL, "BlockPool.get_num_free_blocks", (), "what fits after a rewind"),
    *attributes(_POOL, "BlockPool", "blocks hash_block_size", "which suspect blocks are cached"),
    *attributes(
        _REQUEST,
        "Request",
        "num_computed_tokens num_in_flight_tokens num_output_placeholders num_stale_output_tokens drop_stale_output "
        "spec_token_ids next_decode_eligible_step is_prefill_chunk num_preemptions block_hashes _output_token_ids "
        "_all_token_ids status stop_reason client_index structured_output_request sampling_params pooling_params "
        "resumable mm_features",
        "rewinding",
    ),
    *attributes(_REQUEST, "Request", "lora_request prompt_embeds prompt_is_token_ids", "the history of a request"),
    call(_ENCODER_CACHE, "EncoderCacheManager.reset", (), _ENCODED),
    call(_ENCODER_CACHE, "EncoderDecoderCacheManager.reset", (), _ENCODED),
    *attributes("vllm.multimodal.inputs", "MultiModalFeatureSpec", "data mm_position", _ENCODED),
    *attributes("vllm.multimodal.inputs", "PlaceholderRange", "offset length", _ENCODED),
    *attributes("vllm.multimodal.inputs", "MultiModalFieldElem", "field", _STRIPPED),
    *attributes("vllm.multimodal.inputs", "BaseMultiModalField", "keep_on_cpu", _STRIPPED),
    call(
        "vllm.multimodal.utils",
        "strip_covered_mm_data",
        ("mm_features", "num_computed_tokens", "uses_mrope"),
        _STRIPPED,
    ),
    *attributes("vllm.v1.core.kv_cache_utils", "KVCacheBlock", "block_hash", "which suspect blocks are cached"),
    Touchpoint(_REQUEST, "RequestStatus", "class", None, "rewinding"),
    *attributes(
        _RUNNER_V1,
        "GPUModelRunner",
        "requests input_batch num_prompt_logprobs execute_model_state mamba_state_idx kv_connector_output "
        "encoder_cache uses_mrope",
        "restoring runner V1",
    ),
    call(_RUNNER_V1, "GPUModelRunner._init_mrope_positions", ("req_state",), "restoring runner V1"),
    call(_BATCH_V1, "InputBatch.remove_request", ("req_id",), "restoring runner V1"),
    call(_BATCH_V1, "InputBatch.condense", (), "restoring runner V1"),
    call(_BATCH_V1, "InputBatch.refresh_metadata", (), "restoring runner V1"),
    *attributes(
        _BATCH_V1,
        "InputBatch",
        "req_id_to_index prev_sampled_token_ids prev_req_id_to_index sampled_token_ids_cpu async_copy_ready_event",
        "restoring runner V1",
    ),
    call(
        "vllm.v1.sample.ops.topk_topp_sampler",
        "TopKTopPSampler.forward_cpu",
        ("logits", "generators"),
        "one draw of each generator per token",
    ),
    *attributes(_RUNNER_V2, "GPUModelRunner", "req_states execute_model_state encoder_cache", "restoring runner V2"),
    call("vllm.v1.worker.gpu.mm.encoder_cache", "EncoderCache.reset_encoder_cache", (), "restoring runner V2"),
    call(_RUNNER_V2, "GPUModelRunner._remove_request", ("req_id",), "restoring runner V2"),
    call("vllm.utils.torch_utils", "set_random_seed", ("seed",), _EQUAL),
    *attributes("vllm.v1.worker.gpu.states", "RequestState", "free_indices max_num_reqs", _EQUAL),
    *attributes(_RUNNER_V1, "GPUModelRunner", "eplb_state", _EQUAL),
    *attributes(_RUNNER_V2, "GPUModelRunner", "eplb_state", _EQUAL),
    *attributes(_EXPERTS, "EplbState", "model_states expert_rearrangement_step", _EQUAL),
    *attributes(_EXPERTS, "EplbModelState", "physical_to_logical_map", _EQUAL),
    call(
        "vllm.model_executor.models.interfaces_base",
        "VllmModelForTextGeneration.compute_logits",
        ("hidden_states",),
        "logits are looked at, or spoiled, where they are computed",
    ),
    call(_RUNNER_V2, "GPUModelRunner.sample_tokens", ("grammar_output",), _LOOKED_AT),
    call("vllm.v1.outputs", "AsyncModelRunnerOutput.get_output", (), _LOOKED_AT),
    *attributes(_RUNNER_V2, "GPUModelRunner", "model", "logits are computed by it"),
    *attributes("vllm.v1.outputs", "ModelRunnerOutput", "req_ids", "which row of logits is whose"),
)
