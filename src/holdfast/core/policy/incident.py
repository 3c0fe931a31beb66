"""Everything that a decision depends on: budgets, ranks that are out, and the incident of a lockstep group.

A budget bounds the restart intensity: how often a repair may be tried within a window, and which tries count. An open
incident cannot outwait a budget: its own tries count for as long as the incident is open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import msgspec

from holdfast.core.config import HoldfastConfig, share_of
from holdfast.core.faults.faults import Fault, FaultClass, deeper
from holdfast.core.poison.named import Named

MAX_BACKOFF_S = 30.0
MAX_NAMED = 16
# An unknown error mostly leaves the process intact: a single retry is cheap. After a second unknown error in a row
# the state may be damaged, so the rank gets a new process before the retry budget is used up.
MAX_UNKNOWN_RETRIES = 1
# Repairs in a row after which no step ended well. The first two retries come at once, the next after 1, 2, 4 s. New
# processes are given fewer retries, but enough to begin a search for a poison request.
MAX_FRUITLESS_RETRIES = 5
MAX_FRUITLESS_RETRIES_AFTER_RESTART = 3
MAX_FRUITLESS_WORKER_RESTARTS = 3
NOT_OPEN = math.inf  # the opening time of an incident that is not open


@dataclass(frozen=True)
class Intensity:
    """Restart intensity of a kind of repair: at most `limit` tries within `window_s` seconds.

    `tries` names what is counted, `flag` the setting that bounds the number.
    """

    tries: str
    limit: int
    window_s: float
    flag: str

    def counts(self, tried_at: float, now: float, opened_at: float = NOT_OPEN) -> bool:
        """Return whether a try is within the window, or belongs to the incident that is open since `opened_at`.

        Without the second rule, tries that take longer than the window would never be used up.
        """
        return now - tried_at < self.window_s or tried_at >= opened_at

    def exhausted(self, used: int) -> str | None:
        """Return why no further try is allowed after `used` tries, None while a further try is allowed."""
        if used < self.limit:
            return None
        return f"{used} {self.tries} within {self.window_s:g} s did not last ({self.flag} {self.limit})"


@dataclass(frozen=True)
class Budget:
    """Times at which a kind of repair was tried (seconds, oldest first)."""

    tried_at: tuple[float, ...] = ()

    @property
    def last_at(self) -> float:
        """Return the time of the last try, minus infinity before the first try."""
        return self.tried_at[-1] if self.tried_at else -math.inf

    def recent(self, intensity: Intensity, now: float, opened_at: float = NOT_OPEN) -> Budget:
        """Return the budget with only the tries that count now."""
        return Budget(tuple(at for at in self.tried_at if intensity.counts(at, now, opened_at)))

    def used(self, intensity: Intensity, now: float, opened_at: float = NOT_OPEN) -> int:
        """Return how many tries count now."""
        return len(self.recent(intensity, now, opened_at).tried_at)

    def spend(self, intensity: Intensity, now: float, opened_at: float = NOT_OPEN) -> Budget:
        """Return the budget after a further try, without the tries that no longer count."""
        return Budget((*self.recent(intensity, now, opened_at).tried_at, now))

    def refund(self, tries: int) -> Budget:
        """Return the budget without the last tries."""
        return Budget(self.tried_at[:-tries])

    def shared_with(self, other: Budget) -> Budget:
        """Return the budget with only the tries that another budget has as well."""
        return Budget(tuple(at for at in self.tried_at if at in other.tried_at))


@dataclass(frozen=True)
class Fruitless:
    """Repairs of a lockstep group in a row, since a step last ended well.

    `retries` are those in the present processes, `earlier_retries` those in processes that were replaced since.
    """

    retries: int = 0
    earlier_retries: int = 0
    worker_restarts: int = 0
    engine_restarts: int = 0

    @property
    def has_replaced(self) -> bool:
        """Return whether a process was replaced, and no step has ended well since."""
        return self.worker_restarts + self.engine_restarts > 0

    @property
    def retry_pause_s(self) -> float:
        """Return the pause before the next retry: none before the first two, then 1, 2, 4 s."""
        return backoff_s(max(0, self.retries - 1))

    def why_no_retry(self) -> str | None:
        """Return why a further retry would be in vain, None where a further retry may help."""
        limit = MAX_FRUITLESS_RETRIES_AFTER_RESTART if self.has_replaced else MAX_FRUITLESS_RETRIES
        return None if self.retries < limit else self._summary()

    def why_no_worker_restart(self) -> str | None:
        return None if self.worker_restarts < MAX_FRUITLESS_WORKER_RESTARTS else self._summary()

    def why_no_engine_restart(self) -> str | None:
        return "an engine core that fails like the replaced one is not replaced again" if self.engine_restarts else None

    def after_retry(self) -> Fruitless:
        return replace(self, retries=self.retries + 1)

    def after_worker_restart(self) -> Fruitless:
        return replace(self, worker_restarts=self.worker_restarts + 1)

    def after_engine_restart(self) -> Fruitless:
        return replace(self.in_new_processes(), engine_restarts=self.engine_restarts + 1)

    def in_new_processes(self) -> Fruitless:
        """Return the same repairs, seen from the processes that replace the present processes."""
        return replace(self, retries=0, earlier_retries=self.earlier_retries + self.retries)

    def _summary(self) -> str:
        counts = {
            "retries": self.retries + self.earlier_retries,
            "worker restarts": self.worker_restarts,
            "engine core restarts": self.engine_restarts,
        }
        repairs = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return f"no step has ended well since {repairs}"


@dataclass
class GroupBudgets:
    """Budgets of a lockstep group. Outlasts the group's incidents.

    `unknown_retries` are the retries after a fault of class unknown. `named_requests` holds the requests that
    numerical faults named in the present processes, with the time of the retry.
    """

    retries: Budget = Budget()
    unknown_retries: Budget = Budget()
    worker_restarts: Budget = Budget()
    named_requests: tuple[Named, ...] = ()
    fruitless: Fruitless = Fruitless()

    def note_named(self, names: tuple[str, ...], now: float) -> None:
        """Record a retry after a numerical fault that named requests; the latest `MAX_NAMED` records stay."""
        if names:
            self.named_requests = (*self.named_requests, (now, names))[-MAX_NAMED:]

    def forget_retries(self) -> None:
        """Forget every retry, because later retries run in another process."""
        self.retries = self.unknown_retries = Budget()
        self.named_requests = ()
        self.fruitless = self.fruitless.in_new_processes()

    def refund(self, tries: int) -> None:
        """Take back the last tries after the cause has ended: retries, or worker restarts where no retry is left."""
        self.named_requests = ()
        self.fruitless = Fruitless()
        if self.retries.tried_at:
            self.retries = self.retries.refund(tries)
            self.unknown_retries = self.unknown_retries.shared_with(self.retries)
        else:
            self.worker_restarts = self.worker_restarts.refund(tries)


def retry_intensity(config: HoldfastConfig) -> Intensity:
    return Intensity("retries", config.max_retries, config.retry_window_s, "--max-retries")


def unknown_retry_intensity(config: HoldfastConfig) -> Intensity:
    return Intensity("retries of unknown errors", MAX_UNKNOWN_RETRIES, config.retry_window_s, "at most")


def worker_restart_intensity(config: HoldfastConfig) -> Intensity:
    limit, window_s = config.max_worker_restarts, config.worker_restart_window_s
    return Intensity("worker restarts", limit, window_s, "--max-worker-restarts")


def engine_restart_intensity(config: HoldfastConfig) -> Intensity:
    limit, window_s = config.max_engine_restarts, config.engine_restart_window_s
    return Intensity("engine core restarts", limit, window_s, "--max-engine-restarts")


def process_restart_intensity(config: HoldfastConfig) -> Intensity:
    limit, window_s = config.max_api_server_restarts, config.api_server_restart_window_s
    return Intensity("restarts", limit, window_s, "--max-api-server-restarts")


def backoff_s(tries: int) -> float:
    """Return the exponential backoff before the next try after `tries`: 0, 1, 2, 4 s, at most `MAX_BACKOFF_S`."""
    return min(MAX_BACKOFF_S, 2.0 ** (tries - 1)) if tries else 0.0


# ---- capacity: ranks that are out


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of ranks that are out, seen from an engine core.

    `ranks_out` counts the whole instance, `out_elsewhere` the other engine cores. `engine_ranks` is the size of the
    engine core, `total_ranks` the size of the instance.
    """

    ranks_out: int = 0
    out_elsewhere: int = 0
    engine_ranks: int = 0
    total_ranks: int = 0
    unrepeatable_state: str = ""  # of the engine core: what a new process would lose

    def why_no_new_process(self, accept_stale_state: bool) -> str | None:
        """Return why no process of the engine core is replaced, None where a replacement may serve."""
        return None if accept_stale_state else why_stale(self.unrepeatable_state)

    def why_no_worker_restart(self, cap: int | str) -> str | None:
        """Return why single ranks are not replaced, None where that is allowed."""
        out, allowed = max(1, self.ranks_out), ranks_allowed_out(cap, self.total_ranks)
        return None if out <= allowed else self._exceeded(out, cap)

    def why_no_engine_restart(self, cap: int | str) -> str | None:
        """Return why the engine core is not replaced, None where allowed: always if no rank elsewhere is out."""
        out, allowed = self.out_elsewhere + self.engine_ranks, ranks_allowed_out(cap, self.total_ranks)
        return None if not self.out_elsewhere or out <= allowed else self._exceeded(out, cap)

    def _exceeded(self, out: int, cap: int | str) -> str:
        return f"{out} of {self.total_ranks} ranks would be out at once (--max-ranks-out {cap})"


def why_stale(unrepeatable_state: str) -> str | None:
    """Return why a new process would serve stale state, None where it would not."""
    if not unrepeatable_state:
        return None
    return (
        f"a new process would serve stale state, without {unrepeatable_state} (--accept-stale-state serves it all the "
        "same)"
    )


def ranks_allowed_out(cap: int | str, total_ranks: int) -> float:
    """Return a cap as a number of ranks. A share allows at least 1 rank; a share of 100 % is no cap."""
    if isinstance(cap, int):
        return cap
    share = share_of(cap)
    return math.inf if share == 1 else max(1, math.floor(total_ranks * share))


# ---- incident


@dataclass(frozen=True)
class Recovery:
    """Recovery that is under way in a lockstep group, since `started_at` (seconds)."""

    command_id: str
    started_at: float
    rebuilds: bool  # its collectives, at a rendezvous
    replaces_workers: bool


@dataclass
class Incident:
    """Everything that is wrong with a lockstep group, from the first fault or pause until all engines are healthy.

    `waiting_since` is when the recovery timeout began to count. `fault` is the deepest fault since the last recovery
    began, None where an operator only ordered a pause. `is_soft` says that a pause by an operator may still wait
    for a step boundary. `awaits_join` says that the process that replaced an engine core has not met its peers yet.
    """

    opened_at: float
    waiting_since: float
    reason: str | None = None
    fault: Fault | None = None
    collectives_broken: bool = False
    awaits_join: bool = False
    search_progressed: bool = False  # the fault has brought the search for a poison request forward
    clears_rank: bool = False  # non-finite logits are of requests
    paused_by_operator: bool = False
    is_soft: bool = False
    restart_command: str | None = None  # the operator's command to restart healthy workers
    retry_at: float | None = None  # when to decide again, after a backoff
    failed_restarts: int = 0  # worker restarts that failed one after another
    recovery: Recovery | None = None

    @property
    def is_joining(self) -> bool:
        """Return whether a replacement has to join, and the loss explains every known fault."""
        is_consequence = self.fault is None or self.fault.fault_class is FaultClass.COMMUNICATOR
        return self.awaits_join and is_consequence

    def deepen(self, fault: Fault) -> bool:
        """Record a fault in the incident. Return whether the fault is deeper than every fault known before."""
        is_deeper = deeper(self.fault, fault) is fault
        if is_deeper:
            self.fault = fault
        return is_deeper

    def begin_recovery(self, recovery: Recovery, waiting_since: float) -> Incident:
        """Return the incident once a recovery has begun: findings from before the recovery are dropped."""
        return Incident(
            self.opened_at,
            waiting_since,
            reason=self.reason,
            failed_restarts=self.failed_restarts,
            recovery=recovery,
        )


@dataclass(frozen=True)
class Situation:
    """Everything that a decision about a paused lockstep group depends on. Read only.

    `engine_restarts` is the budget of the engine core at fault, `siblings` the number of engine cores that could serve
    on without that engine core. `unrebuildable` lists the collectives that a rebuild cannot bring back. `fruitless` are
    the repairs since a step last ended well.
    """

    incident: Incident
    budgets: GroupBudgets
    engine_restarts: Budget
    capacity: Capacity
    needs_worker_restart: bool = False
    needs_rebuild: bool = False
    unrebuildable: tuple[str, ...] = ()
    is_lockstep: bool = False
    siblings: int = 0
    fruitless: Fruitless = Fruitless()

    @property
    def fault(self) -> Fault | None:
        return self.incident.fault
