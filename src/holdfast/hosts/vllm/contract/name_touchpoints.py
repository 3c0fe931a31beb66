"""What Holdfast compares as text or looks up by name in the host; part of the registry.

Sentences of errors and messages, modules named in strings, environment variables, names of processes and loggers,
flags of the command line, and attributes that are read with a default.
"""

from __future__ import annotations

from holdfast.hosts.vllm.contract.touchpoint import Touchpoint, attributes, call, module, text, variables

EXECUTOR_FAILED = "Executor failed."
WORKER_FAILED = "Worker failed with error"
ENGINE_CORE_DEAD = b"ENGINE_CORE_DEAD"

_CORE = "vllm.v1.engine.core"
_EXECUTOR = "vllm.v1.executor.multiproc_executor"
_CLASSIFIED = "the fault table knows the error by its message"
_TITLES = "chaos and the demo find processes by their titles"
_IMPORTED_EARLY = "imported before a replacement is needed: a missing module only costs time"
_PLUGINS = "the allow-list of plugins names the groups"
_STARTED = "servers of the demo, the benchmarks and chaos are started with the flag"
_SAMPLED = "how many numbers a seeded generator draws per token"

NAME_TOUCHPOINTS: tuple[Touchpoint, ...] = (
    # ---- sentences and messages
    text(_CORE, EXECUTOR_FAILED, "an interrupted busy loop raises exactly this"),
    text(_EXECUTOR, EXECUTOR_FAILED, "a call to workers after the loss of a worker raises exactly this"),
    text(_EXECUTOR, WORKER_FAILED, "the engine core repeats a worker's error as text that begins so"),
    text(_EXECUTOR, "RPC call to ", _CLASSIFIED),
    text(_EXECUTOR, " timed out.", _CLASSIFIED),
    text("vllm.v1.worker.utils", "NaNs detected in logits", _CLASSIFIED),
    text(_CORE, ENGINE_CORE_DEAD.decode(), "the last message of an engine core; the client must not end with it"),
    *attributes(_CORE, "EngineCoreProc", "ENGINE_CORE_DEAD", "the last message of an engine core"),
    text("vllm.v1.engine", "error", "the finish reason of a request that the engine core ended with an error"),
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
    *variables("VLLM_RPC_BASE_PATH", "sockets of the host lie in the folder of the instance"),
    *variables("VLLM_MQ_MAX_CHUNK_BYTES_MB", "a new queue to the workers is as large as the first"),
    *variables("VLLM_USE_RUST_FRONTEND VLLM_RUST_FRONTEND_PATH", "the Rust front end loads no plugins: refused"),
    *variables("VLLM_USE_NCCL_SYMM_MEM", "memory registered with old communicators limits a rebuild"),
    *variables("VLLM_API_KEY", "an inference key is never the control token"),
    *variables("VLLM_ENABLE_V1_MULTIPROCESSING VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "`holdfast doctor` warns of them"),
    *variables("VLLM_CPU_OMP_THREADS_BIND VLLM_CPU_KVCACHE_SPACE VLLM_NO_USAGE_STATS", "servers on small machines"),
    *variables("VLLM_LOGGING_LEVEL", "`holdfast doctor` imports the host silently"),
    # ---- modules
    module("vllm.entrypoints.openai.api_server", "the plain host that benchmarks compare with"),
    module("vllm.distributed.elastic_ep.elastic_execute", _IMPORTED_EARLY),
    module("vllm.model_executor.layers.quantization.online.base", _IMPORTED_EARLY),
    module("vllm.utils.cpu_triton_utils", _IMPORTED_EARLY),
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
