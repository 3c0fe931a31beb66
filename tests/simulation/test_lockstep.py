"""Ranks and engine cores that wait for each other: the real sentinels stop them all and let them all go on.

In threads, but nothing sleeps: what is waited for comes, or a bound of the sentinels ends the wait.
"""

import random

import pytest

from holdfast.core.errors import RecoveryFailed
from holdfast.core.faults.faults import Phase
from holdfast.core.instance import deadlines
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import Resume
from holdfast.core.protocol.events import EventKind
from support.lockstep_bench import WAIT_S, Lockstep
from support.seeds import seeds

IN_RECOVERY = (Phase.RECOVERY, Phase.REBUILD, Phase.RESUME)
WORKER_PHASES = [p for p in Phase if p.in_worker]
ENGINE_PHASES = [p for p in Phase if not p.in_worker]
TWO_RANKS = {"engines": 1, "ranks": 2}
TWO_ENGINES = {"engines": 2, "ranks": 2}


@pytest.fixture
def make_lockstep():
    made = []

    def make(**about):
        made.append(Lockstep(**about))
        return made[-1]

    yield make
    for lockstep in made:
        lockstep.close()


# ---- the fence


@pytest.mark.parametrize("about", [TWO_RANKS, TWO_ENGINES])
def test_without_faults_ranks_in_lockstep_give_the_tokens_of_one_that_is_alone(make_lockstep, about):
    lockstep = make_lockstep(**about)
    lockstep.run()
    assert lockstep.is_exact()
    assert lockstep.recoveries == 0


def test_without_the_fence_a_rank_that_raised_is_a_step_ahead_and_makes_wrong_tokens(make_lockstep):
    lockstep = make_lockstep(**TWO_RANKS, unsafe_skip_fence=True)
    lockstep.arm(Phase.STEP_START, rank=1, after_steps=4)
    [engine] = lockstep.engines
    for _ in range(12):  # nothing stops it: only the first rank's reply is heard
        assert engine.core.step()
    outputs = engine.core.take_outputs()
    for output in outputs:
        engine.streams[output.request_id].append(output.token)
    assert any(got != engine.expected[name][: len(got)] for name, got in engine.streams.items())


def test_with_the_fence_the_same_fault_changes_no_token(make_lockstep):
    lockstep = make_lockstep(**TWO_RANKS)
    lockstep.arm(Phase.STEP_START, rank=1, after_steps=4)
    lockstep.run()
    assert lockstep.is_exact()
    assert lockstep.recoveries == 1


# ---- a fault of any rank at any phase


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("phase", WORKER_PHASES)
def test_a_fault_of_any_rank_at_any_phase_changes_no_token(make_lockstep, phase, rank):
    lockstep = make_lockstep(**TWO_RANKS)
    lockstep.arm(phase, rank=rank, after_steps=0 if phase in IN_RECOVERY else 3)
    if phase in IN_RECOVERY:
        lockstep.arm(Phase.FORWARD, rank=1, after_steps=3)
    lockstep.run()
    assert lockstep.is_exact()
    assert lockstep.recoveries == 1
    assert len(lockstep.happened(EventKind.RECOVERY_FAILED)) == (phase in IN_RECOVERY)


@pytest.mark.parametrize("phase", [*ENGINE_PHASES, Phase.FORWARD, Phase.REBUILD])
def test_a_fault_of_one_engine_core_stops_its_peer_and_changes_no_token_of_either(make_lockstep, phase):
    lockstep = make_lockstep(**TWO_ENGINES)
    lockstep.arm(phase, engine=1, rank=1 if phase.in_worker else 0, after_steps=0 if phase in IN_RECOVERY else 3)
    if phase in IN_RECOVERY:
        lockstep.arm(Phase.STEP_END, engine=0, rank=1, after_steps=3)
    lockstep.run()
    assert lockstep.is_exact()
    assert {e.engine_id for e in lockstep.happened(EventKind.ENGINE_PAUSED)} == {0, 1}
    assert lockstep.client.view().engine(0).epoch == lockstep.client.view().engine(1).epoch > 0


# ---- two at once


@pytest.mark.parametrize("first", [(0, 0), (0, 1)])
@pytest.mark.parametrize("second", [(0, 1), (1, 0)])
def test_two_faults_at_once_change_no_token(make_lockstep, first, second):
    lockstep = make_lockstep(**TWO_ENGINES)
    for engine, rank in (first, second):
        lockstep.arm(Phase.STEP_END, engine=engine, rank=rank, after_steps=3 + (first == second))
    lockstep.run()
    assert lockstep.is_exact()


def test_faults_one_after_the_other_also_in_recoveries_change_no_token(make_lockstep):
    lockstep = make_lockstep(**TWO_ENGINES)
    for number, phase in enumerate([*WORKER_PHASES, *ENGINE_PHASES]):
        lockstep.arm(phase, engine=number % 2, rank=number // 2 % 2 if phase.in_worker else 0, after_steps=number // 4)
    lockstep.run()
    assert lockstep.is_exact()
    assert lockstep.happened(EventKind.RECOVERY_FAILED)


# ---- who does not say that it stopped


def test_a_rank_whose_acknowledgement_is_lost_is_killed_in_its_bound_and_replaced(make_lockstep):
    lockstep = make_lockstep(**TWO_RANKS, acknowledge_timeout_s=0.2)
    lockstep.engines[0].ranks[0].silent_from, lockstep.engines[0].ranks[0].silent_until = 0, 1
    lockstep.arm(Phase.STEP_START, rank=1, after_steps=3)
    lockstep.run()
    assert lockstep.is_exact()
    assert lockstep.reason == ""
    assert lockstep.client.view().engine(0).worker_restarts == 1
    accused = [e.fault.message for e in lockstep.happened(EventKind.FAULT_REPORTED)]
    assert any("rank 0 did not acknowledge within 0.2 s that it stopped" in message for message in accused)


@pytest.mark.parametrize("about", [TWO_RANKS, TWO_ENGINES])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_in_the_middle_gets_a_new_process_and_no_token_changes(make_lockstep, about, rank):
    lockstep = make_lockstep(**about)
    lockstep.lose_before_step(6, rank)
    lockstep.run()
    assert lockstep.is_exact()
    assert lockstep.reason == ""
    assert lockstep.client.view().engine(0).worker_restarts == 1


@pytest.mark.parametrize("about", [TWO_RANKS, TWO_ENGINES])
def test_workers_that_are_restarted_by_operator_in_the_middle_change_no_token(make_lockstep, about):
    lockstep = make_lockstep(**about)
    restarting = lockstep.restart_workers_before_step(6)
    lockstep.run()
    assert restarting[0].result(WAIT_S) is None
    assert lockstep.is_exact()
    assert lockstep.client.view().engine(0).worker_restarts == 2
    assert lockstep.happened(EventKind.FAULT_REPORTED) == []


def test_a_lost_acknowledgement_ends_the_instance_where_workers_are_not_restarted_and_says_whose(make_lockstep):
    lockstep = make_lockstep(**TWO_RANKS, acknowledge_timeout_s=0.2, max_worker_restarts=0, max_engine_restarts=0)
    lockstep.engines[0].ranks[0].silent_from = 0
    lockstep.arm(Phase.STEP_START, rank=1, after_steps=3)
    lockstep.run()
    assert lockstep.ended.wait(WAIT_S)
    assert "rank 0 did not acknowledge within 0.2 s that it stopped" in lockstep.reason
    assert lockstep.engines[0].defeat == lockstep.reason


def test_an_acknowledgement_of_an_old_epoch_is_none_of_the_new_one(make_lockstep):
    lockstep = make_lockstep(**TWO_RANKS, acknowledge_timeout_s=0.3, max_worker_restarts=0, max_engine_restarts=0)
    lockstep.arm(Phase.STEP_START, rank=1, after_steps=3)
    lockstep.arm(Phase.STEP_START, rank=1, after_steps=8)
    silent = lockstep.engines[0].ranks[0]
    silent.silent_from, stop = 1, silent.break_collectives

    def stop_and_say_the_wrong_epoch(epoch):
        said = stop(epoch)
        if said is None:
            lockstep.say(0, m.CollectivesBroken(rank=0, epoch=epoch - 1))
        return said

    silent.break_collectives = stop_and_say_the_wrong_epoch
    lockstep.run()
    assert lockstep.ended.wait(WAIT_S)
    assert "rank 0 did not acknowledge within 0.3 s" in lockstep.reason
    assert silent.broke[-1] == 1


def test_an_acknowledgement_that_comes_late_into_a_healthy_epoch_changes_nothing(make_lockstep):
    lockstep = make_lockstep(**TWO_RANKS)
    lockstep.arm(Phase.FORWARD, rank=0, after_steps=3)
    lockstep.run()
    before = lockstep.client.history()
    lockstep.say(0, m.CollectivesBroken(rank=1, epoch=0))
    lockstep.arm(Phase.DP_SYNC)  # whatever was sent before it has been dealt with
    assert [e.kind for e in lockstep.client.history()[len(before) :]] == [EventKind.FAULT_ARMED]
    assert lockstep.is_exact()


def test_a_break_of_an_old_epoch_does_not_stop_a_rank_that_was_let_back_in(make_lockstep):
    lockstep = make_lockstep(**TWO_RANKS)
    lockstep.arm(Phase.FORWARD, rank=0, after_steps=3)
    lockstep.run()
    [engine] = lockstep.engines
    assert engine.ranks[1].break_collectives(0) is None
    assert not engine.core.workers[1].fenced


# ---- by operator


def paused(lockstep):
    return all(e.paused_by_operator and e.state == "paused" for e in lockstep.client.view().engines)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("about", [TWO_RANKS, TWO_ENGINES])
def test_a_pause_and_a_resume_by_operator_in_the_middle_change_no_token(make_lockstep, monkeypatch, about, soft):
    monkeypatch.setattr(deadlines, "SOFT_PAUSE_S", 0.05)
    lockstep = make_lockstep(**about)
    pausing = lockstep.pause_before_step(6, soft=soft)
    lockstep.start()
    lockstep.wait_until(lambda: paused(lockstep))
    assert pausing[0].result(WAIT_S) is None
    assert not lockstep.is_exact()  # it is in the middle
    lockstep.client.submit(Resume(command_id="resume")).result(WAIT_S)
    lockstep.join()
    assert lockstep.is_exact()
    assert lockstep.happened(EventKind.FAULT_REPORTED) == []


def test_a_fault_of_a_recovery_after_a_pause_by_operator_changes_no_token(make_lockstep):
    lockstep = make_lockstep(**TWO_ENGINES)
    lockstep.arm(Phase.REBUILD, engine=1, rank=1)
    lockstep.pause_before_step(6)
    lockstep.start()
    lockstep.wait_until(lambda: paused(lockstep))
    with pytest.raises(RecoveryFailed, match="injected fault"):
        lockstep.client.submit(Resume(command_id="resume")).result(WAIT_S)
    lockstep.join()
    assert lockstep.is_exact()


# ---- any faults


@pytest.mark.parametrize("seed", seeds(30))
def test_whatever_the_seed_no_token_changes(make_lockstep, seed):
    dice = random.Random(seed)
    engines, ranks = dice.choice([(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)])
    lockstep = make_lockstep(engines=engines, ranks=ranks)
    for _ in range(dice.randint(1, 6)):
        phase = dice.choice([*Phase, Phase.REBUILD, Phase.RECOVERY])
        rank = dice.randrange(ranks) if phase.in_worker else 0
        lockstep.arm(phase, dice.randrange(engines), rank, dice.choice([0, 0, 1, 2, 5, 9]), dice.choice([1, 1, 1, 2]))
    lockstep.run()
    assert lockstep.is_exact()
    assert lockstep.reason == ""


# ---- a request that makes every step of its engine core fail


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("about", [TWO_RANKS, TWO_ENGINES])
def test_a_poison_request_ends_alone_and_everybody_else_in_lockstep_is_exact(make_lockstep, about, rank):
    lockstep = make_lockstep(**about, poison_detection=True)
    lockstep.arm(Phase.FORWARD, rank=rank, times=1000, request="b")
    lockstep.run()
    lockstep.wait_until(lambda: lockstep.happened(EventKind.REQUEST_ENDED))  # the report is on its way
    [ended] = lockstep.happened(EventKind.REQUEST_ENDED)
    assert (ended.engine_id, ended.request_id) == (0, "b")
    first, *peers = lockstep.engines
    assert {n: t for n, t in first.streams.items() if n != "b"} == {n: first.expected[n] for n in "ac"}
    assert all(engine.streams == engine.expected for engine in peers)
    assert lockstep.recoveries <= 5 * len(lockstep.engines)
    assert lockstep.reason == ""
