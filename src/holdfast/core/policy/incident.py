"""An incident of a lockstep group, and the situation that a decision about the group depends on.

Plain data. The instance writes an incident; decisions only read.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.faults.faults import Fault, FaultClass, deeper
from holdfast.core.policy.budget import Budget, GroupBudgets
from holdfast.core.policy.capacity import Capacity


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
    on without that engine core. `unrebuildable` lists the collectives that a rebuild cannot bring back.
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

    @property
    def fault(self) -> Fault | None:
        return self.incident.fault
