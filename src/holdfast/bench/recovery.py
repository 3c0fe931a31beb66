"""Measures recovery: what an exception at each phase of a step costs the clients, beside a full restart.

Owns the table of scenarios and the document. Every scenario has its own fault-free run on the same server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from holdfast.bench.instrument import precise_client
from holdfast.bench.loads import SERVER_ARGUMENTS, LoadKind, make_load
from holdfast.bench.machine import Machine, describe_machine
from holdfast.bench.restart import Restart, measure_restart
from holdfast.bench.trial import Outcome, run_faulted, run_reference
from holdfast.chaos.checker import spread_of
from holdfast.chaos.control import Control
from holdfast.chaos.processes import SessionUsage, session_usage
from holdfast.chaos.server import Server, ServerSpec
from holdfast.chaos.streams import Load
from holdfast.core.faults import Phase
from holdfast.core.injection import InjectionSpec

# A benchmark breaks the server more often than its defaults allow within their window.
FAULT_ARGUMENTS = (
    "--enable-fault-injection",
    *("--max-retries", "1000"),
    *("--external-fault-notify-port", "0"),
)
_ARGUMENTS = (*SERVER_ARGUMENTS, *FAULT_ARGUMENTS)


@dataclass(frozen=True)
class Scenario:
    """Where an exception is raised, under which load, and after how many steps: a share of the answers' length."""

    name: str
    phase: Phase
    load: LoadKind = LoadKind.SHORT_PROMPTS
    share: float = 0.4

    def injection(self, tokens: int) -> InjectionSpec:
        return InjectionSpec(phase=self.phase, after_steps=int(tokens * self.share))


SCENARIOS = (
    Scenario("start of a step", Phase.STEP_START),
    Scenario("forward pass", Phase.FORWARD),
    Scenario("after the forward pass", Phase.STEP_END),
    Scenario("before sampling", Phase.SAMPLE_START),
    Scenario("after sampling", Phase.SAMPLE_END),
    Scenario("before scheduling", Phase.SCHEDULE_START),
    Scenario("after scheduling", Phase.SCHEDULE_END),
    Scenario("before output processing", Phase.OUTPUT_START),
    Scenario("inside output processing", Phase.OUTPUT_REQUEST),
    Scenario("after output processing", Phase.OUTPUT_END),
    Scenario("first prefill step", Phase.FORWARD, share=0),
    Scenario("chunked prefill", Phase.FORWARD, LoadKind.LONG_PROMPTS, share=0.02),
)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One faulted run of a scenario; seconds, over its streams."""

    scenario: str
    phase: str
    load: str
    interruption_median_s: float | None
    interruption_max_s: float | None
    interruptions_s: tuple[float, ...]
    fault_free_longest_gap_s: float
    client_lag_s: float
    interrupted_streams: int
    streams: int
    lost_tokens: int
    repeated_tokens: int
    changed_tokens: int
    recovery_report: dict[str, float | int] | None
    problems: tuple[str, ...]


class RecoveryDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `bench recovery --json` writes."""

    benchmark: str
    version: int
    machine: Machine
    streams: int
    tokens_per_stream: int
    server_arguments: tuple[str, ...]
    client_scheduled_at_once: bool
    trials: tuple[Trial, ...]
    usage: tuple[SessionUsage, ...]  # of the server: before the first repetition, and after each
    restart: Restart
    restart_total_s: float
    interruption_median_s: float | None  # over every stream of every trial
    interruption_max_s: float | None
    lost_tokens: int
    repeated_tokens: int
    changed_tokens: int
    restart_to_median_interruption: float | None
    restart_to_max_interruption: float | None
    lawful: bool


@dataclass(frozen=True)
class RecoverySettings:
    """What to run. `say` is told progress in words."""

    model: Path
    log: Path
    scenarios: Sequence[Scenario] = SCENARIOS
    repeat: int = 1
    streams: int = 8
    tokens: int = 200
    say: Callable[[str], None] = print


def choose_scenarios(wanted: Sequence[str]) -> tuple[Scenario, ...]:
    """Scenarios whose name or phase contains one of the words; all for none. Raises ValueError for a word in vain."""
    for word in wanted:
        if not any(_matches(scenario, word) for scenario in SCENARIOS):
            names = ", ".join(scenario.name for scenario in SCENARIOS)
            raise ValueError(f"no scenario matches {word!r}; there are: {names}")
    return tuple(one for one in SCENARIOS if not wanted or any(_matches(one, word) for word in wanted))


def _matches(scenario: Scenario, word: str) -> bool:
    return word.lower() in scenario.name or word.lower() == scenario.phase


def measure_recovery(settings: RecoverySettings) -> RecoveryDocument:
    """Start a server, break it once per scenario and repetition, restart it, and put the figures together."""
    machine = describe_machine()
    settings.say("starting the server")
    server = Server(ServerSpec(model=settings.model, log=settings.log, arguments=_ARGUMENTS)).start()
    try:
        settings.say(f"ready after {server.start_s:.1f} s")
        with precise_client() as prompt:
            trials, usage = asyncio.run(_run_trials(server, settings))
        settings.say("restarting the server, for comparison")
        server, restart = measure_restart(server)
    finally:
        server.stop()
    return _document(machine, settings, prompt, trials, usage, restart)


async def _run_trials(server: Server, settings: RecoverySettings) -> tuple[list[Trial], list[SessionUsage]]:
    """Every scenario, `repeat` times, and what the server held between the repetitions."""
    await Load(server.url, make_load(LoadKind.LONG_PROMPTS, streams=settings.streams, tokens=8)).run()  # warm-up
    trials: list[Trial] = []
    usage = [session_usage(server.pid)]
    async with Control(server.url) as control:
        for _ in range(settings.repeat):
            for scenario in settings.scenarios:
                if server.exit_code is not None:
                    raise server.failure(f"the server ended with exit code {server.exit_code}")
                trials.append(_trial(scenario, await _run_scenario(server, control, scenario, settings)))
                settings.say(_in_words(trials[-1]))
            usage.append(session_usage(server.pid))
    return trials, usage


async def _run_scenario(server: Server, control: Control, scenario: Scenario, settings: RecoverySettings) -> Outcome:
    def load() -> Load:
        return Load(server.url, make_load(scenario.load, streams=settings.streams, tokens=settings.tokens))

    reference, problems = await run_reference(load(), control)
    return await run_faulted(load(), control, reference, scenario.injection(settings.tokens), problems)


def _trial(scenario: Scenario, outcome: Outcome) -> Trial:
    waits = outcome.waits_s()
    spread = spread_of(waits) if waits else None
    reports = [event["report"] for event in outcome.events if event.get("report")]
    return Trial(
        scenario=scenario.name,
        phase=scenario.phase,
        load=scenario.load,
        interruption_median_s=spread.median if spread else None,
        interruption_max_s=spread.maximum if spread else None,
        interruptions_s=tuple(waits),
        fault_free_longest_gap_s=outcome.reference_gap_s,
        client_lag_s=outcome.client_lag_s,
        interrupted_streams=len(waits),
        streams=len(outcome.interruptions_s),
        lost_tokens=outcome.verdict.lost,
        repeated_tokens=outcome.verdict.repeated,
        changed_tokens=outcome.verdict.changed,
        recovery_report=reports[-1] if reports else None,
        problems=outcome.problems,
    )


def _in_words(trial: Trial) -> str:
    if trial.interruption_max_s is None or trial.interruption_median_s is None:
        return f"{trial.scenario}: {'; '.join(trial.problems[:3]) or 'no stream was interrupted'}"
    told = f"median {trial.interruption_median_s * 1000:.0f} ms, max {trial.interruption_max_s * 1000:.0f} ms"
    lag = f" (this client itself came up to {trial.client_lag_s * 1000:.0f} ms late)"
    late = lag if trial.client_lag_s > trial.interruption_max_s / 2 else ""
    return f"{trial.scenario}: {told}{late}, {'; '.join(trial.problems[:3]) or 'exact'}"


def _document(
    machine: Machine,
    settings: RecoverySettings,
    prompt: bool,
    trials: Sequence[Trial],
    usage: Sequence[SessionUsage],
    restart: Restart,
) -> RecoveryDocument:
    waits = [wait for trial in trials for wait in trial.interruptions_s]
    median_s, max_s = (spread_of(waits).median, max(waits)) if waits else (None, None)
    return RecoveryDocument(
        benchmark="recovery",
        version=1,
        machine=machine,
        streams=settings.streams,
        tokens_per_stream=settings.tokens,
        server_arguments=_ARGUMENTS,
        client_scheduled_at_once=prompt,
        trials=tuple(trials),
        usage=tuple(usage),
        restart=restart,
        restart_total_s=restart.total_s,
        interruption_median_s=median_s,
        interruption_max_s=max_s,
        lost_tokens=sum(trial.lost_tokens for trial in trials),
        repeated_tokens=sum(trial.repeated_tokens for trial in trials),
        changed_tokens=sum(trial.changed_tokens for trial in trials),
        restart_to_median_interruption=restart.total_s / median_s if median_s else None,
        restart_to_max_interruption=restart.total_s / max_s if max_s else None,
        lawful=bool(trials) and not any(trial.problems for trial in trials),
    )
