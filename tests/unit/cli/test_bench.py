"""`holdfast bench`: documents as tables and as JSON, and exit codes that a script can trust."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from holdfast.bench.faulted_run import Neighbours
from holdfast.bench.figures import FaultedRun, RecoveryDocument, TopologyFigures, figures_of
from holdfast.bench.harms import Harm
from holdfast.bench.machine import describe_machine
from holdfast.bench.overhead import METRICS, Burst, OverheadDocument, Pair, added_per_step, ratio_of
from holdfast.bench.recovery import RecoverySettings
from holdfast.bench.restart import Restart
from holdfast.bench.topologies import DP2, ONE, TP2, Standby, Topology
from holdfast.chaos.processes import SessionUsage
from holdfast.cli import bench
from holdfast.core.errors import WorldError

RESTART = Restart(stop_s=1.0, start_s=18.0, first_token_s=1.0)


def run(
    *waits_s: float, rank: int | None = 1, neighbours: Neighbours | None = None, problems: tuple[str, ...] = ()
) -> FaultedRun:
    return FaultedRun(
        topology="tp2",
        scenario="forward pass",
        phase="forward",
        load="short-prompts",
        engine_id=0,
        rank=rank,
        after_steps=80,
        paused_s=0.034,
        rebuild_s=0.21,
        neighbours=neighbours,
        interruption_median_s=waits_s[0],
        interruption_max_s=max(waits_s),
        interruptions_s=waits_s,
        fault_free_longest_gap_s=0.01,
        client_lag_s=0.0,
        interrupted_streams=len(waits_s),
        streams=len(waits_s),
        lost_tokens=len(problems),
        repeated_tokens=0,
        changed_tokens=0,
        recovery_reports=(),
        problems=problems,
    )


def figures(*runs: FaultedRun, topology: Topology = TP2) -> TopologyFigures:
    usage = [SessionUsage(1.0, 2 * 2**20, 3, 4, 5), SessionUsage(2.0, 3 * 2**20, 6, 7, 8)]
    return figures_of(topology, runs, usage, RESTART)


def recovery_document(*topologies: TopologyFigures, seed: int | None = None) -> RecoveryDocument:
    return RecoveryDocument(
        benchmark="recovery",
        version=2,
        machine=describe_machine(),
        environment={},
        streams=8,
        tokens_per_stream=200,
        client_scheduled_at_once=True,
        seed=seed,
        topologies=topologies,
        lawful=all(one.lawful for one in topologies),
        targets_met=all(target.met for one in topologies for target in one.targets),
    )


def overhead_document() -> OverheadDocument:
    burst = Burst(tokens_per_s=100, inter_token_p50_ms=8, inter_token_p99_ms=20, server_cpu_ms_per_token=1)
    pairs = (Pair(first="off", off=burst, on=burst),)
    return OverheadDocument(
        benchmark="overhead",
        version=1,
        machine=describe_machine(),
        streams=8,
        tokens_per_stream=400,
        server_arguments=(),
        client_scheduled_at_once=False,
        pairs=pairs,
        ratios=tuple(ratio_of(metric, pairs) for metric in METRICS),
        added_per_step=added_per_step(pairs),
        problems=(),
    )


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "make_model", lambda _topology: tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def invoke(monkeypatch: pytest.MonkeyPatch, name: str, answer: Any, *arguments: str) -> Any:
    def measure(_settings: object) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(bench, f"measure_{name}", measure)
    return CliRunner().invoke(bench.app, [name, *arguments])


def test_repetitions_of_a_scenario_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row per scenario, its median and maximum over all runs, and the ratio below."""
    document = recovery_document(figures(run(0.02, 0.03), run(0.02, 0.05), topology=ONE))
    result = invoke(monkeypatch, "recovery", document)
    assert result.exit_code == 0
    [row] = [line for line in result.stdout.splitlines() if "forward pass" in line]
    assert row.split()[2] == "2"
    assert "50 ms" in row
    assert "Without a fault the longest wait of a run was 10 ms in the median, 10 ms at most." in result.stdout
    assert "800 times shorter" in result.stdout


def test_each_place_of_many_ranks_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the times to pause and to rebuild; a fault in an engine core has no rank."""
    document = recovery_document(figures(run(0.2), run(0.2, rank=0), run(0.2, rank=None)))
    result = invoke(monkeypatch, "recovery", document)
    rows = [line for line in result.stdout.splitlines() if line.lstrip().startswith("forward pass")]
    assert [row.split()[2:5] for row in rows] == [["e0", "r1", "1"], ["e0", "r0", "1"], ["e0", "1", "200"]]
    assert all("34 ms" in row and "210 ms" in row for row in rows)


def test_nothing_is_cut_off_where_the_output_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with long names and long waits."""
    slow = msgspec.structs.replace(run(1.2), scenario="after the forward pass", paused_s=1.5, rebuild_s=1.25)
    result = invoke(monkeypatch, "recovery", recovery_document(figures(slow)))
    [row] = [line for line in result.stdout.splitlines() if "after the forward pass" in line]
    assert "…" not in result.stdout
    assert "1.20 s" in row
    assert "1.25 s" in row


def test_every_topology_has_a_table_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not mixed."""
    document = recovery_document(figures(run(0.2)), figures(run(0.1), topology=DP2))
    titles = [line for line in invoke(monkeypatch, "recovery", document).stdout.splitlines() if "exceptions on" in line]
    assert [title.split(":")[0] for title in titles] == ["tp2", "dp2"]


def test_the_verdict_says_which_figures_were_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missed one is shown, and breaks no law: a busy machine is no reason to call a recovery wrong."""
    result = invoke(monkeypatch, "recovery", recovery_document(figures(run(1.0))))
    assert result.exit_code == 0
    assert "reached  pause, median: 34 ms (to reach: 100 ms)" in result.stdout
    assert "MISSED  interruption, median: 1.00 s (to reach: 900 ms)" in result.stdout
    assert "MISSED  times shorter than a restart: 20 (to reach: 30)" in result.stdout


def test_what_the_neighbours_felt_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what they feel without a fault."""
    felt = Neighbours(streams=4, longest_gap_s=0.011, fault_free_p999_s=0.013, fault_free_longest_gap_s=0.017)
    result = invoke(monkeypatch, "recovery", recovery_document(figures(run(0.1, neighbours=felt), topology=DP2)))
    assert "gaps of 11 ms at most" in result.stdout
    assert "1 of 1 runs" in result.stdout
    assert "reached  neighbours' longest gap: 11 ms (to reach: 13 ms)" in result.stdout


def test_a_problem_is_shown_and_is_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that lost something is no success."""
    document = recovery_document(figures(run(0.02, problems=("answer 1: 1 tokens lost",))))
    result = invoke(monkeypatch, "recovery", document)
    assert result.exit_code == 1
    assert "engine 0 rank 1: answer 1: 1 tokens lost" in result.stdout


def test_a_topology_whose_server_ended_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured before is still shown."""
    broken = figures_of(TP2, [run(0.2)], [], None, left_behind=("process 7",), failure="exit code 3")
    result = invoke(monkeypatch, "recovery", recovery_document(broken, figures(run(0.1), topology=DP2)))
    assert result.exit_code == 1
    assert "ended early: exit code 3" in result.stdout
    assert "left behind: process 7" in result.stdout
    assert "200 ms" in result.stdout


@pytest.mark.parametrize("name", ["recovery", "overhead"])
def test_json_is_the_whole_document(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--json` prints nothing but the document, and `--output` writes the same."""
    document = recovery_document(figures(run(0.02))) if name == "recovery" else overhead_document()
    file = tmp_path / "deep" / "figures.json"
    result = invoke(monkeypatch, name, document, "--json", "--output", str(file))
    assert json.loads(result.stdout)["benchmark"] == name
    assert file.read_text() == result.stdout


def test_overhead_is_a_table_of_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every metric has its row."""
    result = invoke(monkeypatch, "overhead", overhead_document())
    assert result.exit_code == 0
    for name in ("tokens/s", "token gap p50, ms", "token gap p99, ms", "server CPU ms/token"):
        assert name in result.stdout
    assert "Added to a step: 0 µs" in result.stdout


def test_a_server_that_does_not_start_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours is exit 2 without a traceback."""
    result = invoke(monkeypatch, "overhead", WorldError("the server ended with exit code 3"))
    assert result.exit_code == 2
    assert "exit code 3" in result.stderr


def test_ctrl_c_is_exit_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who stops it gets no traceback."""
    assert invoke(monkeypatch, "recovery", KeyboardInterrupt()).exit_code == 130


def test_a_misspelt_scenario_names_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started for a word in vain."""
    result = invoke(monkeypatch, "recovery", AssertionError("was started"), "--scenario", "chunky")
    assert result.exit_code == 2
    assert "chunked prefill" in " ".join(result.stderr.replace("│", " ").split())


class Asked:
    """What a command line asks the recovery benchmark to measure."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings: list[RecoverySettings] = []
        monkeypatch.setattr(bench, "measure_recovery", self._measure)

    def _measure(self, settings: RecoverySettings) -> RecoveryDocument:
        self.settings.append(settings)
        return recovery_document(figures(run(0.02)), seed=settings.seed)

    def by(self, *arguments: str) -> RecoverySettings:
        result = CliRunner().invoke(bench.app, ["recovery", *arguments])
        assert result.exit_code == 0, result.output
        return self.settings[-1]


def test_without_a_name_one_rank_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before there were others."""
    assert [topology for topology, _ in Asked(monkeypatch).by().chosen] == [ONE]


def test_topologies_are_measured_in_the_order_of_their_names_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name given twice starts no second server."""
    settings = Asked(monkeypatch).by("--topology", "tp2", "--topology", "dp2", "--topology", "tp2", "--repeat", "3")
    assert [topology for topology, _ in settings.chosen] == [TP2, DP2]
    assert (settings.repeat, settings.seed) == (3, None)


def test_a_soak_draws_so_many_faults_and_prints_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed asks for the same."""
    asked = Asked(monkeypatch)
    [(_, first)], [(_, again)] = (asked.by("--topology", "tp2", "--soak", "30", "--seed", "5").chosen for _ in range(2))
    assert first == again
    assert len(first) == 30
    assert asked.settings[-1].seed == 5
    seed = asked.by("--soak", "3").seed
    assert seed is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--topology", "tp3"), "known: one, tp2, pp2, dp2, moe, moe-ep"),
        (("--soak", "3", "--scenario", "forward"), "a soak draws its faults at random"),
        (("--seed", "3"), "a seed requires --soak"),
        (("--soak", "3", "--fault", "kill-worker"), "a soak injects exceptions only"),
    ],
)
def test_what_cannot_be_asked_is_exit_2(arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started."""
    result = invoke(monkeypatch, "recovery", AssertionError("was started"), *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_a_soak_says_how_to_draw_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above its table."""
    result = invoke(monkeypatch, "recovery", recovery_document(figures(run(0.02)), seed=41))
    assert "--seed 41" in result.stdout


def test_kills_are_measured_with_and_without_somebody_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on a server of its own, on the topology that shows it best."""
    asked = Asked(monkeypatch)
    chosen = asked.by("--fault", "kill-worker", "--standby", "none", "--standby", "preloaded").chosen
    assert [(topology.name, topology.standby) for topology, _ in chosen] == [("one", "none"), ("one", "preloaded")]
    [(topology, scenarios)] = asked.by("--fault", "kill-engine").chosen
    assert topology.name == "dp2"
    assert [one.harm for one in scenarios] == [Harm.KILL_ENGINE] * 2


def test_a_table_of_kills_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the standby, the targets, and the time until a lost engine core was replaced."""
    killed = msgspec.structs.replace(run(0.9), harm=Harm.KILL_WORKER, scenario="worker killed")
    ready = replace(ONE, standby=Standby.PRELOADED)
    result = invoke(monkeypatch, "recovery", recovery_document(figures(killed, topology=ready)))
    assert "one with a preloaded standby: a worker killed on a running server" in result.stdout
    assert "MISSED  interruption, median: 900 ms (to reach: 800 ms)" in result.stdout
    assert "times shorter than a restart: 22 (to reach: 15)" in result.stdout
    lost = msgspec.structs.replace(run(0.1), harm=Harm.KILL_ENGINE, replaced_s=21.0)
    result = invoke(monkeypatch, "recovery", recovery_document(figures(lost, topology=DP2)))
    assert "the replacement of a lost engine core served after 21.0 s in the median" in result.stdout


def test_of_a_poison_its_faults_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned = msgspec.structs.replace(run(0.1), harm=Harm.POISON, scenario="poison", faults=6)
    result = invoke(monkeypatch, "recovery", recovery_document(figures(poisoned, topology=ONE)))
    assert "one: a poison request on a running server" in result.stdout
    assert "reached  faults until it was ended, max: 6 (to reach: 7)" in result.stdout
