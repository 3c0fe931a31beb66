"""An engine core under Holdfast: the sentinel, the protected busy loop, and `EngineHost` for the sentinel."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm.v1.engine import EngineCoreRequestType

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.faults.redaction import PublicText, account_of
from holdfast.core.protocol.messages import RecoveryReport, Rendezvous
from holdfast.core.stalls.standing import Planning
from holdfast.hosts.vllm.communicators import EngineCommunicators, attach_communicator_hooks
from holdfast.hosts.vllm.contract.engine_touchpoints import BUSY_LOOP, ENGINE_INIT, FAILED_STEP, LOCKSTEP_BUSY_LOOP
from holdfast.hosts.vllm.contract.hooks import attach, attached
from holdfast.hosts.vllm.contract.name_touchpoints import EXECUTOR_FAILED, WORKER_FAILED, WORKERS_FAILED
from holdfast.hosts.vllm.engine.api_server_clients import answer_greetings, drop_requests
from holdfast.hosts.vllm.engine.failed_step import FailedSteps, note_failed_step
from holdfast.hosts.vllm.engine.grammar_errors import name_requests_of_grammar_errors
from holdfast.hosts.vllm.engine.host_pauses import follow_pauses
from holdfast.hosts.vllm.engine.lockstep_wave import announce_to_coordinator, in_lockstep, start_after_any_wave
from holdfast.hosts.vllm.engine.pacing import PacedPrefill, StepRules
from holdfast.hosts.vllm.engine.ready_requests import ReadyRequests
from holdfast.hosts.vllm.engine.recovery import Recovery
from holdfast.hosts.vllm.engine.request_admission import VllmRequestHost
from holdfast.hosts.vllm.engine.resumed_requests import attach_resumption_hooks, pace_resumed_requests
from holdfast.hosts.vllm.engine.runtime_state import RuntimeState
from holdfast.hosts.vllm.engine.streaming_sessions import follow_sessions
from holdfast.hosts.vllm.engine.worker_pool.adoption import answering_for_workers
from holdfast.hosts.vllm.engine.worker_pool.remote_ranks import set_node_watch
from holdfast.hosts.vllm.injection import ArmedFaults, arm_engine
from holdfast.hosts.vllm.process.device_health import device_health
from holdfast.hosts.vllm.process.fence_flag import FenceFlags
from holdfast.hosts.vllm.process.init_store import attach_init_store
from holdfast.hosts.vllm.process.lifecycle import exit_within
from holdfast.hosts.vllm.process.nodes import open_station, versions, wire_address
from holdfast.hosts.vllm.process.queues import attach_socket_paths
from holdfast.hosts.vllm.process.settings import inherited_settings, joins_epoch, place_of_files
from holdfast.hosts.vllm.process.shared_memory import attach_segment_records
from holdfast.hosts.vllm.process.step_progress import record_engine_progress
from holdfast.hosts.vllm.protocol import TOLD_TO_STOP
from holdfast.sentinel import EngineCoreSentinel
from holdfast.sentinel.engine import EngineDefeated
from holdfast.sentinel.nodes import NodeWatch
from holdfast.sentinel.thread import client_address, engine_address

logger = logging.getLogger("holdfast")

ATTACH_TIMEOUT_S = 30.0
EXIT_WITHIN_S = 5.0  # the host tells its clients and ends the workers in a fraction of that


def attach_engine_hooks() -> None:
    """Protect every engine core that starts in the process from now on. Idempotent."""
    attach_communicator_hooks()
    attach(ENGINE_INIT, _protect_engine)
    attach(BUSY_LOOP, _run_protected)
    attach(LOCKSTEP_BUSY_LOOP, _run_protected)
    attach(FAILED_STEP, note_failed_step)
    attach_resumption_hooks()
    attach_init_store()
    attach_segment_records()
    attach_socket_paths()


def _protect_engine(original: Callable[..., None], engine: Any, *args: Any, **kwargs: Any) -> None:
    """Start the sentinel around the host's `__init__` of an engine core, and wait for the sentinels of the workers."""
    config = inherited_settings()
    if config is None or not config.enable_fault_tolerance:
        original(engine, *args, **kwargs)
        return
    engine_id = kwargs.get("engine_index", 0)
    folder = config.runtime_dir
    addresses = client_address(folder), engine_address(place_of_files(folder), engine_id)
    parallel = (kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]).parallel_config
    over_nodes = parallel.nnodes > 1
    sentinel = EngineCoreSentinel(
        engine_id,
        config,
        open_station(config),
        *addresses,
        joins_epoch=joins_epoch(),
        address_for_nodes=wire_address(parallel.master_addr, config.node_port) if over_nodes else "",
    )
    if over_nodes:
        _watch_nodes(sentinel, parallel)
    answer_greetings(engine)
    original(engine, *args, **kwargs)
    if not over_nodes:
        sentinel.start()
    host = VllmEngineHost(engine, config, sentinel)
    workers = sentinel.await_workers(engine.model_executor.world_size, ATTACH_TIMEOUT_S)
    host.watch_fences({worker.rank: worker.pid for worker in workers})
    engine.holdfast = sentinel
    engine.holdfast_failed_steps = FailedSteps(config, engine_id)
    executor = engine.model_executor
    with answering_for_workers(executor) if executor.has_adopted else contextlib.nullcontext():
        host.state.repeat_inherited()
    if config.adopt_workers and not why_not_adoptable(engine):
        executor.let_workers_outlive(config.drain_timeout_s)
    sentinel.announce(host, attached(), workers)
    engine.model_executor.standbys.start()


def _watch_nodes(sentinel: EngineCoreSentinel, parallel: Any) -> None:
    """Watch the agents of further nodes, from before the host waits for their ranks."""
    each = parallel.local_world_size
    ranks = {node: tuple(range(node * each, (node + 1) * each)) for node in range(1, parallel.nnodes)}
    sentinel.nodes = NodeWatch(ranks, versions(), sentinel.send_to_agent)
    sentinel.nodes.on_start_failed = _end_start
    set_node_watch(sentinel.nodes)
    sentinel.start()


def _end_start(why: str) -> None:
    """End an engine core whose start cannot succeed: the host would wait for the rank that is gone."""
    logger.error("the start fails: %s", why)
    exit_within(0.0)


def why_not_adoptable(engine: Any) -> str:
    """Return why the workers of an engine core cannot serve another engine core; empty when they can."""
    if in_lockstep(engine):
        return "engine cores in lockstep"
    if engine.vllm_config.parallel_config.nnodes > 1:
        return "several nodes"
    if engine.scheduler.use_v2_model_runner:
        return "model runner V2"  # never shown to be exact
    if engine.scheduler.get_kv_connector() is not None or engine.scheduler.ec_connector is not None:
        return "a connector of KV or encoder caches"
    return str(engine.model_executor.start_calls.unrepeatable)


def _run_protected(original: Callable[..., None], engine: Any) -> None:
    """Run the host's busy loop under the sentinel, through faults and recoveries."""
    sentinel = getattr(engine, "holdfast", None)
    if sentinel is None:
        original(engine)
        return
    try:
        sentinel.run(lambda: original(engine), engine.is_running)
    except Exception as error:
        exit_within(EXIT_WITHIN_S)
        logger.error("engine core %d ends", engine.engine_index, exc_info=error)
        # The host writes the error to the log, and Python to stderr: here is where its text is left out.
        raise EngineDefeated(PublicText(account_of(error).message)) from None
    finally:
        sentinel.close()


class VllmEngineHost:
    """Implements `EngineHost` on the host's engine core."""

    def __init__(self, engine: Any, config: HoldfastConfig, sentinel: EngineCoreSentinel) -> None:
        self._engine = engine
        self._config = config
        self._sentinel = sentinel
        engine.model_executor.start_ended()
        engine.model_executor.on_rank_lost = sentinel.rank_lost
        if sentinel.nodes is not None:
            sentinel.nodes.on_rank_lost = engine.model_executor.lose_rank
            sentinel.nodes.serve()
        engine.model_executor.on_standbys = sentinel.report_standbys
        self._communicators = EngineCommunicators(engine)
        self._faults = ArmedFaults()
        if config.enable_fault_injection:
            arm_engine(self._faults, engine)
        record_engine_progress(engine, config)
        follow_sessions(engine.scheduler)
        follow_pauses(engine.scheduler)
        self.fences = FenceFlags(config.runtime_dir)
        self._replies = StepReplies(engine.scheduler, None if config.unsafe_skip_exit_check else self.fences)
        name_requests_of_grammar_errors(engine.structured_output_manager)
        rules = StepRules(engine.scheduler)
        self.requests = VllmRequestHost(engine, rules)
        self._ready = ReadyRequests(engine, self.requests.may_run)
        paced = PacedPrefill(engine, rules, config.recovery_prefill_tokens, in_lockstep=in_lockstep(engine))
        pace_resumed_requests(engine, paced)
        self.state = RuntimeState(engine, sentinel.report_runtime_state)
        self._recovery = Recovery(
            engine, config, self._communicators, self._faults, paced, self._await_processes, self.state
        )
        self._recovery.take_back = sentinel.take_back
        if (joins := joins_epoch()) is not None:
            self._recovery.mark_all_ranks_replaced()
            start_after_any_wave(engine, joins)
        self.devices = device_health() if config.stall_detection else None

    def _await_processes(self, pids: Mapping[int, int], timeout_s: float) -> None:
        self._sentinel.await_processes(pids, timeout_s)
        self.watch_fences(pids)

    def watch_fences(self, pids: Mapping[int, int]) -> None:
        """Look at the fences of these processes, except over several nodes, where no rank finishes a step."""
        if self._config.node_count == 1:
            self.fences.watch(pids)

    @property
    def engine_id(self) -> int:
        index: int = self._engine.engine_index
        return index

    @property
    def in_lockstep(self) -> bool:
        return in_lockstep(self._engine)

    @property
    def pipeline_stages(self) -> int:
        stages: int = self._engine.vllm_config.parallel_config.pipeline_parallel_size
        return stages

    @property
    def compiles_in_steps(self) -> bool:
        """Whether a step may compile a kernel: on a GPU always, on a CPU with the host's compiler on."""
        from vllm.platforms import current_platform

        config = self._engine.vllm_config
        return not (current_platform.is_cpu() and config.model_config.enforce_eager)

    def interrupt(self) -> None:
        self._engine.input_queue.put_nowait((EngineCoreRequestType.EXECUTOR_FAILED, b""))

    def is_interrupt(self, error: Exception) -> bool:
        interrupted = isinstance(error, RuntimeError) and str(error) == EXECUTOR_FAILED
        return not self.lost_ranks() and (interrupted or TOLD_TO_STOP in str(error))

    def break_collectives(self) -> int:
        self._replies.refuse()
        return self._communicators.break_all()

    def unrebuildable(self) -> tuple[str, ...]:
        return self._communicators.unrebuildable()

    def unfinished_requests(self) -> int:
        return len(self._engine.scheduler.requests)

    @property
    def step_ended_well(self) -> bool:
        return self._replies.step_ended_well

    def planning(self) -> Planning:
        return self._ready.planning(self._replies.steps)

    def ready_requests(self) -> int:
        return self._ready.count()

    def is_workers_reply(self, error: Exception) -> bool:
        says_so = isinstance(error, RuntimeError) and str(error).startswith((WORKER_FAILED, WORKERS_FAILED))
        return says_so or isinstance(error, StepOfFailedRank)  # a rank is about to report the cause

    def lost_ranks(self) -> tuple[int, ...]:
        return tuple(sorted(self._engine.model_executor.lost_ranks))

    def kill_rank(self, rank: int) -> None:
        self._engine.model_executor.kill_rank(rank)

    def arm(self, spec: InjectionSpec) -> None:
        self._faults.arm(spec)

    def configure(self, config: HoldfastConfig) -> None:
        self._recovery.config = config

    def drop_requests_of(self, client_index: int) -> None:
        drop_requests(self._engine, client_index)

    def introduce_to_coordinator(self) -> None:
        announce_to_coordinator(self._engine)

    def recover(
        self, error: Exception, epoch: int, rendezvous: Rendezvous | None, replace: Sequence[int] = ()
    ) -> RecoveryReport:
        self._replies.begin_anew()
        return self._recovery.recover(error, epoch, rendezvous, replace)


class StepOfFailedRank(RuntimeError):
    """A rank raised in the step whose reply is here, or before: the reply counts for nobody."""


class StepReplies:
    """The replies of steps: which are refused, and how many were processed. Busy loop's thread, but for `refuse`.

    Refused is the reply of a step that was under way as the collectives of the engine core's ranks were broken: by a
    rank that reported a fault, or by a pause at once. The rank whose reply is read may have noticed nothing. On the
    step path this is two attributes and a byte of each rank, without a lock.

    Refused is also every reply while the flag of a rank is raised: the rank took part in a step of which it knows
    nothing, and the reply of its peer is wrong.
    """

    def __init__(self, scheduler: Any, fences: FenceFlags | None = None) -> None:
        self._fences = fences
        self.step_ended_well = False
        self.steps = 0  # processed since the start, without empty ones
        self._is_broken = False
        self._update = scheduler.update_from_output
        scheduler.update_from_output = self._update_or_refuse

    def refuse(self) -> None:
        """Refuse replies from now on. Any thread."""
        self._is_broken = True

    def begin_anew(self) -> None:
        """Take replies again: replies of earlier steps are dropped by the recovery that begins."""
        self._is_broken = self.step_ended_well = False

    def _update_or_refuse(self, step: Any, *args: Any, **kwargs: Any) -> Any:
        if self._is_broken:
            raise RuntimeError(EXECUTOR_FAILED)  # an interrupt: the cause is known elsewhere
        if self._fences is not None and self._fences.any_raised:
            raise StepOfFailedRank("a rank failed in this step or before")
        outputs = self._update(step, *args, **kwargs)
        if step.total_num_scheduled_tokens:
            self.step_ended_well = True
            self.steps += 1
        return outputs
