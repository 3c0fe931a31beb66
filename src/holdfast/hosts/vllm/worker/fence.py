"""The fence of a rank: a rank that raised takes no further step until a restore lets the rank back in.

Without the fence the steps already queued would run on a broken state, and in a lockstep group pair up with the wrong
collectives. A step under way as the fence closes may end as if nothing had happened: an aborted communicator leaves
any values. So the fence is looked at again before a result leaves the rank. On the step path the fence is one
attribute, read without a lock.

Where nothing is broken, a fenced rank goes on taking part in the collectives of its peers, in the step in which it
failed and in every step queued behind, until the restore. It answers nothing all the same.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from holdfast.core.errors import RankFenced
from holdfast.core.faults.classification import Classifier, default_classifier, fault_of
from holdfast.core.faults.faults import Fault, Phase
from holdfast.core.faults.redaction import PublicText, account_of
from holdfast.core.ports import Communicators, FaultReporter
from holdfast.hosts.vllm.process.fence_flag import FenceFlag
from holdfast.hosts.vllm.protocol import TOLD_TO_STOP
from holdfast.hosts.vllm.worker.finishing import StepFinisher
from holdfast.hosts.vllm.worker.memory_shortage import release_memory

logger = logging.getLogger("holdfast")

Step = Callable[..., Any]

_EPOCH = "holdfast_epoch"  # attribute of an asynchronous output: the epoch of the step


class StepFence:
    """The fence and the step counter of a rank. Main thread, except for `stop`: any thread."""

    def __init__(
        self,
        engine_id: int,
        rank: int,
        communicators: Communicators,
        classifier: Classifier | None = None,
        *,
        flag: FenceFlag | None = None,
        finisher: StepFinisher | None = None,
    ) -> None:
        self._classifier = classifier or default_classifier()
        self.reporter: FaultReporter | None = None
        self.steps = 0
        self._engine_id = engine_id
        self._rank = rank
        self._communicators = communicators
        self._lock = threading.Lock()
        self._epoch = 0
        self._restore_epoch = 0  # the epoch of the last restore that began
        self._fenced_by: str | None = None
        self._fenced_in = 0
        self._reported_in = -1
        self._flag = flag  # none: no engine core looks at one
        self._finisher = finisher  # none: collectives are broken after every fault
        self._takes_part = False  # fenced, and the peers do not wait

    def fenced(self, phase: Phase, step: Step) -> Step:
        """Wrap a step so that a fenced rank refuses the step, and an exception fences the rank.

        The result of a step during which the fence was closed is refused too. Only `execute_model` and
        `execute_dummy_batch` count as a step: sampling belongs to the same step.
        """
        counts, finisher = phase is Phase.FORWARD, self._finisher

        def run(*args: Any, **kwargs: Any) -> Any:
            if self._fenced_by is not None:
                if counts and self._takes_part:
                    self._join(phase, *args)
                raise self._refusal()
            if counts:
                self.steps += 1
                if finisher is not None:
                    finisher.begin(*args)
            try:
                result = step(*args, **kwargs)
            except Exception as error:
                self.close(error, phase)
                raise
            if counts and finisher is not None:
                finisher.end()
            if self._fenced_by is not None:
                raise self._refusal()
            if hasattr(result, "get_output"):  # computed by another thread, perhaps in a later epoch
                setattr(result, _EPOCH, self._epoch)
            return result

        return run

    def complete(self, output: Any, compute: Callable[[Callable[[], Any]], Any]) -> Any:
        """Return what an asynchronous output of a step contains, or the error that replaces the contents.

        An output of an earlier epoch is refused, and an error in such an output is no fault of the present epoch.
        Thread of the outputs.
        """
        epoch = getattr(output, _EPOCH, self._epoch)
        try:
            contents = compute(output.get_output)
        except Exception as error:
            if epoch == self._epoch:
                self.close(error, Phase.SAMPLE_END, is_in_step=False)
            return error
        return contents if self._fenced_by is None and epoch == self._epoch else self._refusal()

    def _refusal(self) -> RankFenced:
        return RankFenced(PublicText(f"rank {self._rank} is fenced since {self._fenced_by or TOLD_TO_STOP}"))

    def close(self, error: Exception, phase: Phase, *, is_in_step: bool = True) -> None:
        """Fence the rank after an error, report the fault once per epoch, and release the peers from collectives.

        The peers are released by taking part in the rest of the step, or else by breaking collectives.

        Args:
            is_in_step: the main thread has left its step by the error; False on the thread of the outputs.
        """
        fault = self._fault(error, phase)
        why_not = self._why_not_finish(fault, is_in_step=is_in_step)
        if self._reported_in != self._epoch:
            self._close_first(error, fault, why_not)
        elif why_not is not None:
            self._give_up(error, phase)
        release_memory(error)  # what is left of the step needs memory, and so does the retry
        if is_in_step and self._takes_part and self._finisher is not None:
            try:
                self._finisher.finish()
            except Exception as again:
                self._give_up(again, phase)

    def _close_first(self, error: Exception, fault: Fault, why_not: str | None) -> None:
        fenced_by = str(account_of(error))
        with self._lock:
            finishes = why_not is None and self._fenced_by is None  # else it was told to stop meanwhile
            self._fenced_by, self._fenced_in = fenced_by, self._epoch
            self._reported_in = self._epoch
            self._takes_part = finishes
            if self._flag is not None:  # before the first collective that follows: no reply may overtake it
                self._flag.put(raised=True)
            # Report before the break: errors of the peers follow from the break and must not arrive before the cause.
            self._report(fault, self._epoch, finishes=finishes)
            if not finishes:
                self._communicators.break_all()
        if self._finisher is not None and not finishes:
            logger.info("rank %d breaks its collectives: %s", self._rank, why_not or TOLD_TO_STOP)

    def _why_not_finish(self, fault: Fault, *, is_in_step: bool) -> str | None:
        if self._finisher is None or self._flag is None:
            return "steps are not finished here"
        if not self._flag.is_read:
            return "the engine core does not see the flag of this rank"
        return self._finisher.why_not(fault.fault_class, is_in_step=is_in_step)

    def _join(self, phase: Phase, *args: Any) -> None:
        """Take part in a step that was queued before the engine core knew."""
        assert self._finisher is not None
        try:
            self._finisher.join(*args)
        except Exception as again:
            self._give_up(again, phase)

    def _give_up(self, error: Exception, phase: Phase) -> None:
        """Break collectives after all, because the rank cannot take part; in a step that was broken, do nothing."""
        fault = self._fault(error, phase)
        with self._lock:
            if self._takes_part:
                self._takes_part = False
                self._report(fault, self._epoch)
                self._communicators.break_all()
                logger.error(
                    "rank %d cannot take part in a step, and breaks its collectives", self._rank, exc_info=error
                )

    def stop(self, epoch: int) -> int | None:
        """Take no further step of `epoch` and break all collectives.

        Returns:
            Number of connections broken; None when a later epoch has begun here, and nothing was done.
        """
        with self._lock:
            if epoch < self._restore_epoch:
                return None
            self._fenced_in = epoch
            self._fenced_by = self._fenced_by or TOLD_TO_STOP
            self._takes_part = False
            return self._communicators.break_all()

    def has_left(self, epoch: int) -> bool:
        """Tell whether no step of `epoch` can be under way: a restore to a later epoch has begun, even if it failed."""
        return self._restore_epoch > min(epoch, self._epoch)

    def begin_restore(self, epoch: int) -> None:
        """Ignore commands of epochs before `epoch` from now on."""
        with self._lock:
            self._restore_epoch = epoch

    def fail_restore(self, error: Exception, epoch: int) -> None:
        """Report that a restore failed, at once: the peers would wait for the rank in the rendezvous."""
        with self._lock:
            self._takes_part = False
            self._report(self._fault(error, Phase.REBUILD), epoch)
            self._communicators.break_all()

    def reopen(self, epoch: int) -> None:
        """Take steps again under `epoch`, unless the rank was stopped again meanwhile."""
        with self._lock:
            self._epoch = epoch
            self._takes_part = False
            if self._fenced_in < epoch:
                self._fenced_by = None
                if self._flag is not None:
                    self._flag.put(raised=False)

    def begin_anew(self) -> None:
        """Count epochs from the first again, for another engine core. Raises `RankFenced` for a fenced rank."""
        with self._lock:
            if self._fenced_by is not None:
                raise self._refusal()
            self._epoch = self._restore_epoch = self._fenced_in = 0
            self._reported_in = -1
            self._takes_part = False

    def _fault(self, error: Exception, phase: Phase) -> Fault:
        return fault_of(
            error,
            self._classifier,
            engine_id=self._engine_id,
            rank=self._rank,
            phase=getattr(error, "phase", phase),
            step=self.steps,
            at=time.time(),
        )

    def _report(self, fault: Fault, epoch: int, *, finishes: bool = False) -> None:
        if self.reporter is not None:
            self.reporter.report(fault, epoch, finishes=finishes)
