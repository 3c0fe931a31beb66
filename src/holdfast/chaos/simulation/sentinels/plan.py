"""Schedules: everything that decides a run, drawn from a seed. A failing schedule is shrunk by leaving items out."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from holdfast.chaos.simulation.sentinels.wire import Weather
from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec
from holdfast.core.policy.incident import MAX_BACKOFF_S
from holdfast.hosts.fake import EngineOptions


class Kind(enum.StrEnum):
    """Kinds of planned items: all but commands and clocks are faults."""

    FAULT = "fault"
    KILL_WORKER = "kill-worker"
    KILL_ENGINE = "kill-engine"
    KILL_LINK = "kill-link"
    KILL_COORDINATOR = "kill-coordinator"
    FREEZE = "freeze"
    FAIL_EFFECT = "fail-effect"
    BLOCK_EFFECT = "block-effect"
    MUTE = "mute"
    BAD_START = "bad-start"
    CLOCK = "clock"
    COMMAND = "command"


FAULTS = frozenset(Kind) - {Kind.CLOCK, Kind.COMMAND}
OWNER_EFFECTS = (
    "open_rendezvous",
    "close_rendezvous",
    "replace_engine",
    "leave_out_engine",
    "replace_process",
    "sink",
)
ENGINE_EFFECTS = ("break_collectives", "interrupt", "kill_rank", "arm", "evidence")
SETTINGS_EFFECTS = ("configure", "drop_requests_of", "introduce_to_coordinator")
WORKER_EFFECTS = ("worker_break", "worker_arm")
EFFECTS = (*OWNER_EFFECTS, *ENGINE_EFFECTS, *SETTINGS_EFFECTS, *WORKER_EFFECTS)
SELDOM = ("leave_out_engine", "arm", "introduce_to_coordinator", "close_rendezvous")
EFFECT_DRAWS = (*EFFECTS, *SELDOM, *SELDOM)
MOST_TIMES = 6
COMMANDS = (
    "pause",
    "soft-pause",
    "pause-all",
    "resume",
    "retry",
    "restart-workers",
    "restart-engine",
    "configure",
    "inject-fault",
    "inject-many",
)


@dataclass(frozen=True)
class Planned:
    """Something that happens at a time: `what` names an effect, a command or a process, `times` how often."""

    at: float
    kind: Kind
    target: int = 0
    what: str = ""
    seconds: float = 0.0
    times: int = 1
    spec: InjectionSpec | None = None
    via_link: bool = False

    def __str__(self) -> str:
        about = f" {self.what}" if self.what else ""
        fault = f" {self.spec.kind} at {self.spec.phase} x{self.spec.times}" if self.spec else ""
        return f"{self.at:.2f} s: {self.kind}{about} of {self.target}{fault}"


@dataclass(frozen=True)
class Schedule:
    """A run: the layout, the weather, and the planned items."""

    seed: int
    groups: tuple[tuple[int, ...], ...] = ((0,),)
    engines: tuple[EngineOptions, ...] = (EngineOptions(),)
    links: int = 0
    weather: Weather = field(default_factory=Weather)
    config: HoldfastConfig = field(default_factory=HoldfastConfig)
    planned: tuple[Planned, ...] = ()
    requests_per_engine: int = 3
    operator_answers: float = 0.95
    pauses_s: float = 0.0  # how long an operator pauses at least
    has_short_history: bool = False

    @property
    def faults(self) -> int:
        return sum(p.kind in FAULTS for p in self.planned)

    def has(self, kind: Kind) -> bool:
        """Return whether an item of a kind is planned."""
        return any(item.kind is kind for item in self.planned)

    def only(self, kept: tuple[int, ...]) -> Schedule:
        """Return the schedule with some of the planned items."""
        return replace(self, planned=tuple(self.planned[i] for i in kept))

    def is_poison(self, request_id: str) -> bool:
        """Return False: no schedule ties a fault to a request."""
        return False

    @property
    def last_s(self) -> float:
        lasts = (p.at + (p.seconds if p.kind in (Kind.FREEZE, Kind.MUTE) else 0.0) for p in self.planned)
        return max(lasts, default=0.0)

    @property
    def recovery_bound_s(self) -> float:
        """Seconds from a first fault until healthy or ended, for any losses and failures on the way."""
        c = self.config
        one_s = c.containment_timeout_s + c.drain_timeout_s + c.rebuild_timeout_s + c.worker_start_timeout_s
        tries = (c.max_retries + 1) * (c.max_worker_restarts + 1) * (c.max_engine_restarts + 1)
        pauses_s = (MAX_BACKOFF_S + c.engine_start_timeout_s) * (c.max_worker_restarts + c.max_engine_restarts + 1)
        return c.engine_recovery_timeout_s + c.containment_timeout_s + tries * one_s + pauses_s


def draw_schedule(seed: int) -> Schedule:
    """Draw the schedule of a seed: layout, policy, weather, and three to seven faults among other items."""
    dice = random.Random(f"schedule {seed}")
    groups = dice.choice([((0,),), ((0,),), ((0,), (1,)), ((0, 1),), ((0, 1),), ((0, 1), (2,)), ((0,), (1,), (2,))])
    ranks = dice.randint(1, 2)
    engines = tuple(
        EngineOptions(ranks=ranks, blocks=dice.choice([14, 40]), step_tokens=dice.choice([5, 16]))
        for group in groups
        for _ in group
    )
    weather = dice.choice(
        [
            Weather(),
            Weather(),
            Weather(duplication=0.2, delay_s=dice.choice([0.01, 0.2])),
            Weather(loss=dice.choice([0.02, 0.1]), duplication=0.1, delay_s=0.05),
        ]
    )
    policy: Any = dice.choice(["auto", "auto", "auto", "external", "external", "dry-run"])
    fallback: Any = dice.choice(["none", "auto"])
    config = HoldfastConfig(
        fault_policy=policy,
        external_fallback=fallback if policy == "external" else "none",
        enable_fault_injection=True,
        engine_recovery_timeout_s=20.0,
        max_retries=dice.choice([1, 4]),
        retry_window_s=30.0,
        drain_timeout_s=2.0,
        rebuild_timeout_s=12.0,
        containment_timeout_s=5.0,
        acknowledge_timeout_s=1.0,
        max_engine_restarts=dice.choice([0, 2, 3, 3]),
        engine_restart_window_s=dice.choice([15.0, 120.0, 120.0]),
        engine_start_timeout_s=8.0,
        max_worker_restarts=dice.choice([0, 2, 3]),
        worker_restart_window_s=120.0,
        worker_start_timeout_s=3.0,
        max_api_server_restarts=3,
        min_engines=1,
        poison_detection=False,
    )
    links = dice.choice([0, 0, 1, 2])
    faults = [_draw_fault(dice, engines, links) for _ in range(dice.randint(3, 7))]
    others = [_draw_other(dice, engines, links) for _ in range(dice.randint(0, 3))]
    others += [provoked for item in faults for provoked in _provoke(dice, item, engines, links)]
    others += _draw_early(dice, engines, weather)
    if policy == "external" and len(groups) > 1 and dice.random() < 0.3:
        others += _draw_everywhere(dice, engines)
    planned = tuple(sorted((*faults, *others), key=lambda p: p.at))
    if policy != "auto":  # a fault in every step outlasts every operator: retries that slow are within each budget
        planned = tuple(_seldom(item) for item in planned)
    return Schedule(
        seed,
        groups,
        engines,
        links,
        weather,
        config,
        planned,
        pauses_s=dice.choice([0.0, 0.0, 0.0, 40.0]),
        has_short_history=dice.random() < 0.2,
    )


def _seldom(item: Planned) -> Planned:
    """Return an item whose fault happens a few times at most."""
    if item.spec is None or item.spec.times <= MOST_TIMES:
        return item
    return replace(item, spec=msgspec.structs.replace(item.spec, times=MOST_TIMES))


def _draw_fault(dice: random.Random, engines: tuple[EngineOptions, ...], links: int) -> Planned:
    at, target = round(dice.uniform(0.2, 12.0), 3), dice.randrange(len(engines))
    kind = dice.choice(
        [Kind.FAULT] * 8
        + [Kind.KILL_WORKER] * 3
        + [Kind.KILL_ENGINE] * 3
        + [Kind.FREEZE, Kind.BAD_START, Kind.MUTE]
        + [Kind.FAIL_EFFECT] * 5
        + [Kind.BLOCK_EFFECT]
        + [Kind.KILL_LINK, Kind.KILL_COORDINATOR]
    )
    match kind:
        case Kind.FAULT:
            return Planned(at, kind, target, spec=_draw_injection(dice, target, engines[target].ranks))
        case Kind.FREEZE:
            what = dice.choice(["owner", "engine", "engine", "worker"])
            return Planned(at, kind, target, what, seconds=dice.choice([0.3, 2.0, 7.0]))
        case Kind.MUTE:
            return Planned(at, kind, seconds=dice.choice([0.2, 1.0]))
        case Kind.FAIL_EFFECT:
            return Planned(at, kind, what=dice.choice(EFFECT_DRAWS), times=dice.choice([1, 1, 2]))
        case Kind.BLOCK_EFFECT:
            return Planned(at, kind, what=dice.choice(EFFECTS), seconds=dice.choice([0.2, 1.0]))
        case Kind.KILL_LINK:
            return Planned(at, kind, dice.randrange(max(1, links)))
        case _:
            return Planned(at, kind, target)


def _provoke(dice: random.Random, item: Planned, engines: tuple[EngineOptions, ...], links: int) -> list[Planned]:
    """Draw what asks for the effect that is to fail or block: some effects are seldom asked for."""
    at, target = item.at + round(dice.uniform(0.01, 1.0), 3), dice.randrange(len(engines))
    spec, rank = _draw_injection(dice, target, engines[target].ranks), dice.randrange(engines[target].ranks)
    hang = InjectionSpec(phase=Phase.FORWARD, kind=FaultKind.HANG, engine_id=target, rank=rank, after_steps=2, times=3)
    match item.what if item.kind in (Kind.FAIL_EFFECT, Kind.BLOCK_EFFECT) else "":
        case "arm":
            spec = msgspec.structs.replace(spec, phase=Phase.SCHEDULE_START, kind=FaultKind.RAISE, rank=0)
            return [Planned(at, Kind.COMMAND, target, "inject-fault", spec=spec)]
        case "worker_arm":
            return [Planned(at, Kind.COMMAND, target, "inject-fault", spec=hang)]
        case "configure":
            return [Planned(at, Kind.COMMAND, target, "configure")]
        case "evidence" | "kill_rank":
            return [Planned(at, Kind.FAULT, target, spec=hang)]
        case "drop_requests_of" | "replace_process" if links:
            return [Planned(at, Kind.KILL_LINK, dice.randrange(links))]
        case "introduce_to_coordinator":
            return [Planned(at, Kind.KILL_COORDINATOR)]
        case "leave_out_engine":
            kills = [Planned(at + wait_s, Kind.KILL_ENGINE, target) for wait_s in (0.0, 3.0, 7.0, 14.0)]
            others = [i for i in range(len(engines)) if i != target] if dice.random() < 0.5 else []
            return kills + [Planned(at + 4.0 * n, Kind.KILL_ENGINE, i) for i in others for n in (0.15, 1.0, 2.0)]
    return []


def _draw_everywhere(dice: random.Random, engines: tuple[EngineOptions, ...]) -> list[Planned]:
    """Draw a fault of every engine core, and one of its next recovery: a single command fails in every group."""
    at, drawn = round(dice.uniform(1.0, 8.0), 3), []
    for target in range(len(engines)):
        for phase in (Phase.RECOVERY, Phase.STEP_START):
            spec = InjectionSpec(phase=phase, kind=FaultKind.RAISE, engine_id=target, times=2)
            drawn.append(Planned(at, Kind.FAULT, target, spec=spec))
    return drawn


def _draw_early(dice: random.Random, engines: tuple[EngineOptions, ...], weather: Weather) -> list[Planned]:
    """Draw faults that meet an engine core before it has attached, or while a fault of it is told."""
    target, drawn, at = dice.randrange(len(engines)), dice.random(), round(dice.uniform(1.0, 9.0), 3)
    if drawn < 0.02:
        return [Planned(round(dice.uniform(0.0, 0.05), 3), Kind.KILL_ENGINE, target)]
    if drawn < 0.1:
        until_told_s = round(dice.uniform(0.08, 0.2), 3)
        return [Planned(at, Kind.KILL_WORKER, target), Planned(at + until_told_s, Kind.KILL_ENGINE, target)]
    if drawn < 0.35 and weather.delay_s >= 0.05:
        return [Planned(round(dice.uniform(0.03, 0.25), 3), Kind.KILL_WORKER, target)]
    return []


def _draw_other(dice: random.Random, engines: tuple[EngineOptions, ...], links: int) -> Planned:
    at, target = round(dice.uniform(0.2, 12.0), 3), dice.randrange(len(engines))
    if dice.random() < 0.15:
        return Planned(at, Kind.CLOCK, seconds=dice.choice([-3600.0, -10.0, 5.0, 86400.0]))
    spec = _draw_injection(dice, target, engines[target].ranks)
    return Planned(
        at, Kind.COMMAND, target, dice.choice(COMMANDS), spec=spec, via_link=links > 0 and dice.random() < 0.5
    )


def _draw_injection(dice: random.Random, engine_id: int, ranks: int) -> InjectionSpec:
    phase = dice.choice([*Phase, Phase.RECOVERY, Phase.REBUILD, Phase.FORWARD, Phase.FORWARD])
    kind = FaultKind.RAISE
    if phase.in_worker and phase is not Phase.REBUILD:
        kind = dice.choice([FaultKind.RAISE] * 4 + [FaultKind.KILL, FaultKind.HANG])
    return InjectionSpec(
        phase=phase,
        kind=kind,
        engine_id=engine_id,
        rank=dice.randrange(ranks) if phase.in_worker else 0,
        after_steps=dice.randint(0, 2 if phase in (Phase.RECOVERY, Phase.REBUILD, Phase.RESUME) else 8),
        times=dice.choice([1] * 6 + [2, 4, 1000]),
        request_index=dice.randint(0, 2),
        message=dice.choice(["injected fault"] * 9 + ["an illegal memory access was encountered"]),
    )


def shrink(kept: tuple[int, ...], fails: Callable[[tuple[int, ...]], bool], tries: int = 60) -> tuple[int, ...]:
    """Return fewer items that still fail: leave out halves, then quarters, then single items."""
    size = max(1, len(kept) // 2)
    while tries > 0:
        for start in range(0, len(kept), size):
            fewer = kept[:start] + kept[start + size :]
            tries -= 1
            if len(fewer) < len(kept) and fails(fewer):
                kept = fewer
                break
        else:
            if size == 1:
                return kept
            size //= 2
    return kept
