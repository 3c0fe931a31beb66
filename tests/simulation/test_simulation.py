"""Instances under faults and bad links, on virtual time: whatever the seed, the laws hold."""

import functools

import pytest

from holdfast.chaos.simulation import Conditions, LawBroken, Simulation, Weather, simulate
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.hosts.fake import EngineOptions, FakeEngineCore
from support.seeds import seeds

SEEDS = seeds(300)
outcome_of = functools.cache(simulate)
FAULT = InjectionSpec(phase=Phase.FORWARD, after_steps=3)
LATER = InjectionSpec(phase=Phase.FORWARD, after_steps=9)
UNSAFE = EngineOptions(unsafe_keep_suspect_blocks=True)

IN_A_STEP = [p for p in Phase if p not in (Phase.RECOVERY, Phase.REBUILD, Phase.RESUME, Phase.DP_SYNC)]


def run(**conditions):
    return Simulation(Conditions(seed=1, **conditions)).run()


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_the_seed_the_laws_hold(seed):
    outcome = outcome_of(seed)
    assert outcome.finished_requests or outcome.ended


def test_a_seed_replays_its_run():
    assert [simulate(seed) for seed in range(30)] == [simulate(seed) for seed in range(30)]


def test_the_seeds_between_them_see_everything_that_can_happen():
    outcomes = [outcome_of(seed) for seed in SEEDS]
    survived = [o for o in outcomes if o.ended is None]
    assert len(survived) > len(SEEDS) // 3
    assert sum(o.recoveries for o in outcomes) > len(SEEDS)
    assert sum(o.failed_recoveries for o in survived) > 10
    assert sum(o.lost_messages for o in survived) > 3
    ends = " ".join(o.ended for o in outcomes if o.ended)
    for why in (
        "did not pause",
        "did not finish its recovery",
        "did not last",
        "no command repaired the fault",
        "was lost",
        "sticky",
        "worker restarts are off",
    ):
        assert why in ends

    assert sum(o.worker_restarts for o in survived) > 20
    assert sum(o.engine_restarts for o in survived) > 10
    assert sum(o.moved_requests for o in survived) > 10


# ---- one fault, told


@pytest.mark.parametrize("policy", ["auto", "external"])
@pytest.mark.parametrize("phase", IN_A_STEP)
def test_a_fault_over_a_clean_link_costs_no_request(policy, phase):
    fault = InjectionSpec(phase=phase, after_steps=3, request_index=0)
    outcome = run(policy=policy, faults=(fault,))
    assert (outcome.ended, outcome.recoveries, outcome.finished_requests) == (None, 1, 4)


def test_a_fault_in_the_recovery_costs_a_second_recovery():
    outcome = run(faults=(FAULT, InjectionSpec(phase=Phase.RECOVERY)))
    assert (outcome.ended, outcome.recoveries, outcome.failed_recoveries) == (None, 1, 1)


def test_a_fault_in_every_recovery_ends_the_instance():
    outcome = run(faults=(FAULT, InjectionSpec(phase=Phase.RECOVERY, times=1000)))
    assert outcome.failed_recoveries == 4
    assert "4 retries within 30 s did not last" in outcome.ended


def test_without_an_operator_external_ends_at_the_recovery_timeout():
    outcome = run(faults=(FAULT,), policy="external", operator_answers=0.0)
    assert "no command repaired the fault within 20 s" in outcome.ended
    assert 20.0 < outcome.virtual_s < 24.0


def test_an_engine_that_is_stuck_after_its_fault_ends_in_the_containment_timeout():
    outcome = run(faults=(FAULT,), stuck=1.0)
    assert "did not pause within 5 s" in outcome.ended
    assert outcome.virtual_s < 9.0


@pytest.mark.parametrize("policy", ["auto", "external"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_worker_that_is_lost_costs_a_restart_and_no_request(policy, ranks):
    outcome = run(policy=policy, worker_lost=1.0, engines=(EngineOptions(ranks=ranks),))
    assert (outcome.ended, outcome.recoveries, outcome.worker_restarts) == (None, 1, 1)
    assert outcome.finished_requests == 4


def test_a_worker_that_is_lost_ends_the_instance_where_workers_are_not_restarted():
    outcome = run(worker_lost=1.0, max_worker_restarts=0)
    assert "worker restarts are off (--max-worker-restarts 0)" in outcome.ended


def test_a_rank_whose_faults_outlast_its_retries_gets_a_new_process():
    outcome = run(faults=(InjectionSpec(phase=Phase.FORWARD, after_steps=3, times=6),))
    assert (outcome.ended, outcome.worker_restarts, outcome.finished_requests) == (None, 1, 4)


def test_workers_whose_restarts_do_not_last_end_the_instance():
    outcome = run(faults=(InjectionSpec(phase=Phase.FORWARD, after_steps=3, times=1000),))
    assert "3 worker restarts within 120 s did not last (--max-worker-restarts 3)" in outcome.ended


def test_a_rank_that_does_not_acknowledge_is_killed_in_its_bound_and_replaced():
    fault = InjectionSpec(phase=Phase.FORWARD, rank=1, after_steps=3)
    outcome = run(faults=(fault,), silent=1.0, engines=(EngineOptions(ranks=2),))
    assert (outcome.ended, outcome.recoveries, outcome.worker_restarts) == (None, 1, 1)
    assert outcome.finished_requests == 4


def test_a_rank_that_does_not_acknowledge_ends_the_instance_where_workers_are_not_restarted():
    fault = InjectionSpec(phase=Phase.FORWARD, rank=1, after_steps=3)
    outcome = run(faults=(fault,), silent=1.0, engines=(EngineOptions(ranks=2),), max_worker_restarts=0)
    assert "rank 0 did not acknowledge within 1 s that it stopped" in outcome.ended


TWO = (EngineOptions(),) * 2


def test_requests_of_a_lost_engine_core_go_on_at_a_sibling():
    simulation = Simulation(Conditions(seed=1, engines=TWO, max_engine_restarts=3))
    simulation.time.after(0.15, simulation.engines[1].die)
    outcome = simulation.run()
    assert (outcome.ended, outcome.engine_restarts, outcome.finished_requests) == (None, 1, 8)
    assert outcome.moved_requests > 0


def test_without_a_sibling_they_wait_for_who_takes_its_place():
    simulation = Simulation(Conditions(seed=1, max_engine_restarts=3))
    simulation.time.after(0.15, simulation.engines[0].die)
    outcome = simulation.run()
    assert (outcome.ended, outcome.engine_restarts, outcome.finished_requests) == (None, 1, 4)


def test_a_sibling_that_is_lost_as_well_costs_nothing():
    simulation = Simulation(Conditions(seed=1, engines=TWO, max_engine_restarts=3))
    for delay_s, engine in ((0.1, 1), (0.2, 0)):
        simulation.time.after(delay_s, simulation.engines[engine].die)
    outcome = simulation.run()
    assert (outcome.ended, outcome.engine_restarts, outcome.finished_requests) == (None, 2, 8)


def test_an_engine_core_that_is_stuck_is_killed_and_its_requests_go_on():
    outcome = run(faults=(FAULT,), stuck=1.0, max_engine_restarts=3)
    assert (outcome.ended, outcome.engine_restarts, outcome.finished_requests) == (None, 1, 4)


def test_engine_cores_that_die_whenever_they_start_end_the_instance():
    outcome = run(lost=1.0, max_engine_restarts=3)
    assert "3 engine core restarts within 120 s did not last (--max-engine-restarts 3)" in outcome.ended


# ---- one message lost


NOT_REPLACED = "engine core restarts are off (--max-engine-restarts 0)"
UNREPLACED = "engine core 0 was lost: killed by signal 9; engine core restarts are off (--max-engine-restarts 0)"


@pytest.mark.parametrize(
    ("lost", "ended"),
    [
        ({m.EngineAttached}, None),
        ({m.EngineFaulted}, None),
        ({m.EnginePaused}, f"engine 0 reported a fault and did not pause within 5 s; {NOT_REPLACED}"),
        ({m.RecoverEngine}, f"engine 0 did not finish its recovery in time; {NOT_REPLACED}"),
        ({m.EngineRecovered}, f"engine 0 did not finish its recovery in time; {NOT_REPLACED}"),
        ({m.EngineFaulted, m.EnginePaused}, UNREPLACED),
        (set(m.FromEngine.__args__) | set(m.ToEngine.__args__), "engine core 0 was lost: killed by signal 9"),
    ],
)
def test_a_lost_message_costs_nothing_or_ends_in_a_deadline_with_a_reason(lost, ended):
    outcome = run(faults=(FAULT,), weather=Weather(loses=frozenset(lost)))
    assert outcome.ended == ended
    assert outcome.virtual_s < 30.0


def test_a_lost_report_of_a_failed_recovery_costs_nothing_because_the_pause_is_announced_again():
    faults = (FAULT, InjectionSpec(phase=Phase.RECOVERY))
    outcome = run(faults=faults, weather=Weather(loses=frozenset({m.RecoveryAborted})))
    assert outcome.lost_messages == 1
    assert (outcome.ended, outcome.recoveries, outcome.failed_recoveries, outcome.finished_requests) == (None, 1, 1, 4)


@pytest.mark.parametrize("seed", seeds(20))
def test_messages_that_come_twice_and_out_of_order_cost_nothing(seed):
    weather = Weather(duplication=1.0, delay_s=0.5)
    conditions = Conditions(seed=seed, weather=weather, faults=(FAULT, LATER), aborts=1)
    outcome = Simulation(conditions).run()
    assert (outcome.ended, outcome.finished_requests) == (None, 3)


# ---- the checks are not empty


def test_kv_that_was_never_written_breaks_a_law():
    broken = 0
    for seed in range(20):
        faults = tuple(InjectionSpec(phase=Phase.STEP_START, after_steps=n) for n in (0, 1, 2))
        try:
            Simulation(Conditions(seed=seed, faults=faults, engines=(UNSAFE,))).run()
        except LawBroken as error:
            broken += f"gets the tokens of a fault-free run: broken by seed {seed} at" in str(error)
    assert broken > 10


def test_a_request_that_moves_without_its_history_breaks_a_law(monkeypatch):
    add = FakeEngineCore.add
    monkeypatch.setattr(FakeEngineCore, "add", lambda self, *request: add(self, *request[:3]))
    simulation = Simulation(Conditions(seed=1, max_engine_restarts=3))
    simulation.time.after(0.15, simulation.engines[0].die)
    with pytest.raises(LawBroken, match="gets the tokens of a fault-free run"):
        simulation.run()


def test_what_raises_where_nothing_should_is_a_broken_law(monkeypatch):
    def boom(*_):
        raise RuntimeError("a bug")

    simulation = Simulation(Conditions(seed=7, engines=(EngineOptions(),)))
    monkeypatch.setattr(simulation.client.instance, "tick", boom)
    with pytest.raises(LawBroken, match="nothing raises but what is meant to: broken by seed 7"):
        simulation.run()
