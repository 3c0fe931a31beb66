"""The states of an engine and what moves it between them. Everything that changes a state is here."""

from __future__ import annotations

import enum


class EngineState(enum.StrEnum):
    STARTING = "starting"
    HEALTHY = "healthy"
    FAULTED = "faulted"
    PAUSING = "pausing"
    PAUSED = "paused"
    RECOVERING = "recovering"
    RESTARTING = "restarting"
    LEFT_OUT = "left-out"  # lost, and not replaced for now
    DEAD = "dead"

    @property
    def on_the_wire(self) -> str:
        """The three-valued status of the original protocol: healthy, unhealthy or dead."""
        return _ON_THE_WIRE.get(self, "unhealthy")

    @property
    def is_attached(self) -> bool:
        """Whether the present process is alive and has reported."""
        return self not in (EngineState.STARTING, EngineState.RESTARTING, EngineState.LEFT_OUT, EngineState.DEAD)

    @property
    def makes_progress(self) -> bool:
        return self is EngineState.HEALTHY


class Trigger(enum.StrEnum):
    ATTACHED = "attached"  # the sentinel reported everything it attached to
    FAULT = "fault"  # a rank or the engine core reported a fault
    PAUSE_ORDERED = "pause-ordered"
    PAUSED = "paused"  # the busy loop is paused and answers only its sentinel
    RECOVERY_ORDERED = "recovery-ordered"
    RECOVERED = "recovered"
    RECOVERY_FAILED = "recovery-failed"
    LOST = "lost"  # the engine core's process is lost and will be replaced
    LEFT_OUT = "left-out"  # the lost process is not replaced
    DEFEATED = "defeated"


class IllegalTransition(Exception):
    """Trigger without a transition from the present state, which does not change."""


S, T = EngineState, Trigger

TRANSITIONS: dict[tuple[EngineState, Trigger], EngineState] = {
    (S.STARTING, T.ATTACHED): S.HEALTHY,
    (S.STARTING, T.FAULT): S.FAULTED,
    (S.HEALTHY, T.FAULT): S.FAULTED,
    (S.HEALTHY, T.PAUSE_ORDERED): S.PAUSING,
    (S.PAUSING, T.FAULT): S.FAULTED,
    (S.PAUSING, T.PAUSED): S.PAUSED,
    (S.FAULTED, T.FAULT): S.FAULTED,
    (S.FAULTED, T.PAUSED): S.PAUSED,
    (S.PAUSED, T.FAULT): S.PAUSED,
    (S.PAUSED, T.RECOVERY_ORDERED): S.RECOVERING,
    (S.RECOVERING, T.FAULT): S.RECOVERING,
    (S.RECOVERING, T.RECOVERED): S.HEALTHY,
    (S.RECOVERING, T.RECOVERY_FAILED): S.PAUSED,
    **{(state, T.LOST): S.RESTARTING for state in S if state not in (S.STARTING, S.DEAD)},
    (S.RESTARTING, T.ATTACHED): S.HEALTHY,
    (S.RESTARTING, T.LEFT_OUT): S.LEFT_OUT,
    **{(state, T.DEFEATED): S.DEAD for state in S if state is not S.DEAD},
}

_ON_THE_WIRE = {S.HEALTHY: "healthy", S.DEAD: "dead", S.LEFT_OUT: "dead", S.STARTING: "healthy"}


def next_state(state: EngineState, trigger: Trigger) -> EngineState:
    """State after `trigger`. Raises `IllegalTransition` for a pair that is not in the table."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise IllegalTransition(f"{trigger} makes no sense while {state}") from None
