"""Fault injection: the points of a step, and the effects. Present only in a server started with fault injection.

Every wait of an effect is bounded: a test may be forgotten.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any, cast

import msgspec

from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import ArmedFault, FaultKind, InjectedFault, InjectionSpec, UncontainedFault

Step = Callable[..., Any]


class ArmedFaults:
    """The armed faults of a process. Any thread arms; the tuple is replaced as a whole, so a step takes no lock."""

    def __init__(self) -> None:
        self._armed: tuple[ArmedFault, ...] = ()
        self.batch: Collection[str] = ()  # the requests of the current step
        self._at_line: _RaiseAtLine | None = None

    def arm(self, spec: InjectionSpec) -> None:
        self._armed = (*(fault for fault in self._armed if not fault.spent), ArmedFault(spec))

    def disarm(self) -> None:
        """Forget every fault, as a new process would."""
        self._armed = ()

    def armed(self, phase: Phase) -> InjectionSpec | None:
        """Return the first fault that is armed at `phase`."""
        return next((f.spec for f in self._armed if f.spec.phase is phase and not f.spent), None)

    def reach(self, phase: Phase) -> None:
        """Count a passage of `phase` and trigger every fault that is due, see `trigger`."""
        for fault in self._armed:
            if fault.spec.phase is phase and fault.spec.kind is not FaultKind.NAN and fault.is_due(self.batch):
                if fault.spec.lines:
                    self._at_line = _RaiseAtLine(fault.spec)
                else:
                    trigger(fault.spec)

    def around(self, step: Step, *args: Any, **kwargs: Any) -> Any:
        """Call a part of a step; raise at the line that a fault counts to. Without such a fault nothing is traced."""
        if self._at_line is None:
            return step(*args, **kwargs)
        tracer = self._at_line
        sys.settrace(tracer.trace)
        try:
            return step(*args, **kwargs)
        finally:
            sys.settrace(None)
            if tracer.left == 0:
                self._at_line = None

    def due_for_logits(self) -> list[InjectionSpec]:
        """Count a computation of logits; return the faults that overwrite logits in the computation."""
        return [fault.spec for fault in self._armed if fault.spec.kind is FaultKind.NAN and fault.is_due(self.batch)]


class _RaiseAtLine:
    """Count the lines of the host's Python code that a thread runs, and raise at one."""

    def __init__(self, spec: InjectionSpec) -> None:
        self.left = spec.lines
        self._spec = spec

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "call":
            return self.trace if _HOST_FILES in frame.f_code.co_filename else None
        if event == "line" and self.left:
            self.left -= 1
            if not self.left:
                where = f"{frame.f_code.co_filename.rpartition(_HOST_FILES)[2]}:{frame.f_lineno}"
                raise InjectedFault(msgspec.structs.replace(self._spec, message=f"{self._spec.message} at {where}"))
        return self.trace


_HOST_FILES = f"{os.sep}vllm{os.sep}"

# Phases before and after each of a worker's step methods.
_AROUND = {
    "execute_model": (Phase.STEP_START, Phase.STEP_END),
    "sample_tokens": (Phase.SAMPLE_START, Phase.SAMPLE_END),
}


def inject_around(faults: ArmedFaults, name: str, step: Step) -> Step:
    """Wrap a worker's step method with the phases before and after the step; further methods stay as they are."""
    if name not in _AROUND:
        return step
    before, after = _AROUND[name]

    def run(*args: Any, **kwargs: Any) -> Any:
        planned = args[0] if args else None
        if getattr(planned, "total_num_scheduled_tokens", 1) == 0:
            return step(*args, **kwargs)
        # Sampling belongs to the requests of the call before, and has no such argument.
        faults.batch = getattr(planned, "num_scheduled_tokens", faults.batch)
        faults.reach(before)
        result = faults.around(step, *args, **kwargs)
        faults.reach(after)
        return result

    return run


def arm_model(faults: ArmedFaults, runner: Any) -> None:
    """Inject `Phase.FORWARD` in the middle of the model's forward pass."""
    model = getattr(runner.model, "language_model", runner.model)
    stage = getattr(getattr(model, "model", model), "layers", ())
    layers = [layer for layer in stage if next(layer.parameters(), None) is not None]  # a pipeline stage has some
    middle = layers[len(layers) // 2] if layers else model
    middle.register_forward_pre_hook(lambda *_: faults.reach(Phase.FORWARD))


def arm_logits(faults: ArmedFaults, runner: Any) -> None:
    """Inject NaN into logits as they are computed."""
    compute = getattr(runner.model, "compute_logits", None)
    if compute is None:
        return

    def overwritten(*args: Any, **kwargs: Any) -> Any:
        logits = compute(*args, **kwargs)
        if logits is not None and len(logits):
            for spec in faults.due_for_logits():
                logits[_rows_of(spec, len(logits), runner)] = float("nan")
        return logits

    runner.model.compute_logits = overwritten


def _rows_of(spec: InjectionSpec, rows: int, runner: Any) -> slice | list[int]:
    batch = getattr(getattr(runner, "input_batch", None), "req_ids", None)  # of runner V1
    if spec.request and batch is not None:
        return [row for row, request in enumerate(batch[:rows]) if request and spec.request in request]
    if spec.request_index == 0:
        return slice(None)
    last = min(spec.request_index, rows)
    return slice(last - 1, last)


def arm_engine(faults: ArmedFaults, engine: Any) -> None:
    """Inject the phases of an engine core, by instance attributes over the host's methods."""
    scheduler = engine.scheduler
    schedule, update = scheduler.schedule, scheduler.update_from_output
    append, attach_details = scheduler._update_request_with_output, engine._attach_iteration_details
    passed = [0]

    def around_schedule(*args: Any, **kwargs: Any) -> Any:
        faults.reach(Phase.SCHEDULE_START)
        output = schedule(*args, **kwargs)
        if output.total_num_scheduled_tokens:
            faults.batch = output.num_scheduled_tokens
            faults.reach(Phase.SCHEDULE_END)
        return output

    def before_update(*args: Any, **kwargs: Any) -> Any:
        faults.batch = args[0].num_scheduled_tokens
        faults.reach(Phase.OUTPUT_START)
        passed[0] = 0
        return update(*args, **kwargs)

    def after_append(*args: Any, **kwargs: Any) -> Any:
        # The hardest point: the request has the token, and no output has it yet.
        result = append(*args, **kwargs)
        spec = faults.armed(Phase.OUTPUT_REQUEST)
        passed[0] += 1
        if spec is not None and passed[0] == spec.request_index:
            faults.reach(Phase.OUTPUT_REQUEST)
        return result

    def after_update(*args: Any, **kwargs: Any) -> Any:
        faults.reach(Phase.OUTPUT_END)
        return attach_details(*args, **kwargs)

    if hasattr(engine, "_has_global_unfinished_reqs"):
        arm_agreement(faults, engine)
    scheduler.schedule, scheduler.update_from_output = around_schedule, before_update
    scheduler._update_request_with_output, engine._attach_iteration_details = after_append, after_update


def arm_agreement(faults: ArmedFaults, engine: Any) -> None:
    """Inject `Phase.DP_SYNC` just before the data-parallel ranks agree whether to take another step."""
    agree = engine._has_global_unfinished_reqs

    def before_agreeing(local_unfinished: bool) -> Any:
        following = engine.step_counter + 1
        if following == 1 or following % engine.dp_sync_interval == 0:
            faults.reach(Phase.DP_SYNC)
        return agree(local_unfinished)

    engine._has_global_unfinished_reqs = before_agreeing


# ---- effects

LONGEST_S = 3600.0


def trigger(spec: InjectionSpec) -> None:
    """Carry out an injected fault in the calling thread.

    Raises:
        InjectedFault: at once, or after `LONGEST_S` for a hang; never for `slow`.
    """
    match spec.kind:
        case FaultKind.RAISE | FaultKind.NAN:
            pass
        case FaultKind.CRASH:
            raise UncontainedFault(spec)
        case FaultKind.SLOW:
            time.sleep(spec.seconds)
            return
        case FaultKind.OOM:
            raise _out_of_memory(spec)
        case FaultKind.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case FaultKind.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        case FaultKind.HANG:
            threading.Event().wait(LONGEST_S)
        case FaultKind.SPIN:
            _spin(time.monotonic() + LONGEST_S)
        case FaultKind.DEADLOCK:
            _take_twice(threading.Lock())
    raise InjectedFault(spec)


def _out_of_memory(spec: InjectionSpec) -> Exception:
    """Make the error that torch raises for any device, with the phase of an injected fault."""
    from torch import OutOfMemoryError

    error = OutOfMemoryError(f"CUDA out of memory. {spec.message}")
    error.phase = spec.phase
    return cast(Exception, error)


def _spin(until: float) -> None:
    while time.monotonic() < until:
        pass


def _take_twice(lock: threading.Lock) -> None:
    with lock:
        lock.acquire(timeout=LONGEST_S)
