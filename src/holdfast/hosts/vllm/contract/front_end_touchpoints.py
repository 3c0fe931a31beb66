"""Touchpoints of the front end; part of the registry.

They cover the process that owns the engine cores, the processes that serve HTTP, and how both end.
"""

from __future__ import annotations

from holdfast.hosts.vllm.contract.touchpoint import Touchpoint, attributes, call, only, text, wrap

_CLIENT = "vllm.v1.engine.core_client"
_ENGINES = "vllm.v1.engine.utils"
_SERVE = "vllm.entrypoints.cli.serve"
_METRICS = "vllm.v1.metrics.prometheus"
_TRACED = "incidents are traced where requests are, and linked to them"
_SCHEDULERS = "another scheduler is refused"
_LAUNCH = ("vllm_config", "executor_class", "log_stats", "addresses")

# The function is looked up where it was imported to: once for each process that can own the engine cores.
LAUNCH_IN_CLIENT = wrap(_CLIENT, "launch_core_engines", _LAUNCH, "the owner of the engine cores, with one API server")
LAUNCH_IN_LAUNCHER = wrap(_SERVE, "launch_core_engines", _LAUNCH, "the owner of the engine cores, with several")
CLIENT_INIT = wrap(
    _CLIENT,
    "AsyncMPClient.__init__",
    ("vllm_config", "executor_class", "log_stats", "client_addresses", "client_count", "client_index"),
    "an API server that does not own the engine cores needs a link to the owner",
)
OFFLINE_CLIENT_INIT = wrap(
    _CLIENT,
    "SyncMPClient.__init__",
    ("vllm_config", "executor_class", "log_stats"),
    "the waits of `vllm.LLM` end with the instance",
)
IN_PROCESS_INIT = wrap(
    _CLIENT,
    "InprocClient.__init__",
    ("vllm_config", "executor_class", "log_stats"),
    "an engine core in the caller's process is refused, not ignored",
)
OFFLINE_OUTPUT = wrap(_CLIENT, "SyncMPClient.get_output", (), "`vllm.LLM` is told why its engine core has ended")
ROUTE = wrap(
    _CLIENT,
    "DPLBAsyncMPClient.get_core_engine_for_request",
    ("request",),
    "no new request goes to a paused engine core while a sibling makes progress",
)
WATCH_ENGINES = wrap(
    _ENGINES,
    "CoreEngineProcManager.monitor_engine_liveness",
    (),
    "the API servers hear of an engine core's death before the host ends the others",
)
ADD = wrap(_CLIENT, "AsyncMPClient.add_request_async", ("request",), "the journal of open requests begins here")
ADD_DATA_PARALLEL = wrap(_CLIENT, "DPAsyncMPClient.add_request_async", ("request",), "the same with several engines")
PROCESS_INPUTS = wrap(
    "vllm.v1.engine.input_processor",
    "InputProcessor.process_inputs",
    ("request_id", "prompt", "params"),
    "a request that cannot be encoded is refused before anything is kept of it",
)
PROCESSOR_CACHE_KIND = wrap(
    "vllm.multimodal.cache.factories",
    "_get_cache_type",
    ("vllm_config",),
    "a cache of multimodal inputs in an engine core is lost with it, and the front end's would refer to it",
)
ABORT = wrap(_CLIENT, "AsyncMPClient.abort_requests_async", ("request_ids",), "an aborted request is never resumed")
ABORT_BALANCED = wrap(
    _CLIENT, "DPLBAsyncMPClient.abort_requests_async", ("request_ids",), "the same with several engines"
)
RECEIVE = wrap(_CLIENT, "AsyncMPClient._ensure_output_queue_task", (), "every output passes here")
RAISE_IF_ERROR = wrap(
    "vllm.entrypoints.generate.base.serving",
    "GenerateBaseServing._raise_if_error",
    ("finish_reason", "request_id"),
    "the client of an ended request is told the reason",
)
VALIDATE_ALIVE = wrap(
    _CLIENT,
    "BackgroundResources.validate_alive",
    ("frames",),
    "the death notice of an engine core does not end the client",
)
CALL_UTILITY = wrap(
    _CLIENT, "AsyncMPClient._call_utility_async", ("method",), "a call to a lost engine core ends with an error"
)
CALL_EVERY_UTILITY = wrap(
    _CLIENT,
    "AsyncMPClient.call_utility_all_async",
    ("method",),
    "calls to every engine core leave out lost engine cores",
)
START_ENGINES = wrap(
    _ENGINES,
    "CoreEngineProcManager.__init__",
    ("local_engine_count", "start_index", "local_start_index", "vllm_config", "local_client", "handshake_address"),
    "the replacement of an engine core is started with the same arguments",
)
START_API_SERVERS = wrap(
    "vllm.v1.utils",
    "APIServerProcessManager.__init__",
    ("listen_address", "sock", "args", "num_servers"),
    "the replacement of an API server is started with the same arguments",
)
GREET = wrap(
    _CLIENT,
    "MPClient._start_mm_warmup",
    (),
    "the only call of a client between binding its sockets and waiting for ready engine cores",
)
START_COORDINATOR = wrap(
    "vllm.v1.engine.coordinator",
    "DPCoordinator.__init__",
    ("parallel_config", "enable_wave_coordination", "logging_config"),
    "the replacement of the coordinator is started with the same arguments",
)
AWAIT_END = wrap(
    _SERVE,
    "wait_for_completion_or_failure",
    ("api_server_manager", "engine_manager", "coordinator"),
    "the host ends all processes when a process ends that can be replaced",
)
SERVE_HTTP = wrap(
    "vllm.entrypoints.launchers.api_server.entry",
    "serve_http",
    ("app", "sock"),
    "a defeated instance must exit non-zero",
)
SERVE_MANY = wrap(
    _SERVE, "run_multi_api_server", ("args",), "a defeated instance must exit non-zero, with several API servers"
)
SERVE_HEADLESS = wrap(
    _SERVE, "run_headless", ("args",), "workers of a further node get an agent; engine cores there are refused"
)
HEADLESS_EXECUTOR = Touchpoint(
    _SERVE, "MultiprocExecutor", "class", None, "the headless process of a further node takes no class of executor"
)

_PREPARED = "the environment of a command of the host"
PREPARE_COMMAND = (
    only("0.32", call("vllm.entrypoints.serve.utils.api_utils", "cli_env_setup", (), _PREPARED)),
    only("0.33", call("vllm.entrypoints.common.startup", "cli_env_setup", (), _PREPARED)),
)

_LAUNCHED = "engine_manager watched_frontend_processes coordinator addresses tensor_queue"

FRONT_END_TOUCHPOINTS: tuple[Touchpoint, ...] = (
    LAUNCH_IN_CLIENT,
    LAUNCH_IN_LAUNCHER,
    CLIENT_INIT,
    OFFLINE_CLIENT_INIT,
    IN_PROCESS_INIT,
    OFFLINE_OUTPUT,
    ROUTE,
    WATCH_ENGINES,
    ADD,
    ADD_DATA_PARALLEL,
    ABORT,
    ABORT_BALANCED,
    RECEIVE,
    VALIDATE_ALIVE,
    RAISE_IF_ERROR,
    PROCESS_INPUTS,
    PROCESSOR_CACHE_KIND,
    CALL_UTILITY,
    CALL_EVERY_UTILITY,
    START_ENGINES,
    START_API_SERVERS,
    GREET,
    START_COORDINATOR,
    AWAIT_END,
    SERVE_HTTP,
    SERVE_MANY,
    SERVE_HEADLESS,
    *PREPARE_COMMAND,
    call("vllm.tracing.otel", "get_span_exporter", ("endpoint",), _TRACED),
    *attributes("vllm.v1.engine", "EngineCoreRequest", "trace_headers", _TRACED),
    *attributes("vllm.config", "VllmConfig", "observability_config", _TRACED),
    *attributes("vllm.config.observability", "ObservabilityConfig", "otlp_traces_endpoint", _TRACED),
    *attributes(_ENGINES, "CoreEngineLaunch", _LAUNCHED, "the processes of the instance"),
    *attributes(_ENGINES, "EngineZmqAddresses", "inputs outputs", "how many API servers there are, and their sockets"),
    *attributes(
        _ENGINES,
        "CoreEngineProcManager",
        "processes manager_stopped _finalizer",
        "telling an engine core's death from its end",
    ),
    *attributes("vllm.v1.utils", "APIServerProcessManager", "processes", "the replacement of an API server"),
    *attributes(_CLIENT, "BackgroundResources", "ctx input_socket", "hearing again that the engine cores are ready"),
    *attributes("vllm.v1.engine", "EngineCoreRequestType", "UTILITY", "greeting the engine cores"),
    *attributes(
        "vllm.v1.fault_tolerance.engine_core_sentinel",
        "EngineCoreSentinel",
        "handle_command",
        "greeting the engine cores: the only call that is answered where messages arrive",
    ),
    *attributes(
        "vllm.v1.engine.coordinator",
        "DPCoordinator",
        "proc stats_publish_address coord_in_address coord_out_address _finalizer",
        "the replacement of the coordinator at the same addresses",
    ),
    call(
        "vllm.v1.engine.coordinator",
        "DPCoordinatorProc.run_coordinator",
        ("engine_count", "front_publish_address", "back_output_address", "back_publish_address", "zmq_addr_pipe"),
        "the replacement of the coordinator at the same addresses",
    ),
    *attributes(
        "vllm.v1.engine",
        "EngineCoreOutputs",
        "start_wave wave_complete",
        "telling a new coordinator the wave that runs",
    ),
    *attributes(
        "vllm.v1.engine", "EngineCoreOutputs", "engine_index scheduler_stats", "a lost engine core runs no request"
    ),
    *attributes(
        "vllm.v1.metrics.stats",
        "SchedulerStats",
        "num_running_reqs num_waiting_reqs kv_cache_usage",
        "a lost engine core runs no request",
    ),
    call(
        _METRICS,
        "get_prometheus_registry",
        (),
        "its registry, or files with several API servers, has Holdfast's metrics",
    ),
    text(_METRICS, "PROMETHEUS_MULTIPROC_DIR", "the folder of these files, set before the engine cores are launched"),
    text(_METRICS, "vllm:", "collectors of such a name are removed when a client is made"),
    *attributes("vllm.v1.engine.async_llm", "AsyncLLM", "engine_core", "the client whose streams are watched"),
    call("vllm.v1.utils", "shutdown", ("procs", "timeout"), "ending what was started when the start failed"),
    *attributes(
        _CLIENT,
        "MPClient",
        "resources core_engines core_engine engine_ranks_managed input_socket decoder utility_results",
        "the engine cores of a client",
    ),
    *attributes(
        "vllm.v1.engine",
        "EngineCoreOutput",
        "request_id new_token_ids finish_reason stop_reason",
        "how a request ended, and why",
    ),
    Touchpoint("vllm.exceptions", "GenerationError", "class", None, "telling a client why its request was ended"),
    *attributes(_CLIENT, "AsyncMPClient", "outputs_queue", "failing one request that cannot be resumed"),
    *attributes(_CLIENT, "SyncMPClient", "outputs_queue", "the waits of `vllm.LLM` end with the instance"),
    *attributes(_CLIENT, "BackgroundResources", "engine_dead engine_manager", "later calls of `vllm.LLM` raise"),
    Touchpoint("vllm.v1.engine.exceptions", "EngineDeadError", "class", None, "the error of `vllm.LLM`"),
    call(
        _ENGINES,
        "wait_for_engine_startup",
        ("handshake_socket", "core_engines", "parallel_config", "coordinated_dp", "cache_config", "launch"),
        "the handshake with a replacement engine core",
    ),
    Touchpoint(_ENGINES, "CoreEngine", "class", None, "the handshake with one engine core"),
    call("vllm.utils.network_utils", "zmq_socket_ctx", ("path", "socket_type"), "the handshake with one engine core"),
    call("vllm.utils.network_utils", "get_open_zmq_ipc_path", (), "VLLM_RPC_BASE_PATH says where sockets go"),
    call("vllm.utils.system_utils", "get_mp_context", (), "whether a process can be started from a serving process"),
    call("vllm.multimodal.cache.base", "MultiModalCache.get_item_size", ("value",), "the journal's memory is bounded"),
    *attributes("vllm.config.model", "ModelConfig", "multimodal_config", "the way of tensors to an engine core"),
    *attributes("vllm.config.multimodal", "MultiModalConfig", "mm_tensor_ipc", "the way of tensors to an engine core"),
    call("vllm.sampling_params", "SamplingParams.clone", (), "a request with its history is a copy"),
    *attributes(
        _CLIENT, "BackgroundResources", "output_queue_task", "open requests end in an error when the instance does"
    ),
    *attributes(_CLIENT, "DPLBAsyncMPClient", "reqs_in_flight engine_inflight", "where a request was sent"),
    *attributes(
        "vllm.v1.engine",
        "EngineCoreRequest",
        "request_id data_parallel_rank pooling_params mm_features prompt_embeds prompt_token_ids resumable "
        "sampling_params",
        "routing and resuming",
    ),
    *attributes(
        "vllm.config.parallel",
        "ParallelConfig",
        "data_parallel_size data_parallel_size_local data_parallel_rank_local data_parallel_backend nnodes "
        "data_parallel_external_lb data_parallel_hybrid_lb enable_elastic_ep distributed_executor_backend "
        "enable_fault_tolerance enable_eplb enable_batch_sharded_sampling tensor_parallel_size "
        "decode_context_parallel_size prefill_context_parallel_size",
        "which topologies are protected",
    ),
    *attributes("vllm.config.scheduler", "SchedulerConfig", "scheduler_cls", "which schedulers are protected"),
    Touchpoint("vllm.v1.core.sched.scheduler", "Scheduler", "class", None, _SCHEDULERS),
    Touchpoint("vllm.v1.core.sched.async_scheduler", "AsyncScheduler", "class", None, _SCHEDULERS),
)
