"""What to do about a fault: pure functions `(now, snapshot, config) -> (action, reason)`."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults import Fault, FaultClass

LONGEST_PAUSE_S = 30.0  # between tries to start a process again


class Action(enum.StrEnum):
    RETRY = "retry"  # rung 1: rewind the requests, rebuild broken collectives, go on
    RESTART_WORKERS = "restart-workers"  # rung 2: the same, after the sick ranks got a new process
    RESTART_ENGINE = "restart-engine"  # rung 3: another process in the place of the engine core, and of its workers
    AWAIT = "await-instruction"  # stay paused; somebody outside decides, or time
    END = "end-instance"  # nothing left that can help


class Decision(msgspec.Struct, frozen=True):
    """What to do and why; the reason is shown to people.

    `again_at`: decide anew then (seconds). `after_s`: the pause before another engine core is started.
    """

    action: Action
    reason: str
    again_at: float | None = None
    after_s: float = 0.0


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """What the decision depends on: the fault, when it began, and the tries before it (seconds).

    `fault` is none where somebody only asked for a pause; `broken` says that collectives have to be
    rebuilt, `unrebuildable` what that could not bring back. `wants_restart` says that a rank needs a new
    process, `asked` that an operator wants it; `failed_restarts` counts those of this incident.
    """

    fault: Fault | None
    began_at: float
    retried_at: tuple[float, ...] = ()
    restarted_at: tuple[float, ...] = ()
    failed_restarts: int = 0
    broken: bool = False
    unrebuildable: tuple[str, ...] = ()
    paused_by_hand: bool = False
    wants_restart: bool = False
    asked: bool = False
    engine_restarted_at: tuple[float, ...] = ()
    in_lockstep: bool = False
    narrows: bool = False


@dataclass(frozen=True)
class Replacement:
    """Whether an engine core is replaced, why, and after which pause.

    `kill`: the old process is still there; `asked`: the command that wants it.
    """

    is_possible: bool
    reason: str
    after_s: float = 0.0
    kill: bool = False
    asked: str | None = None


def recent(tried_at: Sequence[float], now: float, window_s: float) -> tuple[float, ...]:
    """The tries that lie within the window that ends now."""
    return tuple(at for at in tried_at if now - at < window_s)


def growing_pause_s(tries: int) -> float:
    """How long to wait before the next try of what was tried so often: not at all at first, then 1 s and more."""
    return min(LONGEST_PAUSE_S, 2.0 ** (tries - 1)) if tries else 0.0


def decide_repair(now: float, incident: Incident, config: HoldfastConfig) -> Decision:
    """The repair for a lockstep group that stands held."""
    if unrepairable := _beyond_repair(incident):
        return _decide_replacement(now, incident, config, unrepairable)
    if incident.wants_restart and not config.max_worker_restarts and not incident.asked:
        return _decide_restart(now, incident, config, _why_restart(incident))  # the end, also of a pause by hand
    if incident.paused_by_hand:
        return Decision(Action.AWAIT, "paused by hand; goes on when told to resume")
    if incident.asked:
        return Decision(Action.RESTART_WORKERS, "asked for; only the named ranks get a new process")
    if config.fault_policy == "external" and incident.fault is not None:
        return decide_wait(now, incident, config)
    if incident.wants_restart:
        return _decide_restart(now, incident, config, _why_restart(incident))
    return _decide_retry(now, incident, config)


def _decide_retry(now: float, incident: Incident, config: HoldfastConfig) -> Decision:
    if incident.narrows:
        return Decision(Action.RETRY, _NARROWS)
    retries = len(recent(incident.retried_at, now, config.retry_window_s))
    if retries < config.max_retries:
        repair = "its collectives are rebuilt; " if incident.broken else ""
        cause = "exception with state intact" if incident.fault else "it stands still and nothing is wrong"
        return Decision(Action.RETRY, f"{cause}; {repair}retry {retries + 1} of {config.max_retries}")
    exhausted = (
        f"{retries} retries within {config.retry_window_s:g} s did not last "
        f"(--max-retries {config.max_retries}); last fault: {_summary(incident)}"
    )
    if incident.fault is not None and incident.fault.rank is not None and config.max_worker_restarts:
        return _decide_restart(now, incident, config, exhausted)
    return _decide_replacement(now, incident, config, exhausted)


_NARROWS = "a request is suspected and fewer are left now: not counted as a try"


def _decide_restart(now: float, incident: Incident, config: HoldfastConfig, why: str) -> Decision:
    if incident.narrows and config.max_worker_restarts:
        return Decision(Action.RESTART_WORKERS, f"{why}; its rank gets a new process; {_NARROWS}")
    restarts = recent(incident.restarted_at, now, config.worker_restart_window_s)
    if len(restarts) >= config.max_worker_restarts:
        limit = (
            f"{len(restarts)} worker restarts within {config.worker_restart_window_s:g} s did not last "
            f"(--max-worker-restarts {config.max_worker_restarts})"
            if config.max_worker_restarts
            else "workers are not restarted here (--max-worker-restarts 0)"
        )
        return _decide_replacement(now, incident, config, f"{why}; {limit}")
    again_at = _next_try_at(incident)
    if now < again_at:
        wait = f"the restart failed {incident.failed_restarts} times, tried again in {again_at - now:.1f} s"
        return Decision(Action.AWAIT, f"{why}; {wait}", again_at)
    count = f"worker restart {len(restarts) + 1} of {config.max_worker_restarts}"
    return Decision(Action.RESTART_WORKERS, f"{why}; its rank gets a new process; {count}")


def _decide_replacement(now: float, incident: Incident, config: HoldfastConfig, why: str) -> Decision:
    """The last rung, where no smaller repair is left."""
    if incident.in_lockstep and incident.broken and incident.unrebuildable:
        return Decision(Action.END, why)  # a newcomer could not join either
    plan = decide_replacement(now, incident.engine_restarted_at, config)
    action = Action.RESTART_ENGINE if plan.is_possible else Action.END
    return Decision(action, f"{why}; {plan.reason}", after_s=plan.after_s)


def decide_replacement(now: float, tried_at: Sequence[float], config: HoldfastConfig) -> Replacement:
    """Whether an engine core that is gone, or has to go, is replaced; `tried_at` is when it was before (seconds)."""
    if config.fault_policy == "external":
        return Replacement(False, "with --fault-policy external no engine core is restarted unasked")
    if not config.max_engine_restarts:
        return Replacement(False, "engine cores are not restarted here (--max-engine-restarts 0)")
    tries = len(recent(tried_at, now, config.engine_restart_window_s))
    if tries >= config.max_engine_restarts:
        limit = f"(--max-engine-restarts {config.max_engine_restarts})"
        window = f"{config.engine_restart_window_s:g} s"
        return Replacement(False, f"{tries} engine core restarts within {window} did not last {limit}")
    reason = f"another engine core takes its place; engine core restart {tries + 1} of {config.max_engine_restarts}"
    return Replacement(True, reason, growing_pause_s(tries))


def _next_try_at(incident: Incident) -> float:
    """At once the first time and after the first failure; then with growing pauses."""
    if incident.failed_restarts < 2 or not incident.restarted_at:
        return 0.0
    return incident.restarted_at[-1] + growing_pause_s(incident.failed_restarts - 1)


def decide_wait(now: float, incident: Incident, config: HoldfastConfig) -> Decision:
    """Whether to go on waiting for an instruction from outside."""
    if incident.fault is None or incident.paused_by_hand:
        return Decision(Action.AWAIT, "paused by hand; goes on when told to resume")
    waited_s = now - incident.began_at
    if waited_s >= config.engine_recovery_timeout_s:
        return Decision(
            Action.END,
            f"no instruction repaired it within {config.engine_recovery_timeout_s:g} s "
            f"(--engine-recovery-timeout); fault: {incident.fault.summary()}",
        )
    left_s = config.engine_recovery_timeout_s - waited_s
    return Decision(Action.AWAIT, f"waiting up to {left_s:.0f} s for an instruction")


def _summary(incident: Incident) -> str:
    return "none" if incident.fault is None else incident.fault.summary()


_WHY_RESTART = {
    FaultClass.DEVICE: "the device error is sticky and the worker cannot go on",
    FaultClass.WORKER_LOST: "a worker process is gone",
    FaultClass.UNRESPONSIVE: "a rank did not answer in time",
}


def _why_restart(incident: Incident) -> str:
    fault = incident.fault
    if fault is None or fault.fault_class not in _WHY_RESTART:
        return "a rank's process is not to be trusted any more"
    return f"{_WHY_RESTART[fault.fault_class]}: {fault.summary()}"


def _beyond_repair(incident: Incident) -> str | None:
    fault = incident.fault
    if incident.broken and incident.unrebuildable:
        what = "; ".join(dict.fromkeys(incident.unrebuildable))
        return f"broken collectives cannot be rebuilt in place here ({what}); fault: {_summary(incident)}"
    if fault is not None and fault.fault_class is FaultClass.UNRESPONSIVE and fault.rank is None:
        # Nobody knows which process to replace: the engine core itself does not answer.
        return f"{_WHY_RESTART[fault.fault_class]} and it is not known which; {fault.summary()}"
    return None
