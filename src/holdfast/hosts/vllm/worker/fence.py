"""The fence of a rank: a rank that raised takes no further step until a restore lets the rank back in.

Without the fence the steps already queued would run on a broken state, and in a lockstep group pair up with the wrong
collectives. A step under way as the fence closes may end as if nothing had happened: an aborted communicator leaves
any values. So the fence is looked at again before a result leaves the rank. On the step path the fence is one
attribute, read without a lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from holdfast.core.errors import RankFenced
from holdfast.core.faults.classification import Classifier, default_classifier, fault_of
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.redaction import PublicText, account_of
from holdfast.core.ports import Communicators, FaultReporter
from holdfast.hosts.vllm.protocol import TOLD_TO_STOP

Step = Callable[..., Any]

_EPOCH = "holdfast_epoch"  # attribute of an asynchronous output: the epoch of the step


class StepFence:
    """The fence and the step counter of a rank. Main thread, except for `stop`: any thread."""

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
        self._restore_epoch = 0  # the epoch of the last restore that began
        self._fenced_by: str | None = None
        self._fenced_in = 0
        self._reported_in = -1

    def fenced(self, phase: Phase, step: Step) -> Step:
        """Wrap a step so that a fenced rank refuses the step, and an exception fences the rank.

        The result of a step during which the fence was closed is refused too. Only `execute_model` and
        `execute_dummy_batch` count as a step: sampling belongs to the same step.
        """
        counts = phase is Phase.FORWARD

        def run(*args: Any, **kwargs: Any) -> Any:
            if self._fenced_by is not None:
                raise self._refusal()
            self.steps += counts
            try:
                result = step(*args, **kwargs)
            except Exception as error:
                self.close(error, phase)
                raise
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
                self.close(error, Phase.SAMPLE_END)
            return error
        return contents if self._fenced_by is None and epoch == self._epoch else self._refusal()

    def _refusal(self) -> RankFenced:
        return RankFenced(PublicText(f"rank {self._rank} is fenced since {self._fenced_by or TOLD_TO_STOP}"))

    def close(self, error: Exception, phase: Phase) -> None:
        """Fence the rank after an error, report the fault once per epoch, and release the peers from collectives."""
        if self._reported_in == self._epoch:
            return
        fenced_by = str(account_of(error))
        with self._lock:
            self._fenced_by, self._fenced_in = fenced_by, self._epoch
            self._reported_in = self._epoch
            # Report before the break: errors of the peers follow from the break and must not arrive before the cause.
            self._report(error, phase, self._epoch)
            self._communicators.break_all()

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
            self._report(error, Phase.REBUILD, epoch)
            self._communicators.break_all()

    def reopen(self, epoch: int) -> None:
        """Take steps again under `epoch`, unless the rank was stopped again meanwhile."""
        with self._lock:
            self._epoch = epoch
            if self._fenced_in < epoch:
                self._fenced_by = None

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
