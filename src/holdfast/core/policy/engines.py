"""What becomes of an engine core that is gone, or has to go: replaced, left out, or the end. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.core.config import HoldfastConfig
from holdfast.core.policy.actions import Action, Decision, Replacement, growing_pause_s
from holdfast.core.policy.capacity import RanksOut

_NONE_OUT = RanksOut()


def decide_on_engine(why: str, plan: Replacement, others: int, config: HoldfastConfig) -> Decision:
    """What becomes of an engine core that is gone, or has to go: replaced, left out, or the end of them all.

    `others` are the engine cores that could serve on without it: none where they wait for it in collectives.
    """
    reason = f"{why}; {plan.reason}"
    if plan.is_possible:
        return Decision(Action.RESTART_ENGINE, reason, after_s=plan.after_s, tries=plan.tries, limit=plan.limit)
    if not config.repairs_unasked or not others:
        return Decision(Action.END, reason)
    if others < config.min_engines:
        return Decision(Action.END, f"{reason}; without it {others} would serve (--min-engines {config.min_engines})")
    again = f"tried again in {config.engine_restart_window_s:g} s" if config.max_engine_restarts else "for good"
    return Decision(Action.LEAVE_OUT, f"{reason}; it is left out and {others} serve on; {again}")


def decide_replacement(tried_at: Sequence[float], config: HoldfastConfig, out: RanksOut = _NONE_OUT) -> Replacement:
    """Whether an engine core that is gone, or has to go, is replaced; `tried_at` are the times that count."""
    if not config.repairs_unasked:
        return Replacement(False, f"with --fault-policy {config.fault_policy} no engine core is restarted unasked")
    if not config.max_engine_restarts:
        return Replacement(False, "engine cores are not restarted here (--max-engine-restarts 0)")
    tries, limit = len(tried_at), config.max_engine_restarts
    if tries >= limit:
        window = f"{config.engine_restart_window_s:g} s"
        return Replacement(
            False, f"{tries} engine core restarts within {window} did not last (--max-engine-restarts {limit})"
        )
    if too_many := out.too_many_to_replace(config.max_ranks_out):
        return Replacement(False, too_many)
    reason = f"another engine core takes its place; engine core restart {tries + 1} of {limit}"
    return Replacement(True, reason, growing_pause_s(tries), tries=tries + 1, limit=limit)


def is_to_try_again(now: float, left_out_at: float, config: HoldfastConfig) -> bool:
    """Whether an engine core that was left out gets another process: once its budget has come back."""
    may_restart = config.repairs_unasked and config.max_engine_restarts > 0
    return may_restart and now - left_out_at >= config.engine_restart_window_s
