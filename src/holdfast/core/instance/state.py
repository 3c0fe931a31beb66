"""State of an instance: its members, the commands under way, and the events that it has published.

Finds, counts and numbers. The phases (`reports`, `repair`, `defeat`) decide what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET

from holdfast.core.config import HoldfastConfig, RuntimeSettings, runtime_settings
from holdfast.core.errors import UnknownEngine
from holdfast.core.faults.faults import Fault
from holdfast.core.instance.group import Engine, LockstepGroup, make_groups
from holdfast.core.poison.memory import PoisonMemory
from holdfast.core.policy.incident import (
    NOT_OPEN,
    Budget,
    Capacity,
    engine_restart_intensity,
    retry_intensity,
    worker_restart_intensity,
)
from holdfast.core.policy.ladder import Action
from holdfast.core.protocol.commands import Giver
from holdfast.core.protocol.effects import Effect, Publish, Settle
from holdfast.core.protocol.events import BudgetStatus, Event, EventKind, FullText, InstanceView, ProcessStatus
from holdfast.core.states import Trigger

MAX_GIVERS = 1024
MAX_FULL_TEXTS = 8  # they are in every view

# ---- members


@dataclass
class Process:
    """Process beside the engine cores. While the process is lost, `pid` is None and `lost_at` is set."""

    name: str
    pid: int | None = None
    restarts: int = 0
    restart_budget: Budget = field(default_factory=Budget)
    lost_at: float | None = None
    replacement_due_at: float = 0.0  # while lost
    failed_start: str | None = None  # why the replacement was not started

    @property
    def opened_at(self) -> float:
        """Return since when the process is lost, `NOT_OPEN` while the process runs."""
        return NOT_OPEN if self.lost_at is None else self.lost_at

    def view(self) -> ProcessStatus:
        return ProcessStatus(name=self.name, pid=self.pid, restarts=self.restarts)


class Roster:
    """Members of an instance. `defeat` says why the instance has ended, and is None until then.

    Args:
        groups: the engine ids of each lockstep group.
    """

    def __init__(self, groups: Iterable[Iterable[int]]) -> None:
        self.groups = make_groups(groups)
        self._home = {e.engine_id: (g, e) for g in self.groups for e in g.engines}
        self.defeat: str | None = None
        self.processes: dict[str, Process] = {}

    @property
    def engine_ids(self) -> tuple[int, ...]:
        return tuple(self._home)

    @property
    def engines(self) -> tuple[Engine, ...]:
        return tuple(engine for _, engine in self._home.values())

    def look_up(self, engine_id: int) -> tuple[LockstepGroup, Engine] | None:
        """Return an engine core and the group, None for an unknown id."""
        return self._home.get(engine_id)

    def find(self, engine_id: int) -> tuple[LockstepGroup, Engine]:
        """Return an engine core and the group. Raises `UnknownEngine`."""
        if engine_id not in self._home:
            known = ", ".join(str(i) for i in self._home)
            raise UnknownEngine(f"there is no engine {engine_id}", hint=f"known: {known}")
        return self._home[engine_id]

    def choose(self, engine_ids: Sequence[int], fitting: Callable[[LockstepGroup], bool]) -> Sequence[LockstepGroup]:
        """Return the groups of the named engine cores; without names, every fitting group.

        Where no group fits, return a group whose state explains why: preferably a group with an open incident.
        """
        if engine_ids:
            named = {self.find(i)[0].group_id for i in engine_ids}
            return [g for g in self.groups if g.group_id in named]
        unwell = (g for g in self.groups if g.incident is not None)
        return [g for g in self.groups if fitting(g)] or [next(unwell, self.groups[0])]

    def capacity_around(self, engine: Engine) -> Capacity:
        """Return how many ranks are out, in an engine core and elsewhere."""
        by_engine = {e.engine_id: e.ranks_out for e in self.engines}
        everywhere = sum(by_engine.values())
        return Capacity(
            ranks_out=everywhere,
            out_elsewhere=everywhere - by_engine[engine.engine_id],
            engine_ranks=engine.size,
            total_ranks=sum(e.size for e in self.engines),
            unrepeatable_state=engine.unrepeatable_state,
        )

    def count_siblings(self, group: LockstepGroup) -> int:
        """Return how many engine cores could serve on without an engine core of a group: 0 in lockstep."""
        beside = [e for g in self.groups if g is not group for e in g.engines if e.state.is_attached]
        return 0 if group.is_lockstep else len(beside)

    def end(self, reason: str) -> None:
        """Mark the instance and every engine core as ended, for good."""
        self.defeat = reason
        for engine in self.engines:
            engine.move(Trigger.DEFEATED)


# ---- commands under way


@dataclass
class _Command:
    groups: set[int]
    awaits_pause: bool
    error: str | None = None


class OpenCommands:
    """Commands under way, and the lockstep groups in which each has not ended yet."""

    def __init__(self) -> None:
        self._open: dict[str, _Command] = {}

    def is_open(self, command_id: str) -> bool:
        return command_id in self._open

    def begin(self, command_id: str, groups: Iterable[int], *, awaits_pause: bool = False) -> None:
        """Follow a command in some groups. With `awaits_pause`, the command ends as soon as the groups are paused."""
        self._open[command_id] = _Command(set(groups), awaits_pause)

    def end_in_group(self, command_id: str | None, group_id: int, error: str | None = None) -> list[Effect]:
        """End a command in a single group. The first error of any group becomes the error of the command."""
        if command_id is None or command_id not in self._open:
            return []
        command = self._open[command_id]
        command.groups.discard(group_id)
        command.error = command.error or error
        if command.groups:
            return []
        del self._open[command_id]
        return [Settle(command_id, error=command.error)]

    def end_pauses_of(self, group_id: int) -> list[Effect]:
        """End the commands that waited for a group to be paused."""
        waiting = [c for c, command in self._open.items() if command.awaits_pause and group_id in command.groups]
        return [effect for command_id in waiting for effect in self.end_in_group(command_id, group_id)]

    def await_pause_of(self, group_id: int) -> bool:
        """Return whether a command waits for a group to be paused."""
        return any(command.awaits_pause and group_id in command.groups for command in self._open.values())

    def fail_in_group(self, group_id: int, error: str) -> list[Effect]:
        """Fail every command that is under way in a group."""
        concerned = [c for c, command in self._open.items() if group_id in command.groups]
        return [effect for command_id in concerned for effect in self.end_in_group(command_id, group_id, error)]

    def fail_all(self, error: str) -> list[Effect]:
        """Fail every command that is under way."""
        settled: list[Effect] = [Settle(command_id, error=error) for command_id in self._open]
        self._open.clear()
        return settled


def fail_armings(engine: Engine, error: str) -> list[Effect]:
    """Fail every command to arm a fault that an engine core has not answered."""
    settled: list[Effect] = [Settle(command_id, error=error) for command_id in engine.armed]
    engine.armed.clear()
    return settled


class Givers:
    """Givers of the latest commands of operators, for the events of each command."""

    def __init__(self) -> None:
        self._known: dict[str, Giver] = {}

    def find(self, command_id: object) -> Giver | None:
        """Return the giver of a command; None for a command of the instance itself."""
        return self._known.get(command_id) if isinstance(command_id, str) else None

    def name(self, command_id: str, giver: Giver | None) -> None:
        """Name the giver of a command; forget the oldest beyond the bound."""
        self._known.pop(command_id, None)
        if giver is not None:
            self._known[command_id] = giver
        if len(self._known) > MAX_GIVERS:
            del self._known[next(iter(self._known))]


# ---- the state


@dataclass
class InstanceState:
    """Data of an instance.

    `config` is replaced when an operator changes settings: read settings from here at each use. `settings` is the part
    that can change, and `settings_changed` says that it has since the start. `sequence` numbers the events.
    `now` is the time of the instance's clock at the latest fact. `introduce_coordinator_at` are the times at which
    engine cores introduce themselves again to a new coordinator.
    """

    config: HoldfastConfig
    roster: Roster
    wall_clock: Callable[[], float]
    new_command_id: Callable[[], str]
    instance_id: str
    notify_address: str = ""
    commands: OpenCommands = field(default_factory=OpenCommands)
    givers: Givers = field(default_factory=Givers)
    guilt: PoisonMemory = field(default_factory=PoisonMemory)
    settings: RuntimeSettings = field(init=False)
    settings_changed: bool = False
    sequence: int = 0
    introduce_coordinator_at: tuple[float, ...] = ()
    full_texts: tuple[FullText, ...] = ()
    now: float = 0.0  # of the latest fact
    started_at: float | None = None  # on the wall clock, at 0 of the instance's clock

    def __post_init__(self) -> None:
        self.settings = runtime_settings(self.config)

    def configure(self, config: HoldfastConfig) -> None:
        """Replace the settings in force."""
        self.config, self.settings, self.settings_changed = config, runtime_settings(config), True

    def note_time(self, now: float) -> None:
        """Set the time of the latest fact."""
        self.now = now
        if self.started_at is None:
            self.started_at = self.wall_clock() - now

    def keep_full_text(self, fault: Fault) -> Fault:
        """Return a fault without its full text; keep the text for the status, at most `MAX_FULL_TEXTS`."""
        if fault.full_text is UNSET:
            return fault
        about = {"error_type": fault.error_type, "place": fault.place, "text": fault.full_text}
        told = FullText(engine_id=fault.engine_id, rank=fault.rank, at=fault.at, **about)
        if told not in self.full_texts:  # several events tell the same fault
            self.full_texts = (*self.full_texts, told)[-MAX_FULL_TEXTS:]
        return msgspec.structs.replace(fault, full_text=UNSET)

    @property
    def has_ended(self) -> bool:
        return self.roster.defeat is not None


# ---- events


def view_of(state: InstanceState) -> InstanceView:
    """Return the view of the instance that the status shows."""
    return InstanceView(
        engines=tuple(g.status_of(e, budgets_of(state, g, e)) for g in state.roster.groups for e in g.engines),
        settings=state.settings,
        sequence=state.sequence,
        instance_id=state.instance_id,
        notify_address=state.notify_address,
        defeat=state.roster.defeat,
        processes=tuple(process.view() for process in state.roster.processes.values()),
        full_texts=state.full_texts,
        guilt=state.guilt.view(),
    )


def budgets_of(state: InstanceState, group: LockstepGroup, engine: Engine) -> tuple[BudgetStatus, ...]:
    """Return the budgets of an engine core on which a try is spent; a group shares its retries and worker restarts."""
    budgets, config = group.budgets, state.config
    if not (budgets.retries.tried_at or budgets.worker_restarts.tried_at or engine.restart_budget.tried_at):
        return ()
    rungs = (
        (Action.RETRY, budgets.retries, retry_intensity(config)),
        (Action.RESTART_WORKERS, budgets.worker_restarts, worker_restart_intensity(config)),
        (Action.RESTART_ENGINE, engine.restart_budget, engine_restart_intensity(config)),
    )
    spent = []
    for rung, budget, intensity in rungs:
        if (counted := budget.recent(intensity, state.now, group.opened_at)).tried_at:
            ends = (at + intensity.window_s + (state.started_at or 0.0) for at in counted.tried_at)
            refills_at = tuple(round(end, 3) for end in ends)
            remaining = max(0, intensity.limit - len(refills_at))
            spent.append(BudgetStatus(rung=rung, limit=intensity.limit, remaining=remaining, refills_at=refills_at))
    return tuple(spent)


def publish(state: InstanceState, kind: EventKind, group: LockstepGroup, engine: Engine, **about: object) -> Publish:
    """Return the next event of an engine core; `about` are further fields of `Event`."""
    return _publish(state, kind, engine_id=engine.engine_id, state=engine.state, epoch=group.epoch, **about)


def publish_of_process(state: InstanceState, kind: EventKind, process: str, **about: object) -> Publish:
    """Return the next event of a process beside the engine cores."""
    return _publish(state, kind, process=process, **about)


def publish_of_instance(state: InstanceState, kind: EventKind, **about: object) -> Publish:
    """Return the next event of the instance as a whole."""
    return _publish(state, kind, **about)


def _publish(instance: InstanceState, kind: EventKind, /, **about: object) -> Publish:
    instance.sequence += 1
    if isinstance(fault := about.get("fault"), Fault):
        about["fault"] = instance.keep_full_text(fault)
    event = Event(
        instance_id=instance.instance_id,
        sequence=instance.sequence,
        at=instance.wall_clock(),
        kind=kind,
        given_by=instance.givers.find(about.get("command_id")),
        **about,  # type: ignore[arg-type]
    )
    return Publish(event, view_of(instance))
