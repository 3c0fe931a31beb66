"""Faults of the matrix: where each one strikes, on a rank or engine core of the row's server."""

from __future__ import annotations

import enum

from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec

PART_FAULT = "HOLDFAST_BENCH_RAISE"  # a path: where a file appears, the next draft or encoding raises


class Column(enum.StrEnum):
    """Fault kinds, in the order in which a server meets them."""

    DECODE = "exception in decode"
    PREFILL = "exception in prefill"
    PART = "exception in encoder or draft"
    WORKER_STANDBY = "killed worker, preloaded standby"
    WORKER = "killed worker, no standby"
    HANG = "hang"
    ENGINE_CORE = "killed engine core"

    @property
    def loses_cache(self) -> bool:
        """Tell whether prompts are computed again after the fault."""
        return self not in (Column.DECODE, Column.PART)

    @property
    def wants_standby(self) -> bool:
        return self is Column.WORKER_STANDBY


def injection(column: Column, place: tuple[int, int], after_steps: int) -> InjectionSpec | None:
    """Return the fault to arm before the load; None for a fault that a file arms."""
    engine_id, rank = place
    after_steps = 0 if column is Column.PREFILL else after_steps
    if column is Column.ENGINE_CORE:
        return InjectionSpec(
            phase=Phase.SCHEDULE_END, kind=FaultKind.KILL, engine_id=engine_id, after_steps=after_steps
        )
    kinds = {
        Column.DECODE: FaultKind.RAISE,
        Column.PREFILL: FaultKind.RAISE,
        Column.HANG: FaultKind.HANG,
        Column.WORKER_STANDBY: FaultKind.KILL,
        Column.WORKER: FaultKind.KILL,
    }
    if column not in kinds:
        return None
    return InjectionSpec(
        phase=Phase.FORWARD, kind=kinds[column], engine_id=engine_id, rank=rank, after_steps=after_steps
    )
