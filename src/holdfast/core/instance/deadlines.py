"""What is due in a lockstep group because time has passed: pure functions `(group, now, bounds) -> what is due`.

Only looks; never changes anything.
"""

from __future__ import annotations

from holdfast.core.config import HoldfastConfig
from holdfast.core.instance.group import STOPPING, Engine, LockstepGroup
from holdfast.core.states import EngineState


def find_overdue(group: LockstepGroup, now: float, config: HoldfastConfig) -> tuple[Engine, str] | None:
    """The engine that did not come to an end in time with what it is at, and the reason that says so."""
    if first := _first_to_stop(group):
        bound_s = config.containment_timeout_s
        is_late = now - first.stopping_since >= bound_s
        return (first, _did_not_stand_still(first, bound_s)) if is_late else None
    if recovering := group.in_state(EngineState.RECOVERING):
        late = f"engine {recovering[0].engine_id} did not end its recovery in time"
        return (recovering[0], late) if now - group.command_at >= _recovery_bound_s(group, config) else None
    return None


def is_to_harden(group: LockstepGroup, now: float, soft_pause_s: float) -> bool:
    """Whether a soft pause waits for its step boundary for too long, and a hard one could be survived."""
    first = _first_to_stop(group)
    could_not_go_on = group.unrebuildable and not group.is_alone
    if first is None or not group.soft or could_not_go_on:
        return False
    return now - first.stopping_since >= soft_pause_s


def is_to_affirm(group: LockstepGroup, now: float, config: HoldfastConfig, affirm_s: float) -> bool:
    """Whether engines that stand are to hear again that somebody lives: well before they take silence for the end."""
    extra_wait_s = config.engine_recovery_timeout_s + config.containment_timeout_s
    return now - group.affirmed_at >= min(affirm_s, extra_wait_s / 3)


def find_unanswered(group: LockstepGroup, now: float, config: HoldfastConfig) -> list[tuple[Engine, str]]:
    """Faults that were to be armed and nobody said whether they are: the engine and the command's id."""
    bound_s = config.drain_timeout_s
    return [(e, command_id) for e in group.engines for command_id, at in e.armed.items() if now - at >= bound_s]


def _first_to_stop(group: LockstepGroup) -> Engine | None:
    return min(group.in_state(*STOPPING), key=lambda e: e.stopping_since, default=None)


def _recovery_bound_s(group: LockstepGroup, config: HoldfastConfig) -> float:
    """Longer than every bounded wait of the host's recovery: what it says itself says more."""
    rebuild_s = config.rebuild_timeout_s if group.rebuilding else 0.0
    replace_s = config.worker_start_timeout_s if group.replacing else 0.0
    return config.containment_timeout_s + config.drain_timeout_s + rebuild_s + replace_s


def _did_not_stand_still(engine: Engine, bound_s: float) -> str:
    if engine.state is EngineState.PAUSING:
        return f"engine {engine.engine_id} was told to pause and did not stand still within {bound_s:g} s"
    return f"engine {engine.engine_id} reported a fault and did not stand still within {bound_s:g} s"
