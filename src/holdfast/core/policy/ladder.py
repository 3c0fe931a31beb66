"""Decisions: which repair a fault gets, rung by rung, and why. Pure functions of time, situation and settings.

Owns the actions, the reasons that people read, and the ladder from a retry to the end of the instance.
"""

from __future__ import annotations

import enum

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.poison.named import names_others
from holdfast.core.policy.incident import (
    Capacity,
    Situation,
    backoff_s,
    engine_restart_intensity,
    retry_intensity,
    unknown_retry_intensity,
    worker_restart_intensity,
)


class Action(enum.StrEnum):
    RETRY = "retry"  # rung 1: rewind the requests, rebuild broken collectives, resume
    RESTART_WORKERS = "restart-workers"  # rung 2: the same, after the sick ranks got a new process
    RESTART_ENGINE = "restart-engine"  # rung 3: replace the engine core's process and its workers
    LEAVE_OUT = "leave-out"  # rung 4: replace nothing, the remaining engine cores serve on
    AWAIT = "await-instruction"  # stay paused until an operator decides, or until a timeout
    END = "end-instance"  # no repair is left
    RESTART_PROCESS = "restart-process"  # for a process beside the engine cores, which no rung is about

    @property
    def rung(self) -> int:
        """Return the rung of the ladder, 0 for an action that is on none."""
        return _RUNGS.get(self, 0)


_RUNGS = {
    Action.RETRY: 1,
    Action.RESTART_WORKERS: 2,
    Action.RESTART_ENGINE: 3,
    Action.LEAVE_OUT: 4,
    Action.END: 5,
}


class Decision(msgspec.Struct, frozen=True):
    """Action with the reason for people and the figures behind the decision.

    `retry_at`: when to decide again (seconds). `after_s`: the backoff before a process is started. `tries`: how often
    this rung was taken within its window, this time included, of `limit`. `would`: the action that a dry run omits.
    """

    action: Action
    reason: str
    retry_at: float | None = None
    after_s: float = 0.0
    tries: int = 0
    limit: int = 0
    would: Action | None = None


WHY_RESTART = {
    FaultClass.DEVICE: "the device error is sticky and the worker cannot continue",
    FaultClass.WORKER_LOST: "a worker process was lost",
    FaultClass.UNRESPONSIVE: "a rank did not answer in time",
}
_WHY_RETRY = {
    FaultClass.NUMERICAL: "non-finite logits (NaN or Inf); the KV of the step is suspect, repeating the step",
    FaultClass.UNKNOWN: "unclassified error; retrying once",
}
_FIRST_REPAIRS = {
    FaultClass.COMMUNICATOR: "retry: rebuild the broken collectives, rewind the requests, resume",
    FaultClass.TRANSIENT: "retry: rewind the requests, resume",
    FaultClass.NUMERICAL: "retry: drop what the step wrote, repeat the step",
    FaultClass.UNKNOWN: "retry once; at the next within the retry window a new process for the rank",
}


def why_retry(fault: Fault | None) -> str:
    """Return why a group is retried with the present processes."""
    if fault is None:
        return "paused without a fault"
    return _WHY_RETRY.get(fault.fault_class, "exception with state intact")


def why_restart(fault: Fault | None) -> str:
    """Return why a rank gets a new process."""
    if fault is None or fault.fault_class not in WHY_RESTART:
        return "the process of a rank cannot be trusted any more"
    return f"{WHY_RESTART[fault.fault_class]}: {fault.summary()}"


def first_repair(fault_class: FaultClass) -> str:
    """Return the first repair of a fault of a class, for a fault of a known rank."""
    return _FIRST_REPAIRS.get(fault_class, "restart worker: a new process for the rank")


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
    refusal = (
        capacity.why_no_new_process(config.accept_stale_state)
        or engine_restart_intensity(config).exhausted(used)
        or capacity.why_no_engine_restart(config.max_ranks_out)
    )
    if refusal is not None:
        return Decision(Action.END, refusal)
    tries, limit = used + 1, config.max_engine_restarts
    reason = f"replacing the engine core; engine core restart {tries} of {limit}"
    return Decision(Action.RESTART_ENGINE, reason, after_s=backoff_s(used), tries=tries, limit=limit)


def is_due_again(now: float, left_out_at: float, config: HoldfastConfig) -> bool:
    """Return whether a left-out engine core may start again, because the restart window is over."""
    may_restart = config.repairs_unasked and config.max_engine_restarts > 0
    return may_restart and now - left_out_at >= config.engine_restart_window_s


_SICK = "non-finite logits for one request and then for another: the rank is at fault"
_PROGRESSED = "the search for a poison request has fewer suspects now: not counted as a try"
_PAUSED = "paused by operator; waiting for resume"


def decide_repair(now: float, situation: Situation, config: HoldfastConfig) -> Decision:
    """Decide how to repair a lockstep group in which every engine core is paused."""
    decision = _decide(now, situation, config)
    if config.fault_policy != "dry-run":
        return decision
    would = _decide(now, situation, _without_operator(config))
    if would.action is decision.action:
        return decision
    reason = f"dry run: would {would.action}: {would.reason}; {decision.reason}"
    return msgspec.structs.replace(decision, reason=reason, would=would.action)


def decide_wait(now: float, situation: Situation, config: HoldfastConfig) -> Decision:
    """Decide whether to wait longer for an operator's command, and what to do after the recovery timeout."""
    incident = situation.incident
    if incident.fault is None or incident.paused_by_operator:
        return Decision(Action.AWAIT, _PAUSED)
    left_s = config.engine_recovery_timeout_s - (now - incident.waiting_since)
    if left_s > 0:
        then = ", then the ladder decides" if config.external_fallback == "auto" else ""
        return Decision(Action.AWAIT, f"waiting up to {left_s:.0f} s for a command{then}")
    silence = f"no command repaired the fault within {config.engine_recovery_timeout_s:g} s (--engine-recovery-timeout)"
    if config.external_fallback == "auto":
        climbing = _climb(now, situation, _without_operator(config))
        return msgspec.structs.replace(climbing, reason=f"{silence}; the ladder decides: {climbing.reason}")
    return Decision(Action.END, f"{silence}; fault: {incident.fault.summary()}")


def _decide(now: float, situation: Situation, config: HoldfastConfig) -> Decision:
    incident = situation.incident
    if unrepairable := _why_unrepairable(situation):
        return _decide_engine_restart(now, situation, config, unrepairable)
    is_requested = incident.restart_command is not None
    if situation.needs_worker_restart and not config.max_worker_restarts and not is_requested:
        # Also during a pause by an operator: no command could repair that.
        return _decide_worker_restart(now, situation, config, why_restart(incident.fault))
    if incident.paused_by_operator:
        return Decision(Action.AWAIT, _PAUSED)
    if is_requested:
        return Decision(Action.RESTART_WORKERS, "ordered by operator; only the named ranks get a new process")
    if incident.is_joining and not situation.needs_worker_restart:
        return Decision(Action.RETRY, "the replacement of an engine core joins; collectives are rebuilt")
    if config.fault_policy != "auto" and incident.fault is not None:
        return decide_wait(now, situation, config)
    return _climb(now, situation, config)


def _without_operator(config: HoldfastConfig) -> HoldfastConfig:
    """Return the settings under which the ladder decides alone."""
    return msgspec.structs.replace(config, fault_policy="auto", external_fallback="none")


def _climb(now: float, situation: Situation, config: HoldfastConfig) -> Decision:
    """Decide for the lowest rung that can help and has budget left."""
    if situation.needs_worker_restart:
        return _decide_worker_restart(now, situation, config, why_restart(situation.fault))
    return _decide_retry(now, situation, config)


# ---- rung 1: retry


def _decide_retry(now: float, situation: Situation, config: HoldfastConfig) -> Decision:
    if situation.incident.search_progressed:
        return Decision(Action.RETRY, _PROGRESSED)
    has_rank = situation.fault is not None and situation.fault.rank is not None
    may_restart = has_rank and config.max_worker_restarts > 0
    if may_restart and _is_rank_sick(now, situation, config):
        return _decide_worker_restart(now, situation, config, _SICK)
    used = situation.budgets.retries.used(retry_intensity(config), now, situation.incident.opened_at)
    exhausted = _why_no_retry(now, used, situation, config)
    if exhausted is None:
        return _retry(now, used + 1, situation, config)
    if may_restart and not situation.fruitless.has_replaced:
        return _decide_worker_restart(now, situation, config, exhausted)
    return _decide_engine_restart(now, situation, config, exhausted)


def _retry(now: float, tries: int, situation: Situation, config: HoldfastConfig) -> Decision:
    """Retry, at once or after a pause that grows with the retries in a row after which no step ended well."""
    fruitless, limit = situation.fruitless, config.max_retries
    retry_at = situation.budgets.retries.last_at + fruitless.retry_pause_s
    if now < retry_at:
        wait = f"no step has ended well since {fruitless.retries} retries; next try in {retry_at - now:.1f} s"
        return Decision(Action.AWAIT, f"{why_retry(situation.fault)}; {wait}", retry_at)
    repair = "collectives are rebuilt; " if situation.needs_rebuild else ""
    reason = f"{why_retry(situation.fault)}; {repair}retry {tries} of {limit}"
    return Decision(Action.RETRY, reason, tries=tries, limit=limit)


def _is_rank_sick(now: float, situation: Situation, config: HoldfastConfig) -> bool:
    """Return whether a rank computed non-finite logits for different requests, so that no request is at fault."""
    intensity, opened_at = retry_intensity(config), situation.incident.opened_at
    recent = [named for named in situation.budgets.named_requests if intensity.counts(named[0], now, opened_at)]
    return not situation.incident.clears_rank and names_others(situation.fault, recent)


def _why_no_retry(now: float, used: int, situation: Situation, config: HoldfastConfig) -> str | None:
    if exhausted := retry_intensity(config).exhausted(used) or situation.fruitless.why_no_retry():
        return f"{exhausted}; last fault: {_summary(situation.fault)}"
    is_unknown = situation.fault is not None and situation.fault.fault_class is FaultClass.UNKNOWN
    intensity = unknown_retry_intensity(config)
    if is_unknown and intensity.exhausted(
        situation.budgets.unknown_retries.used(intensity, now, situation.incident.opened_at)
    ):
        window = f"{intensity.window_s:g} s"
        return (
            f"an unknown error was retried within {window} already and has occurred again: {_summary(situation.fault)}"
        )
    return None


# ---- rung 2: restart workers


def _decide_worker_restart(now: float, situation: Situation, config: HoldfastConfig, why: str) -> Decision:
    incident = situation.incident
    if incident.search_progressed and config.max_worker_restarts:
        return Decision(Action.RESTART_WORKERS, f"{why}; the rank gets a new process; {_PROGRESSED}")
    used = situation.budgets.worker_restarts.used(worker_restart_intensity(config), now, incident.opened_at)
    if refusal := _why_no_worker_restart(used, situation, config):
        return _decide_engine_restart(now, situation, config, f"{why}; {refusal}")
    retry_at = _next_worker_restart_at(situation)
    if now < retry_at:
        wait = f"the restart failed {incident.failed_restarts} times; next try in {retry_at - now:.1f} s"
        return Decision(Action.AWAIT, f"{why}; {wait}", retry_at)
    tries, limit = used + 1, config.max_worker_restarts
    reason = f"{why}; the rank gets a new process; worker restart {tries} of {limit}"
    return Decision(Action.RESTART_WORKERS, reason, tries=tries, limit=limit)


def _why_no_worker_restart(used: int, situation: Situation, config: HoldfastConfig) -> str | None:
    if not config.max_worker_restarts:
        return "worker restarts are off (--max-worker-restarts 0)"
    if stale := situation.capacity.why_no_new_process(config.accept_stale_state):
        return stale
    exhausted = worker_restart_intensity(config).exhausted(used) or situation.fruitless.why_no_worker_restart()
    return exhausted or situation.capacity.why_no_worker_restart(config.max_ranks_out)


def _next_worker_restart_at(situation: Situation) -> float:
    """Return when to restart workers: at once, also after the first failure, then with growing backoff."""
    failed = situation.incident.failed_restarts
    return situation.budgets.worker_restarts.last_at + backoff_s(max(0, failed - 1))


# ---- rungs 3 to 5: replace the engine core, leave it out, end


def _decide_engine_restart(now: float, situation: Situation, config: HoldfastConfig, why: str) -> Decision:
    if situation.is_lockstep and situation.needs_rebuild and situation.unrebuildable:
        return Decision(Action.END, why)  # a replacement could not join either
    used = situation.engine_restarts.used(engine_restart_intensity(config), now, situation.incident.opened_at)
    restart = decide_engine_restart(used, config, situation.capacity)
    if restart.action is Action.RESTART_ENGINE and (in_vain := situation.fruitless.why_no_engine_restart()):
        restart = Decision(Action.END, in_vain)
    return decide_on_engine(why, restart, situation.siblings, config)


def _why_unrepairable(situation: Situation) -> str | None:
    """Return why neither a retry nor a new worker can help, None where either may."""
    fault = situation.fault
    if situation.needs_rebuild and situation.unrebuildable:
        what = "; ".join(dict.fromkeys(situation.unrebuildable))
        return f"broken collectives cannot be rebuilt in place ({what}); fault: {_summary(fault)}"
    if fault is not None and fault.fault_class is FaultClass.UNRESPONSIVE and fault.rank is None:
        # No rank is known to be hung: the engine core itself does not answer.
        return f"{WHY_RESTART[fault.fault_class]} and which rank is unknown; {fault.summary()}"
    return None


def _summary(fault: Fault | None) -> str:
    return "none" if fault is None else fault.summary()
