"""The ladder: every sequence of faults ends healthy or in an exit, and no rung is taken beyond its budget."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import FaultClass
from holdfast.core.protocol.events import EventKind
from support.ladder_world import World

LONG_S = 80000.0  # a window in which no budget comes back
MOST_DECISIONS = 400
LONGEST_S = 20000.0

CLASSES = st.sampled_from(list(FaultClass))
FAULTS = st.tuples(st.integers(0, 2), CLASSES | st.just("lost"), st.sampled_from([0, 1, None]))
ANSWERS = st.sampled_from(["well"] * 6 + ["silent", "lost"]) | CLASSES
POLICIES = st.sampled_from(
    [("auto", "none"), ("auto", "none"), ("external", "none"), ("external", "auto"), ("dry-run", "none")]
)


WINDOWS = st.sampled_from([1.0, 30.0, LONG_S])
NO_BUDGET_COMES_BACK = st.just(LONG_S)


@st.composite
def configs(draw, windows=WINDOWS):
    policy, fallback = draw(POLICIES)
    return HoldfastConfig(
        fault_policy=policy,
        external_fallback=fallback,
        engine_recovery_timeout_s=draw(st.sampled_from([1.0, 20.0])),
        max_retries=draw(st.integers(0, 3)),
        retry_window_s=draw(windows),
        max_worker_restarts=draw(st.integers(0, 3)),
        worker_restart_window_s=draw(windows),
        worker_start_timeout_s=50.0,
        max_engine_restarts=draw(st.integers(0, 2)),
        min_engines=draw(st.sampled_from([1, 2, 3])),
        engine_restart_window_s=draw(windows),
        max_ranks_out=draw(st.sampled_from(["100%", "50%", 0, 1, 3])),
    )


@settings(max_examples=150, deadline=None)
@given(config=configs(), answers=st.lists(ANSWERS, max_size=25), faults=st.lists(FAULTS, min_size=1, max_size=8))
def test_every_sequence_of_faults_ends_healthy_or_in_an_exit(config, answers, faults):
    world = World(config, answers, faults)
    assert world.run(LONGEST_S, MOST_DECISIONS), "neither healthy nor ended"
    error_reasons = [e for e in world.bench.events if e.kind is EventKind.INSTANCE_DEFEATED]
    assert len(error_reasons) == (world.bench.defeat is not None)
    assert all(e.reason for e in error_reasons)


def test_a_restart_counts_from_the_fault_that_it_answers():
    """The first of three restarts has left the window of 30 s by less than a tick when the third is due."""
    config = HoldfastConfig(
        engine_recovery_timeout_s=1.0,
        max_retries=0,
        max_worker_restarts=0,
        max_engine_restarts=2,
        engine_restart_window_s=30.0,
    )
    faults = [(0, "lost", 0), (0, FaultClass.COMMUNICATOR, 0)]
    assert World(config, [FaultClass.COMMUNICATOR, "silent"], faults).run(LONGEST_S, MOST_DECISIONS)


@settings(max_examples=100, deadline=None)
@given(
    config=configs(windows=NO_BUDGET_COMES_BACK),
    answers=st.lists(ANSWERS, min_size=1, max_size=6),
    faults=st.lists(FAULTS, min_size=1, max_size=3),
)
def test_faults_that_never_cease_end_in_an_exit(config, answers, faults):
    """No livelock: where no budget comes back, every rung is used up and the last one is the exit."""
    world = World(config, itertools.cycle(answers), itertools.cycle(faults))
    assert world.run(LONGEST_S, MOST_DECISIONS)
    assert world.bench.defeat is not None


@settings(max_examples=50, deadline=None)
@given(config=configs(), faults=st.lists(FAULTS, min_size=1, max_size=4))
def test_in_a_dry_run_nothing_is_repaired_and_every_decision_says_what_would_be(config, faults):
    dry = HoldfastConfig(fault_policy="dry-run", engine_recovery_timeout_s=config.engine_recovery_timeout_s)
    world = World(dry, (), faults)
    assert world.run(LONGEST_S, MOST_DECISIONS)
    assert world.bench.defeat is not None
    decisions = [e.decision for e in world.bench.events if e.kind is EventKind.DECISION_MADE]
    assert all(taken == {} for taken in world.rungs.values())
    waiting = [d for d in decisions if d.action == "await-instruction"]
    assert all(d.would in ("retry", "restart-workers", "restart-engine") for d in waiting)


AMPLE = HoldfastConfig(
    max_retries=1000, max_worker_restarts=1000, max_engine_restarts=1000, worker_start_timeout_s=50.0
)


@settings(max_examples=150, deadline=None)
@given(answers=st.lists(ANSWERS, max_size=25), faults=st.lists(FAULTS, min_size=1, max_size=8))
def test_where_budgets_are_ample_every_sequence_of_faults_that_ceases_ends_healthy(answers, faults):
    world = World(AMPLE, answers, faults)
    assert world.run(LONGEST_S, MOST_DECISIONS)
    assert world.bench.defeat is None
