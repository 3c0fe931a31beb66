"""What to do about a fault: pure functions `(now, snapshot, config) -> (action, reason)`."""

from __future__ import annotations

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.poison.numerics import Named, names_others
from holdfast.core.policy.actions import Action, Decision, growing_pause_s, recent
from holdfast.core.policy.capacity import RanksOut
from holdfast.core.policy.engines import decide_on_engine, decide_replacement
from holdfast.core.policy.reasons import WHY_RESTART, why_restart, why_retry

# Most errors leave a process intact, also those of which nobody has heard: one retry is cheap, and wrong at most
# once. Of two in a row nobody knows that the state is intact, so a new process comes before the budget is used up.
MAX_UNKNOWN_RETRIES = 1
_NONE_OUT = RanksOut()


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """What the decision depends on: the fault, when it began, and the tries before it (seconds).

    `fault` is none where somebody only asked for a pause; `broken` says that collectives have to be
    rebuilt, `unrebuildable` what that could not bring back. `wants_restart` says that a rank needs a new
    process, `asked` that an operator wants it; `failed_restarts` counts those of this incident. `named` are the
    requests that earlier numerical faults named, and when they were retried.
    `unknown_retried_at` are the retries among `retried_at` that were made for a fault of class unknown. `began_at` is
    when the wait for an instruction began, `opened_at` when everything was last well; `joins`: nothing
    is wrong but what the loss of a process has broken, and another one in its place is there. `others` are the engine
    cores that could serve on without this one.
    """

    fault: Fault | None
    began_at: float
    retried_at: tuple[float, ...] = ()
    unknown_retried_at: tuple[float, ...] = ()
    named: tuple[Named, ...] = ()
    restarted_at: tuple[float, ...] = ()
    failed_restarts: int = 0
    broken: bool = False
    unrebuildable: tuple[str, ...] = ()
    paused_by_hand: bool = False
    wants_restart: bool = False
    asked: bool = False
    engine_restarted_at: tuple[float, ...] = ()
    in_lockstep: bool = False
    out: RanksOut = _NONE_OUT
    opened_at: float | None = None
    joins: bool = False
    search_progressed: bool = False
    others: int = 0


def decide_repair(now: float, incident: Incident, config: HoldfastConfig) -> Decision:
    """The repair for a lockstep group that stands held."""
    decision = _decide_repair(now, incident, config)
    if config.fault_policy != "dry-run":
        return decision
    would = _decide_repair(now, incident, _left_to_itself(config))
    if would.action is decision.action:
        return decision
    reason = f"dry run: would {would.action}: {would.reason}; {decision.reason}"
    return msgspec.structs.replace(decision, reason=reason, would=would.action)


def _decide_repair(now: float, incident: Incident, config: HoldfastConfig) -> Decision:
    if unrepairable := _beyond_repair(incident):
        return _decide_replacement(now, incident, config, unrepairable)
    if incident.wants_restart and not config.max_worker_restarts and not incident.asked:
        return _decide_restart(now, incident, config, why_restart(incident.fault))  # the end, also of a pause by hand
    if incident.paused_by_hand:
        return Decision(Action.AWAIT, "paused by hand; goes on when told to resume")
    if incident.asked:
        return Decision(Action.RESTART_WORKERS, "asked for; only the named ranks get a new process")
    if incident.joins and not incident.wants_restart:
        return Decision(Action.RETRY, "a process that took another one's place is let in; collectives are rebuilt")
    if config.fault_policy != "auto" and incident.fault is not None:
        return decide_wait(now, incident, config)
    return _climb(now, incident, config)


def _left_to_itself(config: HoldfastConfig) -> HoldfastConfig:
    """The settings where nobody outside is asked."""
    return msgspec.structs.replace(config, fault_policy="auto", external_fallback="none")


def _climb(now: float, incident: Incident, config: HoldfastConfig) -> Decision:
    """The lowest rung that can help and is not used up."""
    if incident.wants_restart:
        return _decide_restart(now, incident, config, why_restart(incident.fault))
    return _decide_retry(now, incident, config)


def _decide_retry(now: float, incident: Incident, config: HoldfastConfig) -> Decision:
    if incident.search_progressed:
        return Decision(Action.RETRY, _NARROWS)
    if _is_sick(now, incident, config) and config.max_worker_restarts:
        return _decide_restart(now, incident, config, _SICK)
    exhausted = _why_no_retry(now, incident, config)
    if exhausted is None:
        tries, limit = len(_retries(now, incident, config)) + 1, config.max_retries
        repair = "its collectives are rebuilt; " if incident.broken else ""
        reason = f"{why_retry(incident.fault)}; {repair}retry {tries} of {limit}"
        return Decision(Action.RETRY, reason, tries=tries, limit=limit)
    if incident.fault is not None and incident.fault.rank is not None and config.max_worker_restarts:
        return _decide_restart(now, incident, config, exhausted)
    return _decide_replacement(now, incident, config, exhausted)


_SICK = "what is no number came up for one request and then for another: it is the rank"
_NARROWS = "a request is suspected and fewer are left now: not counted as a try"


def _is_sick(now: float, incident: Incident, config: HoldfastConfig) -> bool:
    """Whether a rank computes what is no number for different requests, which then are not to blame."""
    known = [named for named in incident.named if recent((named[0],), now, config.retry_window_s, incident.opened_at)]
    has_rank = incident.fault is not None and incident.fault.rank is not None
    return has_rank and names_others(incident.fault, known)


def _retries(now: float, incident: Incident, config: HoldfastConfig) -> tuple[float, ...]:
    return recent(incident.retried_at, now, config.retry_window_s, incident.opened_at)


def _why_no_retry(now: float, incident: Incident, config: HoldfastConfig) -> str | None:
    window = f"{config.retry_window_s:g} s"
    retries = len(_retries(now, incident, config))
    if retries >= config.max_retries:
        limit = f"(--max-retries {config.max_retries})"
        return f"{retries} retries within {window} did not last {limit}; last fault: {_summary(incident)}"
    is_unknown = incident.fault is not None and incident.fault.fault_class is FaultClass.UNKNOWN
    unknown = recent(incident.unknown_retried_at, now, config.retry_window_s, incident.opened_at)
    if is_unknown and len(unknown) >= MAX_UNKNOWN_RETRIES:
        return f"an unknown error was retried within {window} already, and here is one again: {_summary(incident)}"
    return None


def _decide_restart(now: float, incident: Incident, config: HoldfastConfig, why: str) -> Decision:
    if incident.search_progressed and config.max_worker_restarts:
        return Decision(Action.RESTART_WORKERS, f"{why}; its rank gets a new process; {_NARROWS}")
    restarts = len(recent(incident.restarted_at, now, config.worker_restart_window_s, incident.opened_at))
    if no_more := _why_no_restart(restarts, incident, config):
        return _decide_replacement(now, incident, config, f"{why}; {no_more}")
    retry_at = _next_try_at(incident)
    if now < retry_at:
        wait = f"the restart failed {incident.failed_restarts} times, tried again in {retry_at - now:.1f} s"
        return Decision(Action.AWAIT, f"{why}; {wait}", retry_at)
    tries, limit = restarts + 1, config.max_worker_restarts
    reason = f"{why}; its rank gets a new process; worker restart {tries} of {limit}"
    return Decision(Action.RESTART_WORKERS, reason, tries=tries, limit=limit)


def _why_no_restart(restarts: int, incident: Incident, config: HoldfastConfig) -> str | None:
    if not config.max_worker_restarts:
        return "workers are not restarted here (--max-worker-restarts 0)"
    if restarts >= config.max_worker_restarts:
        return (
            f"{restarts} worker restarts within {config.worker_restart_window_s:g} s did not last "
            f"(--max-worker-restarts {config.max_worker_restarts})"
        )
    return incident.out.too_many_to_restart(config.max_ranks_out)


def _decide_replacement(now: float, incident: Incident, config: HoldfastConfig, why: str) -> Decision:
    """The last rung, where no smaller repair is left."""
    if incident.in_lockstep and incident.broken and incident.unrebuildable:
        return Decision(Action.END, why)  # a newcomer could not join either
    tried_at = recent(incident.engine_restarted_at, now, config.engine_restart_window_s, incident.opened_at)
    return decide_on_engine(why, decide_replacement(tried_at, config, incident.out), incident.others, config)


def _next_try_at(incident: Incident) -> float:
    """At once the first time and after the first failure; then with growing pauses."""
    if incident.failed_restarts < 2 or not incident.restarted_at:
        return 0.0
    return incident.restarted_at[-1] + growing_pause_s(incident.failed_restarts - 1)


def decide_wait(now: float, incident: Incident, config: HoldfastConfig) -> Decision:
    """Whether to go on waiting for an instruction from outside, and what to do when none came."""
    if incident.fault is None or incident.paused_by_hand:
        return Decision(Action.AWAIT, "paused by hand; goes on when told to resume")
    left_s = config.engine_recovery_timeout_s - (now - incident.began_at)
    if left_s > 0:
        then = ", then by itself" if config.external_fallback == "auto" else ""
        return Decision(Action.AWAIT, f"waiting up to {left_s:.0f} s for an instruction{then}")
    silence = f"no instruction repaired it within {config.engine_recovery_timeout_s:g} s (--engine-recovery-timeout)"
    if config.external_fallback == "auto":
        climbing = _climb(now, incident, _left_to_itself(config))
        return msgspec.structs.replace(climbing, reason=f"{silence}; by itself: {climbing.reason}")
    return Decision(Action.END, f"{silence}; fault: {incident.fault.summary()}")


def _summary(incident: Incident) -> str:
    return "none" if incident.fault is None else incident.fault.summary()


def _beyond_repair(incident: Incident) -> str | None:
    fault = incident.fault
    if incident.broken and incident.unrebuildable:
        what = "; ".join(dict.fromkeys(incident.unrebuildable))
        return f"broken collectives cannot be rebuilt in place here ({what}); fault: {_summary(incident)}"
    if fault is not None and fault.fault_class is FaultClass.UNRESPONSIVE and fault.rank is None:
        # Nobody knows which process to replace: the engine core itself does not answer.
        return f"{WHY_RESTART[fault.fault_class]} and it is not known which; {fault.summary()}"
    return None
