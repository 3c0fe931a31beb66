"""Conditions of a simulated run: engines, requests, faults, and the weather on the link between processes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from holdfast.core.config import FaultPolicy, HoldfastConfig
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.policy.incident import MAX_BACKOFF_S
from holdfast.hosts.fake import EngineOptions


@dataclass(frozen=True)
class Weather:
    """Treatment of messages by a link. Odds are per message; every message has a delay, so messages overtake."""

    loss: float = 0.0
    loses: frozenset[type] = frozenset()  # messages that never arrive
    duplication: float = 0.0
    delay_s: float = 0.0


@dataclass(frozen=True)
class Conditions:
    """Everything that decides a run, drawn from a seed."""

    seed: int
    weather: Weather = Weather()
    policy: FaultPolicy = "auto"
    engines: tuple[EngineOptions, ...] = (EngineOptions(),)
    requests_per_engine: int = 4
    faults: tuple[InjectionSpec, ...] = ()
    aborts: int = 0
    operator_answers: float = 1.0  # external: the odds that somebody orders a retry
    stuck: float = 0.0  # the odds that a busy loop never comes back from a fault
    worker_lost: float = 0.0  # the odds, per engine core, that the process of one of its ranks dies
    silent: float = 0.0  # the odds that a rank stops as told and does not acknowledge
    max_worker_restarts: int = 3
    lost: float = 0.0  # the odds, per engine core, that its process dies; also while it starts
    max_engine_restarts: int = 0
    config: HoldfastConfig = field(init=False)

    def __post_init__(self) -> None:
        alike = len({e.ranks for e in self.engines}) == 1  # then any of them can go on with a request
        config = HoldfastConfig(
            min_engines=1 if alike else max(1, len(self.engines)),
            fault_policy=self.policy,
            engine_recovery_timeout_s=20.0,
            max_retries=4,
            retry_window_s=30.0,
            drain_timeout_s=2.0,
            containment_timeout_s=5.0,
            acknowledge_timeout_s=1.0,
            max_engine_restarts=self.max_engine_restarts,
            engine_restart_window_s=120.0,
            max_worker_restarts=self.max_worker_restarts,
            worker_restart_window_s=120.0,
            worker_start_timeout_s=3.0,
        )
        object.__setattr__(self, "config", config)

    def is_poison(self, request_id: str) -> bool:
        """Return True when a fault is tied to the request alone."""
        return any(f.request and f.request in request_id and f.together == 1 for f in self.faults)

    @property
    def recovery_bound_s(self) -> float:
        """Seconds from a first fault until healthy or ended, for any losses and failures on the way."""
        c = self.config
        one_recovery_s = c.containment_timeout_s + c.drain_timeout_s + c.rebuild_timeout_s + c.worker_start_timeout_s
        # After every worker restart the retries are counted anew.
        tries = (c.max_retries + 1) * (c.max_worker_restarts + 1)
        pauses_s = MAX_BACKOFF_S * (c.max_worker_restarts + c.max_engine_restarts)
        tries *= c.max_engine_restarts + 1  # in another process everything is counted anew
        return c.engine_recovery_timeout_s + c.containment_timeout_s + tries * one_recovery_s + pauses_s


def draw_conditions(seed: int) -> Conditions:
    """Draw the conditions of a seed: a third on a clean link, a third delayed and repeated, a third also lossy."""
    dice = random.Random(seed)
    weather = (
        Weather(),
        Weather(duplication=0.2, delay_s=dice.choice([0.01, 0.3])),
        Weather(loss=dice.choice([0.03, 0.15]), duplication=0.1, delay_s=0.1),
    )[seed % 3]
    engines = tuple(
        EngineOptions(
            ranks=dice.randint(1, 2),
            blocks=dice.choice([10, 14, 40]),
            step_tokens=dice.choice([5, 16]),
            steps_in_flight=dice.randint(1, 2),
        )
        for _ in range(dice.randint(1, 3))
    )
    rough = dice.random() < 0.25
    return Conditions(
        seed=seed,
        weather=weather,
        policy=dice.choice(["auto", "auto", "external"]),
        engines=engines,
        faults=tuple(_draw_fault(dice, engines) for _ in range(dice.randint(1, 5))),
        aborts=dice.randint(0, 2),
        operator_answers=0.9,
        stuck=0.1 if rough else 0.0,
        lost=0.1 if rough else 0.0,
        worker_lost=dice.choice([0.0, 0.0, 0.5]),
        max_worker_restarts=dice.choice([0, 3, 3]),
        max_engine_restarts=dice.choice([0, 3]),
    )


def _draw_fault(dice: random.Random, engines: tuple[EngineOptions, ...]) -> InjectionSpec:
    engine_id = dice.randrange(len(engines))
    phase = dice.choice([*Phase, Phase.RECOVERY])
    return InjectionSpec(
        phase=phase,
        engine_id=engine_id,
        rank=dice.randrange(engines[engine_id].ranks) if phase.in_worker else 0,
        after_steps=dice.randint(0, 2 if phase is Phase.RECOVERY else dice.choice([4, 30])),
        times=dice.choice([1] * 8 + [2, 6]),
        request_index=dice.randint(0, 2),
        message=dice.choice(["injected fault"] * 29 + ["an illegal memory access was encountered"]),
    )
