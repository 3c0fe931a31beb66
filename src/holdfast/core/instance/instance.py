"""The instance as its ClientSentinel knows it: facts, commands and time in, effects out.

Pure: time is an argument, effects are returned, nothing is sent from here. One `Instance` follows any number of
lockstep groups; each has its own epoch and incident, and touches no other group. This module says which phase takes
what; a fault goes through the phases in the order detection, containment, decision, repair, completion, or defeat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import OperatorError
from holdfast.core.instance import engine_loss, failed_effects, guilt, operator, processes, repair, reports
from holdfast.core.instance.deadlines import (
    find_late_replacement,
    find_overdue,
    find_unanswered,
    is_decision_due,
    is_hard_pause_due,
    is_keepalive_due,
)
from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.instance.repair import decide_and_repair, decide_whether_to_wait
from holdfast.core.instance.state import InstanceState, Roster, view_of
from holdfast.core.protocol import commands as c
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Effect, Send, Settle
from holdfast.core.protocol.events import InstanceView
from holdfast.core.protocol.link_messages import GuiltReported, PoisonRequestEnded, RequestsRefused
from holdfast.core.states import EngineState


class Instance:
    """Reducer over the facts of all engine cores. Not thread-safe: a single thread owns the instance.

    Args:
        groups: the engine ids of each lockstep group.
        instance_id: of this life of the instance, in the status and in every event.
        fingerprint_key: secret with which API servers make fingerprints of guilty requests.
    """

    def __init__(
        self,
        groups: Iterable[Iterable[int]],
        config: HoldfastConfig,
        *,
        wall_clock: Callable[[], float],
        new_command_id: Callable[[], str],
        instance_id: str,
        notify_address: str = "",
        fingerprint_key: bytes = b"",
    ) -> None:
        self._state = InstanceState(config, Roster(groups), wall_clock, new_command_id, instance_id, notify_address)
        self._state.guilt.key = fingerprint_key

    @property
    def config(self) -> HoldfastConfig:
        """Return the configuration in force."""
        return self._state.config

    def view(self) -> InstanceView:
        """Return the view of the instance that the status shows."""
        return view_of(self._state)

    # ---- facts of engine cores

    def observe(self, fact: m.FromEngine, now: float) -> list[Effect]:
        """Take a report. A report from an unknown engine, an old process or another epoch changes nothing.

        Never raises: reports may be late, lost, repeated or out of order.
        """
        state, found = self._state, self._state.roster.look_up(fact.engine_id)
        state.note_time(now)
        if found is None or state.has_ended or found[1].state is EngineState.LEFT_OUT:
            return []
        if not found[1].may_be(fact.pid):
            return []
        found[1].heard_pid = fact.pid
        settings = self._hand_settings_to(fact)
        if found[1].state is EngineState.RESTARTING:
            return [*settings, *engine_loss.replacement_reported(state, *found, fact, now)]
        return [*settings, *self._take(*found, fact, now)]

    def _take(self, group: LockstepGroup, engine: Engine, fact: m.FromEngine, now: float) -> list[Effect]:
        state = self._state
        match fact:
            case m.EngineAttached():
                return reports.engine_attached(state, group, engine, fact, now)
            case m.EngineFaulted():
                return reports.engine_faulted(state, group, engine, fact, now)
            case m.EnginePaused():
                return reports.engine_paused(state, group, engine, fact, now)
            case m.EngineRecovered():
                return reports.engine_recovered(state, group, engine, fact, now)
            case m.RecoveryAborted():
                return reports.recovery_aborted(state, group, engine, fact, now)
            case m.RequestsSuspected():
                return reports.requests_suspected(state, group, engine, fact)
            case m.RequestEnded():
                return reports.request_ended(state, group, engine, fact)
            case m.RuntimeStateChanged():
                return reports.runtime_state_changed(state, group, engine, fact)
            case m.StandbysChanged():
                return reports.standbys_changed(state, group, engine, fact)
            case _:  # m.EngineAnswered
                return reports.arming_answered(state, group, engine, fact)

    def _hand_settings_to(self, fact: m.FromEngine) -> list[Effect]:
        """Send the settings in force to a process that may have started before a change of settings."""
        if not isinstance(fact, m.EngineAttached) or not self._state.settings_changed:
            return []
        return [Send(fact.engine_id, m.ChangeSettings(settings=self._state.settings))]

    def lost(
        self, engine_id: int, why: str, now: float, unrecoverable_reason: str = "", pid: int | None = None
    ) -> list[Effect]:
        """Take the loss of an engine core's process; after the end of the instance that is no news.

        Args:
            unrecoverable_reason: why no replacement can start; else empty.
            pid: the lost process; None for a replacement that has no process yet. The loss of an old process
                changes nothing.
        """
        self._state.note_time(now)
        found = self._state.roster.look_up(engine_id)
        if found is None or self._state.has_ended:
            return []
        if pid is not None and not found[1].may_be(pid):
            return []
        found[1].note_gone(pid)
        return engine_loss.engine_lost(self._state, *found, why, unrecoverable_reason, now)

    def poison_request_ended(self, blamed: PoisonRequestEnded) -> list[Effect]:
        """Take the report of an API server that has ended a request which every engine core dies of."""
        found = self._state.roster.look_up(blamed.engine_id)
        if found is None or self._state.has_ended:
            return []
        return reports.poison_request_ended(self._state, *found, blamed)

    def take_guilt(self, report: GuiltReported | RequestsRefused, now: float) -> list[Effect]:
        """Take the verdict of an API server on a request, or the number of repetitions that were refused."""
        if self._state.has_ended:
            return []
        if isinstance(report, GuiltReported):
            return guilt.found_guilty(self._state, report.guilty, now)
        return guilt.refused(self._state, report.fingerprint, report.count)

    # ---- facts of the processes beside the engine cores

    def process_attached(self, name: str, pid: int | None) -> list[Effect]:
        """Take the report that a process runs and is watched."""
        return processes.process_attached(self._state, name, pid)

    def process_lost(
        self, name: str, why: str, now: float, unrecoverable_reason: str = "", pid: int | None = None
    ) -> list[Effect]:
        """Take the loss of a process; `unrecoverable_reason` and `pid` as for an engine core."""
        known = self._state.roster.processes.get(name)
        is_old = known is not None and pid is not None and known.pid not in (None, pid)
        if self._state.has_ended or is_old:
            return []
        return processes.process_lost(self._state, name, why, unrecoverable_reason, now)

    def process_returned(self, name: str, now: float, pid: int | None = None) -> list[Effect]:
        """Take the report that the replacement of a lost process works."""
        return [] if self._state.has_ended else processes.process_returned(self._state, name, now, pid)

    # ---- commands of an operator

    def submit(self, command: c.Command, now: float, unrecoverable_reason: str = "") -> list[Effect]:
        """Begin a command.

        `unrecoverable_reason` says why no engine core can be replaced here; else empty.

        Raises:
            OperatorError: the command cannot be carried out. Nothing has changed then.
        """
        self._state.note_time(now)
        givers, command_id = self._state.givers, command.command_id
        earlier = givers.find(command_id)
        givers.name(command_id, command.given_by)
        try:
            return self._begin(command, now, unrecoverable_reason)
        except OperatorError:
            givers.name(command_id, earlier)
            raise

    def _begin(self, command: c.Command, now: float, unrecoverable_reason: str) -> list[Effect]:
        match command:
            case c.Retry():
                return operator.retry(self._state, command, now)
            case c.Pause():
                return operator.pause_groups(self._state, command, now)
            case c.Resume():
                return operator.resume(self._state, command, now)
            case c.RestartWorkers():
                return operator.restart_workers(self._state, command, now)
            case c.RestartEngine():
                return operator.restart_engine(self._state, command, unrecoverable_reason, now)
            case c.Configure():
                return operator.configure(self._state, command, now)
            case _:  # c.InjectFault
                return operator.inject_fault(self._state, command, now)

    # ---- effects

    def effect_failed(self, effect: Effect, why: str, now: float) -> list[Effect]:
        """Take the report that an effect was not carried out; `why` is the error in words."""
        return [] if self._state.has_ended else failed_effects.effect_failed(self._state, effect, why, now)

    # ---- time

    def tick(self, now: float) -> list[Effect]:
        """Do everything that is due because time has passed. Call a few times a second."""
        self._state.note_time(now)
        if self._state.has_ended:
            return []
        effects = processes.introduce_coordinator_again(self._state, now) + processes.lose_late(self._state, now)
        effects += guilt.expire(self._state, now)
        for group in self._state.roster.groups:
            if not self._state.has_ended:
                effects += self._fail_unanswered_armings(group, now) + self._tick_group(group, now)
        return effects

    def _tick_group(self, group: LockstepGroup, now: float) -> list[Effect]:
        state = self._state
        if restarted := engine_loss.restart_left_out_engine(state, group, now):
            return restarted
        if overdue := find_overdue(group, now, state.config):
            return engine_loss.kill_overdue_engine(state, group, *overdue, now)
        if late := find_late_replacement(group, now):
            return engine_loss.lose_late_replacement(state, group, late, now)
        effects = repair.make_pause_hard(state, group, now) if is_hard_pause_due(group, now) else []
        if is_keepalive_due(group, now, state.config):
            effects += repair.send_keepalives(group, now)
        if group.is_paused and group.incident is not None and group.incident.retry_at is None:
            effects += decide_whether_to_wait(state, group, now)
        elif is_decision_due(group, now):
            effects += decide_and_repair(state, group, now)
        return effects

    def _fail_unanswered_armings(self, group: LockstepGroup, now: float) -> list[Effect]:
        unanswered = find_unanswered(group, now, self._state.config)
        for engine, command_id in unanswered:
            del engine.armed[command_id]
        return [Settle(c, error=f"engine {engine.engine_id} did not answer in time") for engine, c in unanswered]
