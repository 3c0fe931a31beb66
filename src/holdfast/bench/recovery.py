"""Measures recovery: the cost of faults for the clients of each topology, and the full restart of its server.

Owns the servers, one after another. `scenarios` chooses the faults, `figures` computes the document.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.bench.faulted_run import Reference, run_faulted, run_reference
from holdfast.bench.figures import FaultedRun, RecoveryDocument, TopologyFigures, faulted_run_of, figures_of
from holdfast.bench.instrument import precise_client
from holdfast.bench.loads import LoadKind, make_load, poisoned
from holdfast.bench.machine import describe_machine
from holdfast.bench.restart import Restart, measure_restart
from holdfast.bench.scenarios import Chosen, Scenario
from holdfast.bench.servers import MANY_FAULTS, relevant_environment, server_arguments, server_spec
from holdfast.bench.topologies import Standby, Topology
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import Control
from holdfast.chaos.processes import SessionUsage, session_segments, session_usage, still_shared
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load
from holdfast.core.errors import HoldfastError
from holdfast.core.faults.injection import InjectionSpec

SOAK_ROUNDS = 10  # how often a soak reads the server's resources


@dataclass(frozen=True)
class RecoverySettings:
    """Settings of a measurement. `seed` marks a soak with drawn scenarios; `say` receives progress in words."""

    chosen: Chosen
    logs: Path
    repeat: int = 1
    streams: int = 8
    tokens: int = 200
    seed: int | None = None
    say: Callable[[str], None] = print

    def rounds(self, scenarios: Sequence[Scenario]) -> list[Sequence[Scenario]]:
        """Split scenarios into rounds; resource usage is read between rounds."""
        if self.seed is None:
            return [scenarios] * self.repeat
        size = -(-len(scenarios) // SOAK_ROUNDS)
        return [scenarios[begin : begin + size] for begin in range(0, len(scenarios), size)]


def measure_recovery(settings: RecoverySettings) -> RecoveryDocument:
    """Start a server for each topology, inject each scenario and repetition, and restart the server."""
    machine = describe_machine()
    with precise_client() as prompt:
        topologies = tuple(_measure(topology, scenarios, settings) for topology, scenarios in settings.chosen)
    return RecoveryDocument(
        benchmark="recovery",
        version=2,
        machine=machine,
        environment=relevant_environment(),
        streams=settings.streams,
        tokens_per_stream=settings.tokens,
        client_scheduled_at_once=prompt,
        seed=settings.seed,
        topologies=topologies,
        lawful=bool(topologies) and all(figures.lawful for figures in topologies),
        targets_met=all(target.met for figures in topologies for target in figures.targets),
    )


def _measure(topology: Topology, scenarios: Sequence[Scenario], settings: RecoverySettings) -> TopologyFigures:
    """Measure a topology. A failing server is part of the figures and does not affect further topologies."""
    run = _TopologyRun(topology, settings)
    restart, failure = None, None
    try:
        restart = run.to_the_end(scenarios)
    except HoldfastError as error:
        failure = str(error)
        settings.say(f"{topology.name}: {failure}")
    return figures_of(
        topology,
        run.runs,
        run.usage,
        restart,
        server_arguments=server_arguments(topology, *MANY_FAULTS),
        left_behind=tuple(run.left_behind),
        failure=failure,
    )


@dataclass
class _TopologyRun:
    """The server of a topology, with the results so far."""

    topology: Topology
    settings: RecoverySettings
    runs: list[FaultedRun] = field(default_factory=list)
    usage: list[SessionUsage] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    _segments: set[str] = field(default_factory=set)
    _references: dict[LoadKind, Reference] = field(default_factory=dict)

    def to_the_end(self, scenarios: Sequence[Scenario]) -> Restart:
        """Start, inject, restart, end. Raises `HoldfastError` when the server fails."""
        log = self.settings.logs / f"recovery-{self.topology.label.replace(', ', '-').replace(' ', '-')}.log"
        self.say("starting the server")
        server = Server(server_spec(self.topology, log, *MANY_FAULTS)).start()
        try:
            self.say(f"ready after {server.start_s:.1f} s")
            asyncio.run(self._run_scenarios(server, scenarios))
            self.say("restarting the server, for comparison")
            server, restart = measure_restart(server)
        finally:
            server.stop()
            self.left_behind += [f"process {pid}" for pid in server.orphans()]
            self.left_behind += sorted(segment for segment in self._segments if still_shared(segment))
        return restart

    def say(self, text: str) -> None:
        self.settings.say(f"{self.topology.label}: {text}")

    async def _run_scenarios(self, server: Server, scenarios: Sequence[Scenario]) -> None:
        """Run every scenario, round after round, and read the server's usage between rounds."""
        await self._load(server, LoadKind.LONG_PROMPTS, tokens=8).run()  # warm-up
        async with Control(server.url) as control:
            await self._reference(server, control, LoadKind.SHORT_PROMPTS)
            self.usage.append(session_usage(server.pid))
            for scenarios_of_round in self.settings.rounds(scenarios):
                for scenario in scenarios_of_round:
                    await self._run_scenario(server, control, scenario)
                self.usage.append(session_usage(server.pid))
                self._segments |= session_segments(server.pid)

    async def _run_scenario(self, server: Server, control: Control, scenario: Scenario) -> None:
        if server.exit_code is not None:
            raise server.failure(f"the server ended with exit code {server.exit_code}")
        reference = await self._reference(server, control, scenario.load)
        if self.topology.standby is not Standby.NONE:
            await control.await_standbys()
        injection = scenario.injection(self.settings.tokens)
        load = self._load(server, scenario.load, hurt_by=injection)
        result = await run_faulted(load, control, reference, injection, self.topology)
        self.runs.append(faulted_run_of(self.topology, scenario, self.settings.tokens, result))
        self.say(_in_words(self.runs[-1]))

    def _load(
        self, server: Server, kind: LoadKind, *, tokens: int | None = None, hurt_by: InjectionSpec | None = None
    ) -> Load:
        streams, tokens = self.settings.streams, tokens or self.settings.tokens
        specs = make_load(kind, streams=streams, tokens=tokens, engines=self.topology.engines)
        return Load(server.url, poisoned(specs, hurt_by.engine_id, hurt_by.request) if hurt_by else specs)

    async def _reference(self, server: Server, control: Control, kind: LoadKind) -> Reference:
        """Return the fault-free run of a load; in a soak always the first run.

        Lasting damage would change the runs before and after a later fault alike: every run is compared with the first.
        """
        first = self._references.get(kind)
        if first is not None and self.settings.seed is not None:
            return first
        reference = await run_reference(self._load(server, kind), control)
        if first is None:
            return self._references.setdefault(kind, reference)
        damage = compare_runs(first.histories, reference.histories).reasons
        return Reference(reference.histories, (*reference.problems, *(f"without a fault, {one}" for one in damage)))


def _in_words(run: FaultedRun) -> str:
    what = f"{run.scenario}, {run.place}, after {run.after_steps}"
    if run.interruption_max_s is None or run.interruption_median_s is None:
        return f"{what}: {'; '.join(run.problems[:3]) or 'no stream was interrupted'}"
    told = f"median {run.interruption_median_s * 1000:.0f} ms, max {run.interruption_max_s * 1000:.0f} ms"
    lag = f" (the measuring client was up to {run.client_lag_s * 1000:.0f} ms late)"
    late = lag if run.client_lag_s > run.interruption_max_s / 2 else ""
    return f"{what}: {told}{late}, {'; '.join(run.problems[:3]) or 'exact'}"
