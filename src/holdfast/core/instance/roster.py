"""Members of an instance: engine cores, lockstep groups, and the processes beside the engine cores.

Finds and counts. The phases decide what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from holdfast.core.errors import UnknownEngine
from holdfast.core.instance.group import Engine, LockstepGroup, make_groups
from holdfast.core.policy.budget import NOT_OPEN, Budget
from holdfast.core.policy.capacity import Capacity
from holdfast.core.protocol.events import ProcessStatus
from holdfast.core.states import Trigger


@dataclass
class Process:
    """Process beside the engine cores. While the process is lost, `pid` is None and `lost_at` is set."""

    name: str
    pid: int | None = None
    restarts: int = 0
    restart_budget: Budget = field(default_factory=Budget)
    lost_at: float | None = None

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
