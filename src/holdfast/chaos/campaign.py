"""A chaos run: constant load on a server whose processes are killed at random, one after another.

Owns neither the server nor its end. Every wait is bounded; a kill that does not heal in time ends the run.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from holdfast.chaos.control import Control, ControlFailed
from holdfast.chaos.history import History
from holdfast.chaos.leaks import Usage
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.processes import session_segments, still_shared, usage_by_process
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load
from holdfast.chaos.tally import Kill, Tally
from holdfast.chaos.victims import ProcessKind, Victim, client_ports, count_by_kind, find_victims, kill
from holdfast.core.errors import WorldError

HEAL_TIMEOUT_S = 240.0
CALM_S = 3.0  # connections that close after the last answer are no leak
POLL_S = 0.2


@dataclass(frozen=True)
class CampaignSettings:
    """Settings of a run. A kind without a process is skipped; `say` receives progress in words."""

    seed: int
    minutes: float
    period_s: float = 60.0
    kinds: tuple[ProcessKind, ...] = tuple(ProcessKind)
    clients: int = 2
    tokens: int = 90
    say: Callable[[str], None] = print


def draw_kinds(seed: int, kinds: Sequence[ProcessKind]) -> Iterator[ProcessKind]:
    """Yield kinds in random order without end, each equally often; the same seed draws the same order."""
    dice = random.Random(seed)
    while True:
        yield from dice.sample(list(kinds), len(kinds))


@dataclass
class Campaign:
    """A chaos run on a server; call `run` once."""

    server: Server
    settings: CampaignSettings
    kills: list[Kill] = field(default_factory=list)
    tally: Tally = field(default_factory=lambda: Tally([]))
    before: Usage = field(default_factory=dict)
    after: Usage = field(default_factory=dict)
    segments: set[str] = field(default_factory=set)
    abandoned: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    duration_s: float = 0.0
    _present: Counter[ProcessKind] = field(default_factory=Counter)
    _over: bool = False

    async def run(self) -> None:
        """Load the server and kill processes until the time is over. Raises `WorldError` before the first kill."""
        async with Control(self.server.url) as control:
            await self._prepare(control)
            begin_s = time.monotonic()
            loads = [asyncio.create_task(self._load_without_end()) for _ in range(self.settings.clients)]
            try:
                await self._kill_one_after_another(control, begin_s + 60 * self.settings.minutes)
            finally:
                self._over = True
                await asyncio.gather(*loads)
            self.duration_s = time.monotonic() - begin_s
            if self.server.exit_code is None:
                await self._heal(control, list(self._present))
                await asyncio.sleep(CALM_S)
                self.after = usage_by_process(self.server.pid)
                self.abandoned = self._abandoned()

    def _abandoned(self) -> set[str]:
        """Return shared memory of killed processes that still exists without any user."""
        used = session_segments(self.server.pid)
        return {segment for segment in self.segments - used if still_shared(segment)}

    # ---- before

    async def _prepare(self, control: Control) -> None:
        """Record the fault-free run, check that it is reproducible, and read the server's resources afterwards."""
        self.tally = Tally(await self._answers())
        again = Tally(self.tally.reference)
        for observed in await asyncio.gather(*(self._answers() for _ in range(self.settings.clients))):
            again.add(observed, [])
        if again.wrong:
            raise WorldError(f"answers differ between fault-free runs: {again.problems[0]}")
        if ProcessKind.STANDBY in self.settings.kinds:
            await control.await_standbys()
        await asyncio.sleep(CALM_S)
        self._present = count_by_kind(find_victims(self.server.pid))
        self.before = usage_by_process(self.server.pid)

    async def _answers(self) -> list[History]:
        return await Load(self.server.url, every_feature(fresh_salt(), self.settings.tokens)).run()

    # ---- the load

    async def _load_without_end(self) -> None:
        while not self._over and self.server.exit_code is None:
            begin_s = time.monotonic()
            observed = await self._answers()
            self.tally.add(observed, [one for one in self.kills if one.at_s > begin_s - 1.0])
            if any(one.error for one in observed):
                await asyncio.sleep(POLL_S)  # a server that refuses is not asked without a pause

    # ---- the kills

    async def _kill_one_after_another(self, control: Control, end_s: float) -> None:
        dice, kinds = random.Random(self.settings.seed), self._wanted()
        if not kinds:
            raise WorldError("the server has no process of the chosen kinds")
        draws = draw_kinds(self.settings.seed, kinds)
        await asyncio.sleep(min(CALM_S, self.settings.period_s))  # the load has begun
        while time.monotonic() < end_s and self.server.exit_code is None:
            begin_s = time.monotonic()
            if not await self._kill_and_heal(control, next(draws), dice):
                return
            rest_s = begin_s + self.settings.period_s - time.monotonic()
            await asyncio.sleep(max(0.0, min(rest_s, end_s - time.monotonic())))

    def _wanted(self) -> list[ProcessKind]:
        return [kind for kind in self.settings.kinds if self._present[kind]]

    async def _kill_and_heal(self, control: Control, kind: ProcessKind, dice: random.Random) -> bool:
        """Kill a process and wait for its replacement; return false when that does not come."""
        victims = [one for one in find_victims(self.server.pid) if one.kind is kind]
        if not victims:  # everything was healthy a moment ago: only standbys may still be missing
            self.settings.say(f"no {kind} is ready yet")
            return True
        done = self._kill(dice.choice(victims))
        why = await self._heal(control, self._vital(), done)
        self.settings.say(_in_words(done, why))
        return why is None

    def _kill(self, victim: Victim) -> Kill:
        ports = client_ports(victim.pid, self.server.port) if victim.kind is ProcessKind.API_SERVER else frozenset()
        self.segments |= session_segments(self.server.pid)
        self.kills.append(Kill(victim, time.monotonic(), ports))  # recorded before a client can notice the kill
        kill(victim)
        return self.kills[-1]

    async def _heal(self, control: Control, kinds: Sequence[ProcessKind], done: Kill | None = None) -> str | None:
        """Wait until every process is present and healthy; return the reason when the time is over."""
        begin_s, why = time.monotonic(), "not checked"
        while time.monotonic() - begin_s < HEAL_TIMEOUT_S and self.server.exit_code is None:
            await asyncio.sleep(POLL_S)
            if (why := await self._unwell(control, kinds, done) or "") == "":
                if done is not None:
                    done.healed_s = time.monotonic() - done.at_s
                return None
        ended = self.server.exit_code
        why = f"the server ended with exit code {ended}" if ended is not None else f"not healthy in time: {why}"
        self.problems.append(why)
        return why

    async def _unwell(self, control: Control, kinds: Sequence[ProcessKind], done: Kill | None) -> str | None:
        present = find_victims(self.server.pid)
        if done is not None and any(one.pid == done.victim.pid for one in present):
            return "the killed process still exists"
        missing = self._present - count_by_kind(present)
        if absent := [f"{missing[kind]} {kind}" for kind in kinds if missing[kind] > 0]:
            return f"missing: {', '.join(absent)}"
        try:
            return await control.unwell()
        except ControlFailed as error:  # the killed process may be the API server that was asked
            return str(error)

    def _vital(self) -> list[ProcessKind]:
        """Return the kinds that must be present before the next kill.

        Standbys are excluded: they prepare in the background, and a full load leaves them no time.
        """
        return [kind for kind in self._present if kind is not ProcessKind.STANDBY]


def _in_words(done: Kill, why: str | None) -> str:
    healed = f"healed after {done.healed_s:.1f} s" if done.healed_s is not None else str(why)
    return f"killed {done.victim.name}: {healed}"
