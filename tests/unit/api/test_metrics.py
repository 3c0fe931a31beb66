"""Metrics of an instance: what the event stream tells, in the exposition that the host's registry shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from holdfast.api.metrics import catalog as c
from holdfast.api.metrics.exposition import Exposition, Shown
from holdfast.api.metrics.front_end import FrontEndMetrics, Journal
from holdfast.api.metrics.instance import DroppedItems, InstanceMetrics
from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import FaultClass
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import RestartEngine
from holdfast.core.protocol.effects import Publish
from holdfast.core.requests.interruptions import Interruption
from support.instance_bench import EXTERNAL, Bench, a_fault


class Watched(Bench):
    """Instance whose events are counted."""

    def __init__(self, config: HoldfastConfig = HoldfastConfig(), **about: object) -> None:  # noqa: B008
        self.exposition = Exposition()
        self.clock = 0.0
        self.forgotten: list[int] = []
        self.metrics = InstanceMetrics(self.exposition, "0.1", "0.32", lambda: self.clock, self.forgotten.append)
        super().__init__(config, **about)

    def did(self, effects):  # type: ignore[no-untyped-def]
        for effect in effects:
            if isinstance(effect, Publish):
                self.metrics.take(effect.event, effect.view)
        return super().did(effects)

    def recover(self, fault_class: FaultClass = FaultClass.TRANSIENT, **report: object) -> None:
        self.faulted(0, fault=a_fault(fault_class=fault_class))
        self.paused_by_fault(0, fault=a_fault(fault_class=fault_class))
        group, command = self.view(0), self.view(0).last_command_id
        told = m.RecoveryReport(**report)
        self.observe(m.EngineRecovered(engine_id=0, command_id=command, epoch=group.epoch, report=told))

    @property
    def shown(self) -> dict[str, float]:
        return shown(self.exposition)


def shown(exposition: Exposition) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(Shown(exposition))
    lines = generate_latest(registry).decode().splitlines()
    return {sample: float(value) for sample, value in (li.rsplit(" ", 1) for li in lines if not li.startswith("#"))}


def states(found: dict[str, float], engine: int = 0) -> list[str]:
    pattern = re.compile(rf'holdfast_engine_state{{engine="{engine}",state="([\w-]+)"}}')
    return [match[1] for sample, value in found.items() if (match := pattern.fullmatch(sample)) and value]


def test_an_engine_core_is_in_exactly_one_of_all_states() -> None:
    bench = Watched()
    assert states(bench.shown) == ["healthy"]
    bench.faulted(0)
    assert states(bench.shown) == ["faulted"]
    assert sum(sample.startswith("holdfast_engine_state") for sample in bench.shown) == len(c.EngineState)


def test_routers_learn_which_engine_core_is_healthy() -> None:
    bench = Watched(engines=(0, 1))
    bench.faulted(1)
    found = bench.shown
    assert (found['vllm:engine_healthy{engine="0"}'], found['vllm:engine_healthy{engine="1"}']) == (1, 0)


def test_faults_count_by_class_and_recoveries_by_action_and_outcome() -> None:
    bench = Watched()
    bench.recover()
    bench.recover(FaultClass.WORKER_LOST)
    found = bench.shown
    assert found['holdfast_faults_total{class="transient",engine="0"}'] == 1
    assert found['holdfast_faults_total{class="worker-lost",engine="0"}'] == 1
    assert found['holdfast_recoveries_total{action="retry",outcome="succeeded"}'] == 1
    assert found['holdfast_recoveries_total{action="restart-workers",outcome="succeeded"}'] == 1
    assert found['holdfast_recoveries_total{action="retry",outcome="failed"}'] == 0


def test_a_recovery_of_a_lockstep_group_counts_once() -> None:
    bench = Watched(groups=[(0, 1)])
    bench.faulted(0)
    bench.paused_by_fault(0)
    bench.paused_by_fault(1, fault=None)
    command, epoch = bench.view(0).last_command_id, bench.view(0).epoch
    for engine in (0, 1):
        told = m.RecoveryReport(requests=3)
        bench.observe(m.EngineRecovered(engine_id=engine, command_id=command, epoch=epoch, report=told))
    found = bench.shown
    assert found['holdfast_recoveries_total{action="retry",outcome="succeeded"}'] == 1
    assert found['holdfast_requests_total{outcome="rewound"}'] == 6


def test_a_failed_recovery_counts_as_failed() -> None:
    bench = Watched()
    bench.faulted(0)
    bench.paused_by_fault(0)
    command, epoch = bench.view(0).last_command_id, bench.view(0).epoch
    bench.observe(m.RecoveryAborted(engine_id=0, command_id=command, epoch=epoch, fault=a_fault(0)))
    assert bench.shown['holdfast_recoveries_total{action="retry",outcome="failed"}'] == 1


def test_the_figures_of_a_recovery_become_phases_and_counts() -> None:
    bench = Watched()
    bench.recover(requests=4, tokens_to_recompute=70, failed_requests=1, rewind_s=0.2, restore_s=0.1, replace_s=2.0)
    found = bench.shown
    assert found["holdfast_tokens_recomputed_total"] == 70
    assert found['holdfast_requests_total{outcome="failed"}'] == 1
    assert found['holdfast_recovery_phase_seconds_sum{phase="repair"}'] == 2.0
    assert round(found['holdfast_recovery_phase_seconds_sum{phase="restore"}'], 3) == 0.3
    for phase in ("contain", "decide", "repair", "restore"):
        assert found[f'holdfast_recovery_phase_seconds_count{{phase="{phase}"}}'] == 1


def test_a_repair_by_command_has_phases_and_its_action_too() -> None:
    bench = Watched(EXTERNAL)
    bench.faulted(0, fault=a_fault(fault_class=FaultClass.WORKER_LOST))
    bench.paused_by_fault(0, fault=a_fault(fault_class=FaultClass.WORKER_LOST))
    bench.retry("mine")
    told = m.RecoveryReport(replaced_ranks=(0,))
    bench.observe(m.EngineRecovered(engine_id=0, command_id="mine", epoch=bench.view(0).epoch, report=told))
    found = bench.shown
    assert found['holdfast_recoveries_total{action="restart-workers",outcome="succeeded"}'] == 1
    assert found['holdfast_recovery_phase_seconds_count{phase="decide"}'] == 1


def test_a_restart_that_an_operator_ordered_is_no_fault() -> None:
    bench = Watched()
    bench.submit(RestartEngine(command_id="mine", engine_id=0))
    found = bench.shown
    assert states(found) == ["restarting"]
    assert not [sample for sample in found if sample.startswith("holdfast_faults_total")]


def test_counters_outlive_a_lost_engine_core_and_its_gauges_fall_to_zero() -> None:
    bench = Watched()
    bench.recover(requests=4)
    bench.did(bench.instance.lost(0, "killed", bench.now))
    found = bench.shown
    assert states(found) == ["restarting"]
    assert found['holdfast_protected{engine="0"}'] == 0
    assert found['holdfast_faults_total{class="engine-lost",engine="0"}'] == 1
    assert found['holdfast_requests_total{outcome="rewound"}'] == 4
    bench.attached(0, pid=99)
    bench.recover(requests=1)
    assert bench.shown['holdfast_requests_total{outcome="rewound"}'] == 5
    assert bench.shown['holdfast_protected{engine="0"}'] == 1


def test_a_spent_try_comes_back_without_an_event() -> None:
    bench = Watched(HoldfastConfig(max_retries=4, retry_window_s=60.0))
    name = 'holdfast_restart_budget_remaining{engine="0",rung="retry"}'
    assert bench.shown[name] == 4
    bench.recover()
    assert (bench.shown[name], bench.shown['holdfast_restart_budget_limit{rung="retry"}']) == (3, 4)
    bench.clock = 61.0
    bench.metrics.refresh()
    assert bench.shown[name] == 4


def test_standby_workers_are_ready_or_missing() -> None:
    bench = Watched()
    assert not [sample for sample in bench.shown if "standby" in sample]
    bench.observe(m.StandbysChanged(engine_id=0, standbys=m.Standbys(wanted=2, ready=1, memory_bytes=5)))
    found = bench.shown
    assert found['holdfast_standby_workers{engine="0",state="ready"}'] == 1
    assert found['holdfast_standby_workers{engine="0",state="missing"}'] == 1


def test_suspects_count_once_as_quarantined_while_their_number_shrinks() -> None:
    bench = Watched()
    for suspects in (8, 4, 2, 0):
        bench.observe(m.RequestsSuspected(engine_id=0, epoch=0, suspects=suspects, reason="search"))
    assert bench.shown['holdfast_requests_total{outcome="quarantined"}'] == 8


def test_a_lost_process_beside_the_engine_cores_is_down_until_its_replacement_serves() -> None:
    bench = Watched()
    bench.did(bench.instance.process_attached("api-server-1", 5))
    bench.did(bench.instance.process_lost("api-server-1", "killed", bench.now))
    assert bench.shown['holdfast_process_up{process="api-server-1"}'] == 0
    assert bench.forgotten == [5], "gauges of the lost process fall to 0"
    bench.did(bench.instance.process_returned("api-server-1", bench.now, 6))
    found = bench.shown
    assert found['holdfast_process_up{process="api-server-1"}'] == 1
    assert found['holdfast_recoveries_total{action="restart-process",outcome="succeeded"}'] == 1


def test_what_a_consumer_loses_is_counted_once() -> None:
    lost = {"notifications": 2}
    dropped = DroppedItems(exposition := Exposition(), lambda: lost)
    dropped.refresh()
    lost["notifications"], lost["events in the log"] = 5, 1
    dropped.refresh()
    dropped.refresh()
    found = shown(exposition)
    assert found['holdfast_events_dropped_total{sink="notifications"}'] == 5
    assert found['holdfast_events_dropped_total{sink="events-in-the-log"}'] == 1


def test_a_front_end_tells_interruptions_moves_and_the_size_of_its_journal() -> None:
    metrics = FrontEndMetrics(exposition := Exposition(), lambda: Journal(3, 800, 1e9))
    metrics.interrupted(Interruption(0.02, 0.004))
    metrics.interrupted(Interruption(0.03))
    metrics.moved(50)
    metrics.failed()
    found = shown(exposition)
    assert found['holdfast_interruption_seconds_bucket{le="0.005"}'] == 0
    assert found['holdfast_interruption_seconds_bucket{le="0.025"}'] == 1
    assert found["holdfast_interruption_seconds_count"] == 2
    assert found['holdfast_recovery_phase_seconds_count{phase="first-token"}'] == 1
    assert found['holdfast_requests_total{outcome="moved"}'] == 1
    assert found["holdfast_tokens_recomputed_total"] == 50
    assert (found["holdfast_journal_requests"], found["holdfast_journal_bytes"], found["holdfast_owner_up"]) == (
        3,
        800,
        1,
    )


@pytest.fixture
def everything() -> dict[str, float]:
    bench = Watched(engines=(0, 1))
    bench.recover()
    bench.did(bench.instance.process_attached("coordinator", 5))
    bench.observe(m.StandbysChanged(engine_id=0, standbys=m.Standbys(wanted=2, ready=1, memory_bytes=5)))
    FrontEndMetrics(bench.exposition, lambda: Journal(0, 0, 1.0))
    DroppedItems(bench.exposition, lambda: {"views": 1}).refresh()
    return bench.shown


def test_every_metric_of_the_catalog_is_told_and_every_told_one_is_in_the_catalog(everything: dict[str, float]) -> None:
    told = {re.sub(r"_(bucket|sum|count|created)$", "", sample.partition("{")[0]) for sample in everything}
    assert {name.removesuffix("_total") for name in told} == {d.name for d in c.DEFINITIONS}


def test_labels_with_a_closed_list_have_no_other_value(everything: dict[str, float]) -> None:
    for definition in c.DEFINITIONS:
        for label, values in definition.values.items():
            samples = [s for s in everything if s.startswith(definition.name)]
            found = {value for s in samples for value in re.findall(rf'\b{label}="([^"]*)"', s)}
            assert found <= set(values), definition.name


class Counting(Exposition):
    """Exposition that counts how often a metric is asked for."""

    asked = 0

    def __call__(self, *of: object) -> object:
        self.asked += 1
        return super().__call__(*of)  # type: ignore[arg-type]


def test_an_event_costs_the_same_with_many_engine_cores() -> None:
    """Only the metrics of the engine core that changed are told."""
    asked = []
    for engines in (2, 64):
        bench = Watched(engines=range(engines))
        bench.exposition = bench.metrics._show = Counting()
        bench.recover()
        asked.append(bench.exposition.asked)
    assert asked[0] == asked[1] < 100


SEVERAL_PROCESSES = """
import os, sys
from prometheus_client import CollectorRegistry, generate_latest, multiprocess  # imported before the host decides
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from holdfast.api.metrics import catalog as c
from holdfast.api.metrics.exposition import forget_process, process_exposition
if os.fork() == 0:
    process_exposition()(c.REQUESTS, "moved").inc(2)
    process_exposition()(c.JOURNAL_REQUESTS).set(7)
    os._exit(0)
pid, _ = os.wait()
forget_process(pid)
process_exposition()(c.REQUESTS, "moved").inc(3)
process_exposition()(c.ENGINE_STATE, "0", "healthy").set(1)
multiprocess.MultiProcessCollector(registry := CollectorRegistry())
print(generate_latest(registry).decode())
"""


def test_several_processes_share_files_and_a_dead_one_keeps_its_counts(tmp_path: Path) -> None:
    """The owner imports the library before the host decides for files, and counts all the same."""
    command = [sys.executable, "-c", SEVERAL_PROCESSES, str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 'holdfast_requests_total{outcome="moved"} 5.0' in told
    assert 'holdfast_engine_state{engine="0",state="healthy"} 1.0' in told
    assert "holdfast_journal_requests" not in told
    assert "# HELP holdfast_requests_total Requests that" in told
    owned = [path for path in tmp_path.iterdir() if path.name.startswith("counter")]
    assert all(path.stat().st_blocks * 512 >= path.stat().st_size for path in owned), (
        "a full disk would end the process"
    )
