"""Who belongs to an instance: its engines, their lockstep groups, the processes beside them; and whether it has ended.

Finds and chooses; what follows from what it knows is for others to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from holdfast.core.errors import UnknownEngine
from holdfast.core.instance.group import Engine, LockstepGroup, make_groups
from holdfast.core.policy.capacity import RanksOut
from holdfast.core.protocol.events import ProcessView
from holdfast.core.states import Trigger


class Roster:
    """The engines of an instance. All of them end together, and then `defeat` says why.

    Args:
        groups: the engine ids of each lockstep group.
    """

    def __init__(self, groups: Iterable[Iterable[int]]) -> None:
        self.groups = make_groups(groups)
        self._home = {e.engine_id: (g, e) for g in self.groups for e in g.engines}
        self.defeat: str | None = None
        self.processes: dict[str, ProcessView] = {}  # those beside the engine cores

    @property
    def engine_ids(self) -> tuple[int, ...]:
        return tuple(self._home)

    @property
    def engines(self) -> tuple[Engine, ...]:
        return tuple(engine for _, engine in self._home.values())

    def look_up(self, engine_id: int) -> tuple[LockstepGroup, Engine] | None:
        """An engine and its group; none for an engine that is not known."""
        return self._home.get(engine_id)

    def find(self, engine_id: int) -> tuple[LockstepGroup, Engine]:
        """An engine and its group. Raises `UnknownEngine`."""
        if engine_id not in self._home:
            known = ", ".join(str(i) for i in self._home)
            raise UnknownEngine(f"there is no engine {engine_id}", hint=f"known: {known}")
        return self._home[engine_id]

    def choose(self, engine_ids: Sequence[int], fitting: Callable[[LockstepGroup], bool]) -> Sequence[LockstepGroup]:
        """The groups of the named engines; else every fitting one; else one that says why none fits."""
        if engine_ids:
            named = {self.find(i)[0].group_id for i in engine_ids}
            return [g for g in self.groups if g.group_id in named]
        unwell = (g for g in self.groups if g.began_at is not None)
        return [g for g in self.groups if fitting(g)] or [next(unwell, self.groups[0])]

    def ranks_out(self, at_hand: Engine) -> RanksOut:
        """How many ranks are out, as one decides who looks at the engine at hand."""
        by_engine = {e.engine_id: e.ranks_out for e in self.engines}
        everywhere = sum(by_engine.values())
        return RanksOut(
            now=everywhere,
            elsewhere=everywhere - by_engine[at_hand.engine_id],
            own=at_hand.size,
            total=sum(e.size for e in self.engines),
        )

    def others(self, group: LockstepGroup) -> int:
        """How many engine cores serve, or will again, without one of this group: none where its peers wait for it."""
        beside = [e for g in self.groups if g is not group for e in g.engines if e.state.is_attached]
        return 0 if group.is_lockstep else len(beside)

    def end(self, reason: str) -> None:
        """Nothing moves any engine after this."""
        self.defeat = reason
        for engine in self.engines:
            engine.move(Trigger.DEFEATED)
