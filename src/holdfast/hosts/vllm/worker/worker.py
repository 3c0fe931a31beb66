"""A worker under Holdfast: steps are fenced, injected and recorded; a sentinel reports faults."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

from holdfast.core.faults.classification import Classifier
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.ports import Communicators
from holdfast.hosts.vllm.communicators import WorkerCommunicators, attach_communicator_hooks
from holdfast.hosts.vllm.communicators.counting import attach_collective_count
from holdfast.hosts.vllm.communicators.gloo import collective_under_way
from holdfast.hosts.vllm.communicators.placeholder_groups import use_real_groups, uses_placeholder_groups
from holdfast.hosts.vllm.contract.engine_touchpoints import WORKER_QUEUES
from holdfast.hosts.vllm.contract.hooks import attach, attached
from holdfast.hosts.vllm.contract.worker_touchpoints import DEATH_PIPE, WORKER_LOOP
from holdfast.hosts.vllm.injection import ArmedFaults, arm_logits, arm_model, inject_around
from holdfast.hosts.vllm.process.collective_count import COUNT
from holdfast.hosts.vllm.process.fence_flag import FenceFlag
from holdfast.hosts.vllm.process.nodes import engine_address_elsewhere, node_number, open_station
from holdfast.hosts.vllm.process.queues import attach_socket_paths
from holdfast.hosts.vllm.process.settings import inherited_settings, place_of_files
from holdfast.hosts.vllm.process.shared_memory import attach_segment_records
from holdfast.hosts.vllm.process.step_progress import WorkerProgress, worker_progress
from holdfast.hosts.vllm.protocol import ADD_REQUESTS, JOIN, OUTLIVE, PREPARE, REPEAT, Adopt
from holdfast.hosts.vllm.worker.adapters import attach_adapter_hook
from holdfast.hosts.vllm.worker.encoder_misses import naming_encoder_misses
from holdfast.hosts.vllm.worker.fence import Step, StepFence
from holdfast.hosts.vllm.worker.finishing import StepFinisher
from holdfast.hosts.vllm.worker.handlers import join, open_queues_alone, outlive, prepare, repeat
from holdfast.hosts.vllm.worker.logits_check import NonFiniteLogitsDetector
from holdfast.hosts.vllm.worker.orphan import EngineLink
from holdfast.hosts.vllm.worker.restore import RESTORE, RankRestore
from holdfast.hosts.vllm.worker.standby import assigned_queue
from holdfast.sentinel import WorkerSentinel
from holdfast.sentinel.thread import engine_address

logger = logging.getLogger("holdfast")

# Methods that an executor calls in a step, and the phase in which an unexpected error is reported.
STEP_METHODS = {
    "execute_model": Phase.FORWARD,
    "sample_tokens": Phase.SAMPLE_START,
    "take_draft_token_ids": Phase.SAMPLE_END,
    "execute_dummy_batch": Phase.FORWARD,
}


def attach_worker_hooks() -> None:
    """Protect every worker that starts in the process from now on. Idempotent."""
    attach_communicator_hooks()
    attach_collective_count()
    attach_segment_records()
    attach_socket_paths()
    attach(WORKER_QUEUES, _protect_worker)
    attach(DEATH_PIPE, _watch_engine_core)
    attach(WORKER_LOOP, _run_under_engine_cores)


def _protect_worker(original: Step, proc: Any, input_shm_handle: Any, vllm_config: Any) -> None:
    """Wrap the host's last preparation of a worker, with the weights loaded. A standby waits here for a rank."""
    is_replacement = uses_placeholder_groups()
    communicators = WorkerCommunicators(proc.worker.worker)
    unrebuildable = communicators.unrebuildable()  # before a standby waits: the search walks through the whole heap
    queue = assigned_queue(input_shm_handle, proc.worker.worker)
    if is_replacement and vllm_config.parallel_config.nnodes_within_dp > 1:
        open_queues_alone(proc, queue)
    else:
        original(proc, queue, vllm_config)
    attach_adapter_hook()
    use_real_groups()
    config = inherited_settings()
    if config is None or not config.enable_fault_tolerance:
        return
    engine_id = vllm_config.parallel_config.data_parallel_index
    # The engine core does not see the flag of a rank of another node.
    finishes = config.finish_steps and config.node_count == 1 and communicators.any_shared and not unrebuildable
    COUNT.fill = float("nan") if config.unsafe_send_nan else 0.0
    fence = StepFence(
        engine_id,
        proc.rank,
        communicators,
        Classifier(config.fault_classes),
        flag=FenceFlag.published(config.runtime_dir) if finishes else None,
        finisher=StepFinisher(proc.worker.worker) if finishes else None,
    )
    if config.unsafe_skip_fence:
        fence.close = lambda error, phase, **_: None  # type: ignore[method-assign]
    host = VllmWorkerHost(
        proc,
        fence,
        communicators,
        injection=config.enable_fault_injection,
        check_logits=config.check_logits,
        progress=worker_progress(config),
    )
    proc.holdfast = host
    host.restores.is_replacement = is_replacement
    host.unrebuildable = unrebuildable
    host.make_sentinel = lambda address: WorkerSentinel(
        host, proc.rank, open_station(config), address, node=node_number()
    )
    host.report_to(engine_address_elsewhere() or engine_address(place_of_files(config.runtime_dir), engine_id))


def _watch_engine_core(
    original: Callable[..., None], proc: Any, death_pipe: Any, shutdown_requested: threading.Event
) -> None:
    """Watch for the end of the engine core, around the host's thread that does."""
    host, config = getattr(proc, "holdfast", None), inherited_settings()
    if host is None or config is None or death_pipe is None or not config.adopt_workers:
        original(proc, death_pipe, shutdown_requested)
        return
    host.link = EngineLink(
        proc, shutdown_requested, config.runtime_dir, config.engine_start_timeout_s, host.serve_another
    )
    host.link.watch(death_pipe)


def _run_under_engine_cores(original: Callable[[Any], None], proc: Any) -> None:
    """Run the host's busy loop under one engine core after the other."""
    link = getattr(getattr(proc, "holdfast", None), "link", None)
    if link is None:
        original(proc)
    else:
        link.run(functools.partial(original, proc))


class VllmWorkerHost:
    """Implements `WorkerHost` on a worker process of the host."""

    def __init__(
        self,
        proc: Any,
        fence: StepFence,
        communicators: Communicators,
        *,
        injection: bool,
        check_logits: bool = False,
        progress: WorkerProgress | None = None,
    ) -> None:
        self._proc = proc
        self._fence = fence
        self._faults = ArmedFaults()
        self.restores = RankRestore(proc, fence, communicators, self._faults)
        self.link: EngineLink | None = None  # where the worker may outlive its engine core
        self.unrebuildable: tuple[str, ...] = ()
        self.make_sentinel: Callable[[str], WorkerSentinel]
        self._sentinel: WorkerSentinel | None = None
        if injection:
            arm_model(self._faults, self._runner)
            arm_logits(self._faults, self._runner)
        # After injection: the detector must see the injected values.
        self._wrap_steps(NonFiniteLogitsDetector(self._runner) if check_logits else None, injection, progress)
        wrapper = proc.worker
        setattr(wrapper, RESTORE, self.restores.restore)
        setattr(wrapper, ADD_REQUESTS, self.restores.add_requests)
        setattr(wrapper, JOIN, functools.partial(join, proc))
        setattr(wrapper, PREPARE, functools.partial(prepare, proc))
        setattr(wrapper, REPEAT, functools.partial(repeat, proc))
        setattr(wrapper, OUTLIVE, functools.partial(outlive, proc))

    def _wrap_steps(
        self, detector: NonFiniteLogitsDetector | None, injection: bool, progress: WorkerProgress | None
    ) -> None:
        """Put logits check, injection, progress record and fence around each step method, the fence outermost."""
        wrapper = self._proc.worker
        for name, phase in STEP_METHODS.items():
            step = getattr(wrapper, name)
            if phase is Phase.FORWARD:
                step = naming_encoder_misses(self._runner, step)
            if detector is not None:
                step = detector.checked(name, step)
            if injection:
                step = inject_around(self._faults, name, step)
            if progress is not None:
                step = progress.recorded(phase, step)
            setattr(wrapper, name, self._fence.fenced(phase, step))
        if self._proc.use_async_scheduling:
            self._proc.enqueue_output = self._fence_outputs(self._proc.enqueue_output, progress)

    def _fence_outputs(self, enqueue: Step, progress: WorkerProgress | None) -> Step:
        """Compute asynchronous outputs before they are sent, so that a fault there fences the rank too."""
        finished = progress.finished if progress is not None else lambda compute: compute()

        def run(output: Any) -> None:
            enqueue(self._fence.complete(output, finished) if hasattr(output, "get_output") else output)

        return run

    def report_to(self, address: str) -> None:
        """Have a sentinel report to the engine core at `address`, and no sentinel to another one."""
        before = self._sentinel
        self._sentinel = self._fence.reporter = self.make_sentinel(address)
        if before is not None:
            before.close()
        self._sentinel.start(attached(), self.unrebuildable)

    def serve_another(self, order: Adopt) -> None:
        """Forget everything of a dead engine core, and report to another. Main thread, between two steps.

        Raises:
            RankFenced: the rank has failed, and cannot take a step.
        """
        self._fence.begin_anew()
        self._faults.disarm()
        self.restores.forget(order.seed)
        self.report_to(order.sentinel)

    @property
    def _runner(self) -> Any:
        return self._proc.worker.worker.model_runner

    # ---- `WorkerHost`: any thread

    def arm(self, spec: InjectionSpec) -> None:
        self._faults.arm(spec)

    def break_collectives(self, epoch: int) -> int | None:
        return self._fence.stop(epoch)

    def collective_under_way(self, epoch: int) -> str | None:
        if self._fence.has_left(epoch):  # in a restore a rank waits for its peers, which is no stall
            return None
        return collective_under_way(threading.main_thread().ident or 0)
