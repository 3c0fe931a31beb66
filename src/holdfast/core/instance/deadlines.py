"""Deadlines of a lockstep group: pure functions `(group, now, settings) -> what is due`. Change nothing."""

from __future__ import annotations

from holdfast.core.config import HoldfastConfig
from holdfast.core.instance.group import STOPPING, Engine, LockstepGroup
from holdfast.core.policy.incident import Recovery
from holdfast.core.states import EngineState

SOFT_PAUSE_S = 1.0  # after that, a soft pause that has not reached a step boundary becomes a hard one
REPLACEMENT_MARGIN_S = 120.0  # what the end of the lost process and the first report may take, beside the start
KEEPALIVE_S = 10.0  # how often paused engine cores are told that the owner lives


def find_overdue(group: LockstepGroup, now: float, config: HoldfastConfig) -> tuple[Engine, str] | None:
    """Return the engine core that did not pause or recover in time, and the reason in words."""
    if first := _first_to_stop(group):
        bound_s = config.containment_timeout_s
        is_late = now - first.stopping_since >= bound_s
        return (first, _did_not_pause(first, bound_s)) if is_late else None
    recovering = group.in_state(EngineState.RECOVERING)
    if recovering and group.recovery and now - group.recovery.started_at >= _recovery_bound_s(group.recovery, config):
        return recovering[0], f"engine {recovering[0].engine_id} did not finish its recovery in time"
    return None


def find_late_replacement(group: LockstepGroup, now: float) -> Engine | None:
    """Return an engine core whose replacement has not reported within its bound.

    The host reports every start that fails, and sooner. This bound holds when that report never comes.
    """
    return next((e for e in group.in_state(EngineState.RESTARTING) if now >= e.replacement_due_at), None)


def replacement_bound_s(after_s: float, config: HoldfastConfig) -> float:
    """Return the seconds until a replacement that starts after `after_s` must have reported."""
    return after_s + config.engine_start_timeout_s + REPLACEMENT_MARGIN_S


def is_hard_pause_due(group: LockstepGroup, now: float) -> bool:
    """Return whether a soft pause has waited too long for a step boundary, and the group would survive a hard pause."""
    first = _first_to_stop(group)
    is_soft = group.incident is not None and group.incident.is_soft
    could_not_resume = group.unrebuildable and not group.is_single_rank
    if first is None or not is_soft or could_not_resume:
        return False
    return now - first.stopping_since >= SOFT_PAUSE_S


def is_keepalive_due(group: LockstepGroup, now: float, config: HoldfastConfig) -> bool:
    """Return whether the next keepalive is due, well before paused engine cores lose patience and end."""
    patience_s = config.engine_recovery_timeout_s + config.containment_timeout_s
    return now - group.keepalive_at >= min(KEEPALIVE_S, patience_s / 3)


def is_decision_due(group: LockstepGroup, now: float) -> bool:
    """Return whether the backoff before the next decision is over."""
    retry_at = group.incident.retry_at if group.incident else None
    return retry_at is not None and now >= retry_at


def find_unanswered(group: LockstepGroup, now: float, config: HoldfastConfig) -> list[tuple[Engine, str]]:
    """Return the commands to arm a fault that were not answered in time: the engine core and the command's id."""
    bound_s = config.drain_timeout_s
    return [(e, command_id) for e in group.engines for command_id, at in e.armed.items() if now - at >= bound_s]


def _first_to_stop(group: LockstepGroup) -> Engine | None:
    return min(group.in_state(*STOPPING), key=lambda e: e.stopping_since, default=None)


def _recovery_bound_s(recovery: Recovery, config: HoldfastConfig) -> float:
    """Return a time limit longer than every bounded wait of the host's recovery, because the host's errors say more."""
    rebuild_s = config.rebuild_timeout_s if recovery.rebuilds else 0.0
    replace_s = config.worker_start_timeout_s if recovery.replaces_workers else 0.0
    if recovery.replaces_workers and config.node_count > 1:
        replace_s += config.node_return_timeout_s
    return config.containment_timeout_s + config.drain_timeout_s + rebuild_s + replace_s


def _did_not_pause(engine: Engine, bound_s: float) -> str:
    if engine.state is EngineState.PAUSING:
        return f"engine {engine.engine_id} was told to pause and did not pause within {bound_s:g} s"
    return f"engine {engine.engine_id} reported a fault and did not pause within {bound_s:g} s"
