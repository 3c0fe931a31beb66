"""The instance as its ClientSentinel knows it: facts and instructions in, effects out.

Pure: time is an argument, effects are returned, nothing is sent from here. One `Instance` follows any
number of lockstep groups; each has its own epoch, incident and command, and touches no other. Here is what
instructions and time bring about; what reports do is in `reports`, what is done about it in `interventions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from holdfast.core.config import HoldfastConfig, change_settings, compare_settings, runtime_settings
from holdfast.core.errors import BadCommand, BadConfiguration, CommandConflict
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.instance.commands import Commands
from holdfast.core.instance.deadlines import find_overdue, find_unanswered, is_to_affirm, is_to_harden
from holdfast.core.instance.decision import Interventions
from holdfast.core.instance.detection import Reports
from holdfast.core.instance.engine_loss import EngineLosses
from holdfast.core.instance.engine_repair import Replacements
from holdfast.core.instance.event_log import EventLog
from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.instance.preconditions import (
    refuse_unknown_ranks,
    refuse_unless_engine_can_restart,
    refuse_unless_healthy,
    refuse_unless_it_can_go_on,
    refuse_unless_paused,
)
from holdfast.core.instance.processes import FrontEndProcesses
from holdfast.core.instance.roster import Roster
from holdfast.core.instance.settings import Settings
from holdfast.core.policy.ladder import decide_repair, decide_wait
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import (
    Command,
    Configure,
    InjectFault,
    Pause,
    RestartEngine,
    RestartWorkers,
    Resume,
    Retry,
)
from holdfast.core.protocol.effects import Effect, Send, Settle
from holdfast.core.protocol.events import EventKind, InstanceView
from holdfast.core.protocol.link_messages import RequestBlamed
from holdfast.core.states import EngineState

SOFT_PAUSE_S = 1.0  # a soft pause that has not come to a step boundary by then becomes a hard one
AFFIRM_S = 10.0  # how often engines that stand paused hear that somebody still lives


class Instance:
    """Reducer over the facts of all engines. Not thread-safe: one thread owns it.

    Args:
        groups: the engine ids of each lockstep group.
    """

    def __init__(
        self,
        groups: Iterable[Iterable[int]],
        config: HoldfastConfig,
        *,
        wall_clock: Callable[[], float],
        new_command_id: Callable[[], str],
        notify_address: str = "",
    ) -> None:
        self._settings = Settings(config)
        self._roster = Roster(groups)
        self._commands = Commands()
        self._event_log = EventLog(self._roster, wall_clock, settings=self._settings, notify_address=notify_address)
        replacements = Replacements(self._event_log, self._commands, self._settings)
        self._interventions = Interventions(
            self._roster, self._event_log, self._commands, self._settings, new_command_id, replacements
        )
        self._reports = Reports(self._event_log, self._commands, self._interventions)
        self._losses = EngineLosses(self._event_log, self._commands, self._interventions, self._reports, self._settings)
        self._front_end = FrontEndProcesses(self._roster, self._event_log, self._interventions, self._settings)

    @property
    def config(self) -> HoldfastConfig:
        """The configuration in force."""
        return self._settings.config

    def view(self) -> InstanceView:
        return self._event_log.view()

    # ---- facts from engine cores

    def observe(self, fact: m.FromEngine, now: float) -> list[Effect]:
        """Take one report. One from an unknown engine or another epoch changes nothing.

        Never raises: reports may be late, lost, repeated or out of order.
        """
        home = self._roster.look_up(fact.engine_id)
        if home is None or self._roster.defeat is not None:
            return []
        if home[1].state is EngineState.LEFT_OUT:
            return []
        return [*self._hand_settings(fact), *self._take(*home, fact, now)]

    def _take(self, group: LockstepGroup, engine: Engine, fact: m.FromEngine, now: float) -> list[Effect]:
        if engine.state is EngineState.RESTARTING:
            return self._losses.returned(group, engine, fact, now)
        return self._reports.take(group, engine, fact, now)

    def _hand_settings(self, fact: m.FromEngine) -> list[Effect]:
        """Send the settings in force to a process that may have been started before they were changed."""
        if not isinstance(fact, m.EngineAttached) or not self._settings.changed:
            return []
        return [Send(fact.engine_id, m.ChangeSettings(settings=runtime_settings(self._settings.config)))]

    def lost(self, engine_id: int, why: str, now: float, unrecoverable_reason: str = "") -> list[Effect]:
        """An engine core's process is gone. Once the instance has ended, they all go: that is no news.

        `unrecoverable_reason` says why nothing could take its place, empty where something can.
        """
        home = self._roster.look_up(engine_id)
        if home is None or self._roster.defeat is not None:
            return []
        return self._losses.lost(*home, why, unrecoverable_reason, now)

    def request_blamed(self, blamed: RequestBlamed) -> list[Effect]:
        """An API server found out which request engine cores die of, and has ended it."""
        home = self._roster.look_up(blamed.engine_id)
        if home is None or self._roster.defeat is not None:
            return []
        group, engine = home
        engine.ended_requests += 1
        told = {"request_id": blamed.request_id, "incident": blamed.incident, "reason": blamed.reason}
        return [self._event_log.publish(EventKind.REQUEST_ENDED, group, engine, **told)]

    # ---- facts of the processes beside the engine cores

    def process_attached(self, name: str, pid: int | None) -> list[Effect]:
        """Such a process is there and is watched."""
        return self._front_end.attached(name, pid)

    def process_lost(self, name: str, why: str, now: float, unrecoverable_reason: str = "") -> list[Effect]:
        """Take note that such a process is gone.

        `unrecoverable_reason` says why nothing could take its place, empty where something can.
        """
        return self._front_end.lost(name, why, unrecoverable_reason, now)

    def process_returned(self, name: str, now: float, pid: int | None = None) -> list[Effect]:
        """Another process has taken its place."""
        return self._front_end.returned(name, now, pid)

    # ---- commands

    def submit(self, command: Command, now: float, unrecoverable_reason: str = "") -> list[Effect]:
        """Begin a command of the operator.

        `unrecoverable_reason` says why no engine core can be replaced here; empty where one can.

        Raises:
            OperatorError: the command cannot be carried out. Nothing has changed then.
        """
        match command:
            case Retry():
                return self.retry(command.command_id, command.engine_ids, now)
            case Pause():
                return self.pause(command.command_id, command.engine_ids, command.soft, now)
            case Resume():
                return self.resume(command.command_id, command.engine_ids, now)
            case RestartWorkers():
                return self.restart_workers(command.command_id, command.engine_id, command.ranks, now)
            case RestartEngine():
                return self.restart_engine(command.command_id, command.engine_id, now, unrecoverable_reason)
            case Configure():
                return self.configure(command, now)
            case InjectFault():
                return self.arm(command.command_id, command.spec, now)

    def configure(self, command: Configure, now: float) -> list[Effect]:
        """Change settings, here and in every engine core; paused groups are decided about anew.

        Raises:
            BadCommand: no setting, an unknown one, one that is fixed at the start, or a bad value.
            CommandConflict: the instance has ended.
        """
        self._refuse_if_ended_or_repeated(self._roster.groups[0], command.command_id)
        try:
            config = change_settings(self._settings.config, command.settings)
        except BadConfiguration as error:
            raise BadCommand(error.message, hint=error.hint) from None
        old, new = runtime_settings(self._settings.config), runtime_settings(config)
        self._settings.config, self._settings.changed = config, True
        changes = compare_settings(old, new)
        reason = "; ".join(map(str, changes)) or "nothing differs"
        effects: list[Effect] = [
            Send(e.engine_id, m.ChangeSettings(settings=new)) for e in self._roster.engines if e.state.is_attached
        ]
        effects.append(
            self._event_log.publish_of_instance(
                EventKind.CONFIGURED, command_id=command.command_id, reason=reason, changes=changes
            )
        )
        for group in self._roster.groups:
            if group.stands_paused and self._roster.defeat is None:
                group.waiting_since = now  # the wait for a command begins anew
                effects += self._interventions.decide(group, decide_repair, now, unless_waiting=group.paused_by_hand)
        return [*effects, Settle(command.command_id)]

    def retry(self, command_id: str, engine_ids: Sequence[int], now: float) -> list[Effect]:
        """Let the groups of some engines go on, or every group that stands paused when none is named.

        Raises:
            UnknownEngine: no such engine.
            CommandConflict: one is not paused, or a command is already under way.
        """
        return self._go_on("retry", command_id, self._roster.choose(engine_ids, lambda g: g.stands_paused), now)

    def resume(self, command_id: str, engine_ids: Sequence[int], now: float) -> list[Effect]:
        """Let groups go on that were paused by hand. Raises as `retry` does."""
        groups = self._roster.choose(engine_ids, lambda g: g.paused_by_hand)
        for group in groups:
            if group.stands_paused and not group.paused_by_hand:
                raise CommandConflict(
                    f"engine {group.engine_ids[0]} stands paused after a fault, not by hand",
                    state=EngineState.PAUSED,
                    hint="retry lets it go on",
                )
        return self._go_on("resume", command_id, groups, now)

    def pause(self, command_id: str, engine_ids: Sequence[int], soft: bool, now: float) -> list[Effect]:
        """Pause the groups of some engines, or all. Raises `UnknownEngine` or `CommandConflict`."""
        groups = self._roster.choose(engine_ids, lambda g: not g.is_left_out)
        self._refuse_if_ended_or_repeated(groups[0], command_id)
        for group in groups:
            refuse_unless_healthy(group)
            refuse_unless_it_can_go_on(group, soft)
        self._commands.begin(command_id, [g.group_id for g in groups], awaits_pause=True)
        effects: list[Effect] = []
        for group in groups:
            group.open_incident(now)
            group.paused_by_hand, group.soft = True, soft
            order = m.PauseEngine(command_id=command_id, epoch=group.epoch, soft=soft)
            for engine in group.engines:
                effects += self._interventions.pause(group, engine, order, "asked for", now)
        return effects

    def restart_workers(self, command_id: str, engine_id: int, ranks: Sequence[int], now: float) -> list[Effect]:
        """Give ranks of an engine a new process, healthy as they are; every one when none is named.

        Raises:
            UnknownEngine, BadCommand: no such engine, no such rank.
            CommandConflict: its lockstep group is not healthy, or could not go on after it.
        """
        group, engine = self._roster.find(engine_id)
        self._refuse_if_ended_or_repeated(group, command_id)
        refuse_unknown_ranks(engine, ranks)
        refuse_unless_healthy(group)
        refuse_unless_it_can_go_on(group, soft=False)
        self._commands.begin(command_id, [group.group_id])
        group.open_incident(now)
        group.asked = command_id
        engine.sick_ranks.update(ranks or range(engine.ranks))
        effects: list[Effect] = []
        for member in group.engines:
            order = m.PauseEngine(command_id=command_id, epoch=group.epoch)
            effects += self._interventions.pause(group, member, order, "its workers are to be restarted", now)
        return effects

    def restart_engine(
        self, command_id: str, engine_id: int, now: float, unrecoverable_reason: str = ""
    ) -> list[Effect]:
        """Put another process in the place of an engine core, healthy as it is, and of all its workers.

        `unrecoverable_reason` says why nobody could start another or go on with its requests.

        Raises:
            UnknownEngine: no such engine.
            CommandConflict: it could not be replaced, or something is already under way.
        """
        group, engine = self._roster.find(engine_id)
        self._refuse_if_ended_or_repeated(group, command_id)
        refuse_unless_engine_can_restart(group, engine, unrecoverable_reason)
        return self._losses.restart(group, engine, command_id, now)

    def arm(self, command_id: str, spec: InjectionSpec, now: float) -> list[Effect]:
        """Arm a fault. Raises `UnknownEngine`, or `CommandConflict` where nothing can be armed."""
        group, engine = self._roster.find(spec.engine_id)
        self._refuse_if_ended_or_repeated(group, command_id)
        engine.armed[command_id] = now
        if spec.request:
            engine.poison(spec)
        return [Send(engine.engine_id, m.ArmFault(command_id=command_id, spec=spec))]

    def _go_on(self, what: str, command_id: str, groups: Sequence[LockstepGroup], now: float) -> list[Effect]:
        self._refuse_if_ended_or_repeated(groups[0], command_id)
        for group in groups:
            refuse_unless_paused(group, what)
        self._commands.begin(command_id, [g.group_id for g in groups])
        return [effect for group in groups for effect in self._interventions.recover(group, command_id, now)]

    def _refuse_if_ended_or_repeated(self, group: LockstepGroup, command_id: str) -> None:
        if self._roster.defeat is not None:
            raise CommandConflict(f"the instance has ended: {self._roster.defeat}", state=EngineState.DEAD)
        armed = any(command_id in engine.armed for engine in self._roster.engines)
        if armed or self._commands.knows(command_id):
            raise CommandConflict(
                f"a command with the id {command_id} is already under way",
                state=group.engines[0].state,
                hint="every command needs an id of its own",
            )

    # ---- time

    def tick(self, now: float) -> list[Effect]:
        """Everything that happens because time has passed. Call a few times a second."""
        effects = self._front_end.tick(now)
        for group in self._roster.groups:
            if self._roster.defeat is None:
                effects += self._forget_unanswered(group, now) + self._tick_group(group, now)
        return effects

    def _tick_group(self, group: LockstepGroup, now: float) -> list[Effect]:
        if again := self._losses.try_again(group, now):
            return again
        if overdue := find_overdue(group, now, self._settings.config):
            return self._losses.give_up_on(group, *overdue, now)
        effects: list[Effect] = []
        if is_to_harden(group, now, SOFT_PAUSE_S):
            effects += self._interventions.harden(group)
        if is_to_affirm(group, now, self._settings.config, AFFIRM_S):
            effects += self._interventions.affirm(group, now)
        if group.stands_paused and group.retry_at is None:
            effects += self._interventions.decide(group, decide_wait, now, unless_waiting=True)
        elif group.retry_at is not None and now >= group.retry_at:
            effects += self._interventions.decide(group, decide_repair, now)
        return effects

    def _forget_unanswered(self, group: LockstepGroup, now: float) -> list[Effect]:
        unanswered = find_unanswered(group, now, self._settings.config)
        for engine, command_id in unanswered:
            del engine.armed[command_id]
        return [Settle(c, error=f"engine {engine.engine_id} did not answer in time") for engine, c in unanswered]
