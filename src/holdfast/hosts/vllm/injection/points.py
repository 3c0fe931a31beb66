"""Injected faults, at the phases of a step. Present only in a server started with fault injection."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec, Trap
from holdfast.hosts.vllm.injection.effects import happen

Step = Callable[..., Any]


class Traps:
    """The armed faults of one process. FaultInjector replaces the tuple as a whole: passing takes no lock."""

    def __init__(self) -> None:
        self._traps: tuple[Trap, ...] = ()
        self.batch: Collection[str] = ()  # the requests of the step under way

    def arm(self, spec: InjectionSpec) -> None:
        self._traps = (*(t for t in self._traps if not t.spent), Trap(spec))

    def armed(self, phase: Phase) -> InjectionSpec | None:
        """The first fault that is armed at `phase`."""
        return next((t.spec for t in self._traps if t.spec.phase is phase and not t.spent), None)

    def passes(self, phase: Phase) -> None:
        """One passage of `phase`. Raises, or does worse, when a fault is due."""
        for trap in self._traps:
            if trap.spec.phase is phase and trap.spec.kind is not FaultKind.NAN and trap.passes(self.batch):
                happen(trap.spec)

    def spoils(self) -> list[InjectionSpec]:
        """One computation of logits: the faults that spoil it."""
        return [trap.spec for trap in self._traps if trap.spec.kind is FaultKind.NAN and trap.passes(self.batch)]


# Before and after which phases each of a worker's step methods stands.
_AROUND = {
    "execute_model": (Phase.STEP_START, Phase.STEP_END),
    "sample_tokens": (Phase.SAMPLE_START, Phase.SAMPLE_END),
}


def raise_at(traps: Traps, name: str, step: Step) -> Step:
    """A worker's step method that passes the phases before and after it."""
    if name not in _AROUND:
        return step
    before, after = _AROUND[name]

    def run(*args: Any, **kwargs: Any) -> Any:
        order = args[0] if args else None
        if getattr(order, "total_num_scheduled_tokens", 1) == 0:
            return step(*args, **kwargs)
        traps.batch = getattr(order, "num_scheduled_tokens", traps.batch)  # sampling is of the same requests
        traps.passes(before)
        result = step(*args, **kwargs)
        traps.passes(after)
        return result

    return run


def arm_model(traps: Traps, runner: Any) -> None:
    """Let the middle of the model's forward pass be a phase."""
    model = runner.model
    stage = getattr(getattr(model, "model", model), "layers", ())
    layers = [layer for layer in stage if next(layer.parameters(), None) is not None]  # a pipeline stage has few
    middle = layers[len(layers) // 2] if layers else model
    middle.register_forward_pre_hook(lambda *_: traps.passes(Phase.FORWARD))


def arm_logits(traps: Traps, runner: Any) -> None:
    """Let logits be spoiled as they are computed."""
    compute = getattr(runner.model, "compute_logits", None)
    if compute is None:
        return

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        logits = compute(*args, **kwargs)
        if logits is not None and len(logits):
            for spec in traps.spoils():
                logits[_rows_of(spec, len(logits), runner)] = float("nan")
        return logits

    runner.model.compute_logits = spoiled


def _rows_of(spec: InjectionSpec, rows: int, runner: Any) -> slice | list[int]:
    batch = getattr(getattr(runner, "input_batch", None), "req_ids", None)  # of runner V1
    if spec.request and batch is not None:
        return [row for row, request in enumerate(batch[:rows]) if request and spec.request in request]
    if spec.request_index == 0:
        return slice(None)
    last = min(spec.request_index, rows)
    return slice(last - 1, last)


def arm_engine(traps: Traps, engine: Any) -> None:
    """Let an engine core's own phases be injected: instance attributes over the host's methods."""
    scheduler = engine.scheduler
    schedule, update = scheduler.schedule, scheduler.update_from_output
    append, attach_details = scheduler._update_request_with_output, engine._attach_iteration_details
    passed = [0]

    def around_schedule(*args: Any, **kwargs: Any) -> Any:
        traps.passes(Phase.SCHEDULE_START)
        output = schedule(*args, **kwargs)
        if output.total_num_scheduled_tokens:
            traps.batch = output.num_scheduled_tokens
            traps.passes(Phase.SCHEDULE_END)
        return output

    def before_update(*args: Any, **kwargs: Any) -> Any:
        traps.batch = args[0].num_scheduled_tokens
        traps.passes(Phase.OUTPUT_START)
        passed[0] = 0
        return update(*args, **kwargs)

    def after_append(*args: Any, **kwargs: Any) -> Any:
        # The nastiest place: the token stands in the request and in no output yet.
        result = append(*args, **kwargs)
        spec = traps.armed(Phase.OUTPUT_REQUEST)
        passed[0] += 1
        if spec is not None and passed[0] == spec.request_index:
            traps.passes(Phase.OUTPUT_REQUEST)
        return result

    def after_update(*args: Any, **kwargs: Any) -> Any:
        traps.passes(Phase.OUTPUT_END)
        return attach_details(*args, **kwargs)

    if hasattr(engine, "_has_global_unfinished_reqs"):
        arm_agreement(traps, engine)
    scheduler.schedule, scheduler.update_from_output = around_schedule, before_update
    scheduler._update_request_with_output, engine._attach_iteration_details = after_append, after_update


def arm_agreement(traps: Traps, engine: Any) -> None:
    """Let the moment before the data-parallel ranks agree whether to go on be a phase."""
    agree = engine._has_global_unfinished_reqs

    def before_agreeing(local_unfinished: bool) -> Any:
        following = engine.step_counter + 1
        if following == 1 or following % engine.dp_sync_interval == 0:
            traps.passes(Phase.DP_SYNC)
        return agree(local_unfinished)

    engine._has_global_unfinished_reqs = before_agreeing
