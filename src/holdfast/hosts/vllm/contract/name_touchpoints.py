"""What Holdfast compares as text or looks up by name in the host; part of the registry.

Sentences of errors and messages, modules named in strings, environment variables, names of processes and loggers,
flags of the command line, and attributes that are read with a default.
"""

from __future__ import annotations

from holdfast.hosts.vllm.contract.touchpoint import Touchpoint, attributes, call, module, only, text, variables

EXECUTOR_FAILED = "Executor failed."
WORKER_FAILED = "Worker failed with error"
ENCODER_MISS = "Encoder cache miss for "
TOO_LITTLE_FREE = "Free memory on device "
WORKERS_FAILED = "One or more workers failed"
ENGINE_CORE_DEAD = b"ENGINE_CORE_DEAD"

ONE_CACHE = "processor_only"  # kind of the host's cache of processed multimodal inputs
DIRECT_TENSORS, SHARED_TENSORS = "direct_rpc", "torch_shm"  # ways of tensors to an engine core

GRPC_SERVER = "vllm.entrypoints.launchers.grpc_server"
OWN_SCHEDULERS = ("vllm.v1.core.sched.scheduler.Scheduler", "vllm.v1.core.sched.async_scheduler.AsyncScheduler")

# Calls of an engine core, and of the workers by `collective_rpc`, that set state at run time.
ADD_LORA, REMOVE_LORA, PIN_LORA = "add_lora", "remove_lora", "pin_lora"
SLEEP, WAKE_UP, PAUSE, RESUME = "sleep", "wake_up", "pause_scheduler", "resume_scheduler"
PAUSE_AND_REFUSE = "pause_generation"  # a pause during which new requests are answered with an error
COLLECTIVE_RPC, SET_WEIGHT_VERSION, PROFILE = "collective_rpc", "set_weight_version", "profile"
RELOAD_WEIGHTS = "reload_weights"
UPDATE_WEIGHTS = "update_weights"
BEGIN_WEIGHT_TRANSFER, END_WEIGHT_TRANSFER = "init_weight_transfer_engine", "shutdown_weight_transfer_engine"
WEIGHT_TRANSFER = (
    BEGIN_WEIGHT_TRANSFER,
    "start_weight_update",
    "start_draft_weight_update",
    UPDATE_WEIGHTS,
    "finish_weight_update",
    END_WEIGHT_TRANSFER,
)
# Calls of the workers that set nothing.
READING_CALLS = (
    "compute_weight_checksums",
    "get_encoder_timing_stats",
    "get_model_inspection",
    "get_supported_tasks",
    "list_loras",
    "reset_encoder_cache",
    "reset_mm_cache",
    "save_sharded_state",
    "synchronize_device",
)
# Calls at the start of an engine core that measure: a method of the workers, and a function that they are given.
MEASURE_MEMORY, MEASURE_ENCODER = "determine_available_memory", "_measure_on_worker"
INITIALIZE_CACHE, KV_HANDSHAKE = "initialize_from_config", "get_kv_connector_handshake_metadata"
# Calls of an engine core that set state, by their names on the wire.
CALLS_OF_WORKERS = (ADD_LORA, PIN_LORA, SLEEP, WAKE_UP, COLLECTIVE_RPC, PROFILE)
STATE_CALLS = (*CALLS_OF_WORKERS, REMOVE_LORA, SET_WEIGHT_VERSION, PAUSE, PAUSE_AND_REFUSE, RESUME)

_CORE = "vllm.v1.engine.core"
_EXECUTOR = "vllm.v1.executor.multiproc_executor"
_CLASSIFIED = "the fault table knows the error by its message"
_TITLES = "chaos and the demo find processes by their titles"
_IMPORTED_EARLY = "imported before a replacement is needed: a missing module only costs time"
_PLUGINS = "the allow-list of plugins names the groups"
_STARTED = "servers of the demo, the benchmarks and chaos are started with the flag"
_KEPT = "a new process repeats, or must not lose, what the call has set"
_NOT_REPEATED = "measured once, at the start of an engine core; a replacement measures nothing"
_INTRODUCED = "the scheduler's connector learns how a new worker is reached"
_INPUTS = "multimodal inputs are with every request, so that another engine core can take the request"
_SAMPLED = "how many numbers a seeded generator draws per token"

NAME_TOUCHPOINTS: tuple[Touchpoint, ...] = (
    # ---- sentences and messages
    text(_CORE, EXECUTOR_FAILED, "an interrupted busy loop raises exactly this"),
    text(_EXECUTOR, EXECUTOR_FAILED, "a call to workers after the loss of a worker raises exactly this"),
    text("vllm.v1.worker.gpu_model_runner", ENCODER_MISS, "the error goes on with the name of an input"),
    text("vllm.v1.worker.gpu.mm.encoder_runner", ENCODER_MISS, "the same under runner V2"),
    text("vllm.v1.worker.utils", TOO_LITTLE_FREE, "a preloaded standby does not fit beside the worker of its rank"),
    *attributes("vllm.v1.worker.gpu_input_batch", "CachedRequestState", "mm_features", "whose input is missing"),
    *attributes("vllm.v1.worker.gpu.mm.encoder_cache", "EncoderCache", "mm_features", "the same under runner V2"),
    text(_EXECUTOR, WORKER_FAILED, "the engine core repeats a worker's error as text that begins so"),
    only("0.33", text(_EXECUTOR, WORKERS_FAILED, "the same without the worker's error, under the host's own flag")),
    text(_EXECUTOR, "RPC call to ", _CLASSIFIED),
    text(_EXECUTOR, " timed out.", _CLASSIFIED),
    text("vllm.v1.worker.utils", "NaNs detected in logits", _CLASSIFIED),
    text(_CORE, ENGINE_CORE_DEAD.decode(), "the last message of an engine core; the client must not end with it"),
    *attributes(_CORE, "EngineCoreProc", "ENGINE_CORE_DEAD", "the last message of an engine core"),
    text("vllm.v1.engine", "error", "the finish reason of a request that the engine core ended with an error"),
    text("vllm.multimodal.cache.factories", ONE_CACHE, _INPUTS),
    text("vllm.config.multimodal", DIRECT_TENSORS, _INPUTS),
    text("vllm.config.multimodal", SHARED_TENSORS, _INPUTS),
    # ---- calls at the start
    call("vllm.v1.worker.gpu_worker", f"Worker.{MEASURE_MEMORY}", (), _NOT_REPEATED),
    call("vllm.distributed.ec_transfer.ec_connector.encoder_output_width", MEASURE_ENCODER, ("worker",), _NOT_REPEATED),
    call("vllm.v1.worker.gpu_worker", f"Worker.{KV_HANDSHAKE}", (), _INTRODUCED),
    call("vllm.v1.core.sched.scheduler", "Scheduler.get_kv_connector", (), _INTRODUCED),
    call(
        "vllm.distributed.kv_transfer.kv_connector.v1.base",
        "KVConnectorBase_V1.set_xfer_handshake_metadata_pp_aware",
        None,
        _INTRODUCED,
    ),
    # ---- calls that set state at run time
    call(_CORE, "EngineCore.add_lora", ("lora_request",), _KEPT),
    call(_CORE, "EngineCore.remove_lora", ("lora_id",), _KEPT),
    call(_CORE, "EngineCore.pin_lora", ("lora_id",), _KEPT),
    call(_CORE, "EngineCore.sleep", ("level",), _KEPT),
    call(_CORE, "EngineCore.wake_up", ("tags",), _KEPT),
    call(_CORE, "EngineCore.collective_rpc", ("method", "timeout", "args", "kwargs"), _KEPT),
    call(_CORE, "EngineCore.set_weight_version", ("weight_version",), _KEPT),
    call(_CORE, "EngineCoreProc.pause_scheduler", ("mode", "clear_cache"), _KEPT),
    only("0.33", call(_CORE, f"EngineCoreProc.{PAUSE_AND_REFUSE}", ("mode", "clear_cache"), _KEPT)),
    call(_CORE, "EngineCore.resume_scheduler", (), _KEPT),
    call(_CORE, "EngineCore.profile", ("is_start", "profile_prefix"), _KEPT),
    call(_CORE, "EngineCoreProc._convert_msgspec_args", ("method", "args"), _KEPT),
    call("vllm.v1.worker.gpu_worker", "Worker.reload_weights", None, _KEPT),
    *(call("vllm.v1.worker.gpu_worker", f"Worker.{name}", None, _KEPT) for name in WEIGHT_TRANSFER),
    *attributes("vllm.lora.request", "LoRARequest", "lora_int_id", _KEPT),
    call("vllm.exceptions", "VLLMValidationError.__init__", ("message",), "a bad request is answered with status 400"),
    # ---- titles of processes, names of loggers
    call("vllm.utils.system_utils", "set_process_title", ("name", "suffix", "prefix"), _TITLES),
    *variables("VLLM_PROCESS_NAME_PREFIX", _TITLES),
    text(_EXECUTOR, "Worker", _TITLES),
    text(_CORE, "EngineCore", _TITLES),
    text("vllm.v1.engine.coordinator", "DPCoordinator", _TITLES),
    text("vllm.v1.engine.coordinator", "VLLM_DP_Coordinator", "a replaced coordinator has the same name"),
    text("vllm.v1.utils", "APIServer", _TITLES),
    text("vllm.logger", "vllm", "Holdfast's log goes where the log of the host goes"),
    # ---- environment variables
    *variables("VLLM_PLUGINS", "the host loads Holdfast only where the allow-list names it"),
    *variables("VLLM_WORKER_MULTIPROC_METHOD", "over several nodes no process that hears agents may fork"),
    *variables("VLLM_RPC_BASE_PATH", "sockets of the host lie in the folder of the instance"),
    *variables("VLLM_MQ_MAX_CHUNK_BYTES_MB", "a new queue to the workers is as large as the first"),
    *variables("VLLM_USE_RUST_FRONTEND VLLM_RUST_FRONTEND_PATH", "the Rust front end loads no plugins: refused"),
    *variables("VLLM_USE_NCCL_SYMM_MEM", "memory registered with old communicators limits a rebuild"),
    *variables("VLLM_API_KEY", "an inference key is never the control token"),
    *variables("VLLM_ENABLE_V1_MULTIPROCESSING VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "`holdfast doctor` warns of them"),
    *variables("VLLM_CPU_OMP_THREADS_BIND VLLM_CPU_KVCACHE_SPACE VLLM_NO_USAGE_STATS", "servers on small machines"),
    *variables("VLLM_LOGGING_LEVEL", "`holdfast doctor` imports the host silently"),
    # ---- modules
    module(GRPC_SERVER, "a gRPC server is refused: it has no endpoints for commands"),
    module("vllm.entrypoints.openai.api_server", "the plain host that benchmarks compare with"),
    module("vllm.distributed.elastic_ep.elastic_execute", _IMPORTED_EARLY),
    module("vllm.model_executor.layers.quantization.online.base", _IMPORTED_EARLY),
    module("vllm.utils.cpu_triton_utils", _IMPORTED_EARLY),
    module("vllm.tokenizers", _IMPORTED_EARLY),
    call(_CORE, "EngineCoreProc.run_engine_core", None, "a standby engine core becomes an engine core"),
    module("vllm.v1.attention.backends.cpu_attn", _IMPORTED_EARLY),
    module("vllm.distributed.parallel_state", "frames of collectives are known by the file; live coordinators"),
    Touchpoint("vllm.distributed.parallel_state", "_groups", "name", None, "the live coordinators of a process"),
    Touchpoint("torch.distributed.distributed_c10d", "_world", "name", None, "which groups torch keeps"),
    text("vllm.plugins", "vllm.general_plugins", _PLUGINS),
    text("vllm.plugins", "vllm.io_processor_plugins", _PLUGINS),
    text("vllm.plugins", "vllm.platform_plugins", _PLUGINS),
    text("vllm.plugins", "vllm.stat_logger_plugins", _PLUGINS),
    text("vllm.plugins", "vllm.endpoint_plugins", _PLUGINS),
    # ---- flags
    *attributes("vllm.config", "VllmConfig", "additional_config", "Holdfast's settings under the host's command"),
    *attributes("vllm.engine.arg_utils", "EngineArgs", "additional_config enforce_eager dtype", _STARTED),
    *attributes("vllm.engine.arg_utils", "EngineArgs", "model served_model_name", _STARTED),
    # ---- attributes that are read with a default, and classes known by name
    Touchpoint("vllm.distributed.stateless_coordinator", "StatelessGroupCoordinator", "class", None, "limits"),
    *attributes("vllm.distributed.device_communicators.custom_all_reduce", "CustomAllreduce", "disabled", "limits"),
    *attributes("vllm.config", "CompilationConfig", "cudagraph_mode", "limits of a rebuild"),
    *attributes("vllm.v1.core.sched.output", "NewRequestData", "prefill_token_ids req_id", "salvage"),
    *attributes(
        "vllm.v1.core.sched.output", "CachedRequestData", "req_ids num_output_tokens num_computed_tokens", "salvage"
    ),
    *attributes("vllm.v1.core.sched.output", "SchedulerOutput", "scheduled_new_reqs scheduled_cached_reqs", "salvage"),
    *attributes("vllm.v1.request", "Request", "_block_hasher", "block hashes of tokens that are taken back"),
    *attributes("vllm.v1.structured_output.request", "StructuredOutputRequest", "grammar", "salvage"),
    *attributes(
        "vllm.v1.structured_output.backend_xgrammar", "XgrammarGrammar", "num_processed_tokens rollback", "salvage"
    ),
    *attributes("vllm.v1.sample.ops.topk_topp_sampler", "TopKTopPSampler", "use_fp64_gumbel forward", _SAMPLED),
    *attributes("vllm.v1.sample.sampler", "Sampler", "topk_topp_sampler", _SAMPLED),
)
