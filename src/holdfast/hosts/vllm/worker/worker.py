"""A worker under Holdfast: its steps are guarded, its fence, its restore, its sentinel.

A rank that raised takes no part in another step until it is let back in: without the fence the steps
already queued would run on a broken state, and in a lockstep group pair up with the wrong collectives.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from holdfast.core.errors import RankFenced, RecoveryFailed
from holdfast.core.faults.classification import Classifier, default_classifier, fault_of
from holdfast.core.faults.faults import Phase, describe_error
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.ports import Communicators, FaultReporter
from holdfast.hosts.vllm.communicators import WorkerCommunicators, attach_communicator_hooks
from holdfast.hosts.vllm.communicators.gloo import collective_under_way
from holdfast.hosts.vllm.contract.engine_touchpoints import WORKER_QUEUES
from holdfast.hosts.vllm.contract.hooks import attach, attached
from holdfast.hosts.vllm.injection.points import Traps, arm_logits, arm_model, raise_at
from holdfast.hosts.vllm.process.settings import inherited_settings
from holdfast.hosts.vllm.process.shared_memory import attach_segment_records
from holdfast.hosts.vllm.protocol.calls import JOIN, LEARN, PREPARE, TOLD_TO_STOP
from holdfast.hosts.vllm.protocol.request_history import decode_whole
from holdfast.hosts.vllm.protocol.restore import RESTORE, RestoreCommand, RestoreReply, decode_order, encode_reply
from holdfast.hosts.vllm.worker.handlers import join, prepare
from holdfast.hosts.vllm.worker.logits_check import LogitsCheck
from holdfast.hosts.vllm.worker.placeholder_groups import end_alone, is_alone
from holdfast.hosts.vllm.worker.progress import StepProgress, step_progress
from holdfast.hosts.vllm.worker.replacement_main import awaited_queue
from holdfast.hosts.vllm.worker.runner_state import learn, restore_runner
from holdfast.sentinel import WorkerSentinel
from holdfast.sentinel.addresses import engine_address
from holdfast.wire import ZmqStation

logger = logging.getLogger("holdfast")

# What an executor calls in a step, and the phase in which an unexpected error is reported.
STEP_METHODS = {
    "execute_model": Phase.FORWARD,
    "sample_tokens": Phase.SAMPLE_START,
    "take_draft_token_ids": Phase.SAMPLE_END,
    "execute_dummy_batch": Phase.FORWARD,
}

Step = Callable[..., Any]


def attach_worker_hooks() -> None:
    attach_communicator_hooks()
    attach_segment_records()
    attach(WORKER_QUEUES, _protect_worker)


def _protect_worker(original: Step, proc: Any, input_shm_handle: Any, vllm_config: Any) -> None:
    is_newcomer = is_alone()
    communicators = WorkerCommunicators(proc.worker.worker)
    unrebuildable = communicators.unrebuildable()  # before a standby waits: it looks at everything that there is
    original(proc, awaited_queue(input_shm_handle, proc.worker.worker), vllm_config)
    end_alone()
    config = inherited_settings()
    if config is None or not config.enable_fault_tolerance:
        return
    engine_id = vllm_config.parallel_config.data_parallel_index
    guard = StepGuard(engine_id, proc.rank, communicators, Classifier(config.fault_classes))
    if config.unsafe_skip_fence:
        guard.fence = lambda error, phase: None  # type: ignore[method-assign]
    host = VllmWorkerHost(
        proc,
        guard,
        communicators,
        injection=config.enable_fault_injection,
        check_logits=config.check_logits,
        progress=step_progress(config),
    )
    sentinel = WorkerSentinel(host, proc.rank, ZmqStation(), engine_address(config.runtime_dir, engine_id))
    guard.reporter = sentinel
    proc.holdfast = host
    host.is_newcomer = is_newcomer
    sentinel.start(attached(), unrebuildable)


class StepGuard:
    """The fence and the step counter of one rank.

    The main thread's, but for `stop`, which may come from any thread. What keeps the rank out of further
    steps is one attribute: looking at it takes no lock.
    """

    def __init__(
        self, engine_id: int, rank: int, communicators: Communicators, classifier: Classifier | None = None
    ) -> None:
        self._classifier = classifier or default_classifier()
        self.reporter: FaultReporter | None = None
        self.steps = 0
        self._engine_id = engine_id
        self._rank = rank
        self._communicators = communicators
        self._lock = threading.Lock()
        self._epoch = 0
        self._entering = 0  # the epoch that a restore under way leads to
        self._fenced_by: str | None = None
        self._fenced_in = 0
        self._reported_in = -1

    def guarded(self, phase: Phase, step: Step) -> Step:
        """A step that refuses behind the fence and fences its rank when it raises.

        Only `execute_model` and its stand-in for an idle rank count as a step: sampling is part of one.
        """
        counts = phase is Phase.FORWARD

        def run(*args: Any, **kwargs: Any) -> Any:
            if self._fenced_by is not None:
                raise RankFenced(f"rank {self._rank} is fenced since {self._fenced_by}")
            self.steps += counts
            try:
                return step(*args, **kwargs)
            except Exception as error:
                self.fence(error, phase)
                raise

        return run

    def fence(self, error: Exception, phase: Phase) -> None:
        """Take no further step, let nobody wait for this rank in a collective, report why, once."""
        if self._reported_in == self._epoch:
            return
        error_type, message = describe_error(error)
        with self._lock:
            self._fenced_by, self._fenced_in = f"{error_type}: {message}", self._epoch
            self._reported_in = self._epoch
            # Before the break: the peers' errors follow from it, and the cause must not come after them.
            self._report(error, phase, self._epoch)
            self._communicators.break_all()

    def _report(self, error: Exception, phase: Phase, epoch: int) -> None:
        fault = fault_of(
            error,
            self._classifier,
            engine_id=self._engine_id,
            rank=self._rank,
            phase=getattr(error, "phase", phase),
            step=self.steps,
            at=time.time(),
        )
        if self.reporter is not None:
            self.reporter.report(fault, epoch)

    def fail_entering(self, error: Exception, epoch: int) -> None:
        """A restore failed. The others would wait for this rank where they meet, so it is reported at once."""
        with self._lock:
            self._report(error, Phase.REBUILD, epoch)
            self._communicators.break_all()

    def stop(self, epoch: int) -> int | None:
        """Take no further step in `epoch` and let nobody wait in a collective; none where that is history."""
        with self._lock:
            if epoch < self._entering:
                return None
            self._fenced_in = epoch
            self._fenced_by = self._fenced_by or TOLD_TO_STOP
            return self._communicators.break_all()

    def is_done_with(self, epoch: int) -> bool:
        """Whether no step of `epoch` is under way any more: a restore is, or was, whatever became of that."""
        return self._entering > min(epoch, self._epoch)

    def enter(self, epoch: int) -> None:
        """A restore has begun: what belongs to an older epoch is history from now on."""
        with self._lock:
            self._entering = epoch

    def lift(self, epoch: int) -> None:
        """Take steps again under `epoch`, unless it was stopped again meanwhile."""
        with self._lock:
            self._epoch = epoch
            if self._fenced_in < epoch:
                self._fenced_by = None


class VllmWorkerHost:
    """Implements `WorkerHost` on a worker process of the host."""

    def __init__(
        self,
        proc: Any,
        guard: StepGuard,
        communicators: Communicators,
        *,
        injection: bool,
        check_logits: bool = False,
        progress: StepProgress | None = None,
    ) -> None:
        self._proc = proc
        self._guard = guard
        self._communicators = communicators
        self._traps = Traps()
        self.is_newcomer = False  # knows no request until it is let in for the first time
        wrapper = proc.worker
        if injection:
            arm_model(self._traps, self._runner)
            arm_logits(self._traps, self._runner)
        check = LogitsCheck(self._runner) if check_logits else None  # it sees what was spoiled
        for name, phase in STEP_METHODS.items():
            step = getattr(wrapper, name)
            if check is not None:
                step = check.watched(name, step)
            if injection:
                step = raise_at(self._traps, name, step)
            if progress is not None:
                step = progress.recorded(phase, step)
            setattr(wrapper, name, guard.guarded(phase, step))
        if proc.use_async_scheduling:
            proc.enqueue_output = self._resolving(proc.enqueue_output, progress)
        setattr(wrapper, RESTORE, self.restore)
        setattr(wrapper, LEARN, self.learn)
        setattr(wrapper, JOIN, functools.partial(join, proc))
        setattr(wrapper, PREPARE, functools.partial(prepare, proc))

    @property
    def _runner(self) -> Any:
        return self._proc.worker.worker.model_runner

    def arm(self, spec: InjectionSpec) -> None:
        self._traps.arm(spec)

    def break_collectives(self, epoch: int) -> int | None:
        return self._guard.stop(epoch)

    def collective_under_way(self, epoch: int) -> str | None:
        if self._guard.is_done_with(epoch):  # who meets its peers in a restore waits for them, and rightly
            return None
        return collective_under_way(threading.main_thread().ident or 0)

    def restore(self, data: bytes) -> bytes:
        """Carry out a restore order on the worker's main thread; never raises."""
        order = decode_order(data)
        self._guard.enter(order.epoch)
        began_at = time.monotonic()
        try:
            self._rebuild(order)
            rebuilt_at = time.monotonic()
            if self._communicators.any_placeholder:
                raise RecoveryFailed("this rank has met none of its peers: its collectives would send nothing")
            if self.is_newcomer and order.whole:  # runner V2 is sent every request whole when it is scheduled
                learn(self._runner, decode_whole(order.whole))
            unknown = restore_runner(self._runner, order.requests)
        except Exception as error:
            logger.exception("restoring rank %d failed", self._proc.rank)
            self._guard.fail_entering(error, order.epoch)
            return encode_reply(RestoreReply(nonce=order.nonce, error=": ".join(describe_error(error))))
        self.is_newcomer = False
        self._lift(order)
        return encode_reply(RestoreReply(nonce=order.nonce, unknown=unknown, rebuild_s=rebuilt_at - began_at))

    def learn(self, data: bytes) -> None:
        """Know requests that another engine core began, before they are scheduled."""
        learn(self._runner, decode_whole(data))

    def _rebuild(self, order: RestoreCommand) -> None:
        worker = self._proc.worker.worker
        if getattr(worker, "_pp_send_work", None):
            worker._pp_send_work = []  # sends that nobody will receive any more
        self._traps.passes(Phase.REBUILD)
        if order.rendezvous is not None:
            self._communicators.rebuild(order.rendezvous, order.rebuild_timeout_s)

    def _lift(self, order: RestoreCommand) -> None:
        self._guard.lift(order.epoch)
        logger.info("rank %d takes work again (epoch %d, pid %d)", self._proc.rank, order.epoch, os.getpid())

    def _resolving(self, enqueue: Step, progress: StepProgress | None) -> Step:
        """Asynchronous outputs are computed where they are sent: a fault there fences the rank too."""
        finished = progress.finished if progress is not None else lambda compute: compute()

        def run(output: Any) -> None:
            if hasattr(output, "get_output"):
                try:
                    output = finished(output.get_output)
                except Exception as error:
                    self._guard.fence(error, Phase.SAMPLE_END)
                    output = error
            enqueue(output)

        return run
