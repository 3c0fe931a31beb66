"""Decide about a lost engine core: replace, leave out, or end the instance. Pure functions."""

from __future__ import annotations

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.policy.actions import Action, Decision
from holdfast.core.policy.budget import backoff_s, engine_restart_intensity
from holdfast.core.policy.capacity import Capacity

_FULL_CAPACITY = Capacity()


def decide_on_engine(why: str, restart: Decision, siblings: int, config: HoldfastConfig) -> Decision:
    """Decide about an engine core that is lost or has to be killed, after `decide_engine_restart`.

    `siblings` is the number of engine cores that could serve on without this engine core: 0 in lockstep.
    """
    reason = f"{why}; {restart.reason}"
    if restart.action is Action.RESTART_ENGINE:
        return msgspec.structs.replace(restart, reason=reason)
    if not config.repairs_unasked or not siblings:
        return Decision(Action.END, reason)
    if siblings < config.min_engines:
        return Decision(
            Action.END, f"{reason}; only {siblings} engine cores would serve (--min-engines {config.min_engines})"
        )
    again = f"next try in {config.engine_restart_window_s:g} s" if config.max_engine_restarts else "not tried again"
    return Decision(Action.LEAVE_OUT, f"{reason}; left out, {siblings} engine cores serve on; {again}")


def decide_engine_restart(used: int, config: HoldfastConfig, capacity: Capacity = _FULL_CAPACITY) -> Decision:
    """Decide whether an engine core is replaced after `used` restarts that count: restart, or the end."""
    if not config.repairs_unasked:
        return Decision(
            Action.END, f"with --fault-policy {config.fault_policy} no engine core is restarted without a command"
        )
    if not config.max_engine_restarts:
        return Decision(Action.END, "engine core restarts are off (--max-engine-restarts 0)")
    refusal = engine_restart_intensity(config).exhausted(used) or capacity.why_no_engine_restart(config.max_ranks_out)
    if refusal is not None:
        return Decision(Action.END, refusal)
    tries, limit = used + 1, config.max_engine_restarts
    reason = f"replacing the engine core; engine core restart {tries} of {limit}"
    return Decision(Action.RESTART_ENGINE, reason, after_s=backoff_s(used), tries=tries, limit=limit)


def is_due_again(now: float, left_out_at: float, config: HoldfastConfig) -> bool:
    """Return whether a left-out engine core may start again, because the restart window is over."""
    may_restart = config.repairs_unasked and config.max_engine_restarts > 0
    return may_restart and now - left_out_at >= config.engine_restart_window_s
