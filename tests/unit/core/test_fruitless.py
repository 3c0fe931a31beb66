"""Repairs in a row after which no step ended well: pauses between retries, and an early end of each rung."""

import itertools
from dataclasses import replace

import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.policy.incident import Fruitless
from holdfast.core.policy.ladder import Action, decide_repair
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import ReplaceEngine
from support.instance_bench import Bench, a_fault, a_loss
from support.situations import incident, sick

DEFAULTS = HoldfastConfig()
MISSING = a_fault(message="no kernel for this operator", rank=0)


def after(retries, **restarts):
    return Fruitless(retries=retries, **restarts)


# ---- retries


@pytest.mark.parametrize(("retries", "pause_s"), [(0, 0.0), (1, 0.0), (2, 1.0), (3, 2.0), (4, 4.0)])
def test_a_retry_that_fails_at_once_is_repeated_once_at_once_and_then_after_growing_pauses(retries, pause_s):
    tried = incident(*range(retries), fruitless=after(retries))
    last_at = max(0, retries - 1)
    assert decide_repair(last_at + pause_s, tried, DEFAULTS).action is Action.RETRY
    if pause_s:
        decision = decide_repair(last_at + pause_s / 2, tried, DEFAULTS)
        assert (decision.action, decision.retry_at) == (Action.AWAIT, last_at + pause_s)
        assert f"no step has ended well since {retries} retries; next try in {pause_s / 2:.1f} s" in decision.reason


def test_retries_that_are_followed_by_steps_are_not_paused():
    assert decide_repair(3.0, incident(1.0, 2.0, 3.0), DEFAULTS).action is Action.RETRY


@pytest.mark.parametrize(("rank", "action"), [(0, Action.RESTART_WORKERS), (None, Action.RESTART_ENGINE)])
def test_retries_in_vain_go_to_the_next_rung_long_before_their_budget_is_used_up(rank, action):
    decision = decide_repair(100.0, incident(1.0, 2.0, 3.0, 4.0, 5.0, rank=rank, fruitless=after(5)), DEFAULTS)
    assert decision.action is action
    assert decision.reason.startswith("no step has ended well since 5 retries; last fault: RuntimeError in engine 1")


def test_a_new_worker_that_fails_as_well_is_given_fewer_retries_and_is_replaced_with_its_engine_core():
    failed = after(3, earlier_retries=5, worker_restarts=1)
    decision = decide_repair(100.0, incident(97.0, 98.0, 99.0, fruitless=failed), DEFAULTS)
    assert decision.action is Action.RESTART_ENGINE
    assert decision.reason.startswith("no step has ended well since 8 retries, 1 worker restarts; last fault:")
    in_time = incident(98.0, 99.0, fruitless=replace(failed, retries=2))
    assert decide_repair(100.0, in_time, DEFAULTS).action is Action.RETRY


@pytest.mark.parametrize(("siblings", "action"), [(0, Action.END), (1, Action.LEAVE_OUT)])
def test_a_new_engine_core_that_fails_as_well_is_not_replaced_again(siblings, action):
    failed = after(3, earlier_retries=6, worker_restarts=1, engine_restarts=1)
    decision = decide_repair(100.0, incident(97.0, 98.0, 99.0, fruitless=failed, siblings=siblings), DEFAULTS)
    assert decision.action is action
    assert "boom" in decision.reason
    assert "1 engine core restarts; last fault: " in decision.reason
    assert "fails like the replaced one is not replaced again" in decision.reason


def test_workers_that_are_lost_in_every_step_are_not_replaced_for_ever():
    assert decide_repair(100.0, sick(fruitless=after(0, worker_restarts=2)), DEFAULTS).action is Action.RESTART_WORKERS
    decision = decide_repair(100.0, sick(fruitless=after(0, worker_restarts=3)), DEFAULTS)
    assert decision.action is Action.RESTART_ENGINE
    assert "no step has ended well since 3 worker restarts" in decision.reason


# ---- stories


class Story:
    """An engine core that recovers from each repair and then fails in the first step, or after some."""

    def __init__(self, **settings):
        self.bench = Bench(HoldfastConfig(**settings))
        self.actions = []
        self._pids = itertools.count(70)

    def attach(self):
        """Let the replacement of the engine core report."""
        self.bench.attached(pid=next(self._pids))

    def fail(self, fault=MISSING, progressed=False):
        """Let the engine core fail, and carry out what is decided; note the actions and the seconds waited."""
        bench, seen = self.bench, len(self.bench.events)
        bench.paused_by_fault(fault=fault, progressed=progressed)
        for _ in range(100):
            decisions = [e.decision.action for e in bench.events[seen:] if e.decision is not None]
            if decisions[-1] is not Action.AWAIT:
                break
            bench.tick(after_s=0.1)
        self.actions.append(decisions[-1])
        if decisions[-1] in (Action.RETRY, Action.RESTART_WORKERS):
            bench.recovered(replaced=(0,) if decisions[-1] is Action.RESTART_WORKERS else ())
        elif decisions[-1] is Action.RESTART_ENGINE:
            self.attach()

    def fail_until_the_end(self, fault=MISSING):
        while self.bench.defeat is None and len(self.actions) < 50:
            self.fail(fault)
        return self.actions


def test_an_error_in_every_step_ends_the_instance_within_a_bound():
    """A new worker and a new engine core are tried, with fewer retries; the last line says so, with the error."""
    story = Story()
    began = story.bench.now
    assert story.fail_until_the_end() == [
        *[Action.RETRY] * 5,
        Action.RESTART_WORKERS,
        *[Action.RETRY] * 3,
        Action.RESTART_ENGINE,
        *[Action.RETRY] * 3,
        Action.END,
    ]
    assert story.bench.now - began < 15.0
    assert "no kernel for this operator" in story.bench.defeat
    assert "no step has ended well since 11 retries, 1 worker restarts, 1 engine core restarts" in story.bench.defeat


def test_an_error_of_the_engine_core_in_every_step_ends_too():
    story = Story()
    actions = story.fail_until_the_end(a_fault(message="the scheduler fails", rank=None))
    assert actions == [*[Action.RETRY] * 5, Action.RESTART_ENGINE, *[Action.RETRY] * 3, Action.END]


def test_a_worker_lost_in_every_step_ends_too():
    story = Story()
    actions = story.fail_until_the_end(a_loss())
    assert actions == [*[Action.RESTART_WORKERS] * 3, Action.RESTART_ENGINE, Action.END]


def test_one_step_that_ends_well_is_enough_to_begin_anew():
    story = Story()
    for _ in range(4):
        story.fail()
    story.fail(progressed=True)
    for _ in range(4):
        story.fail()
    assert story.actions == [Action.RETRY] * 9


def test_an_engine_core_that_was_lost_by_itself_is_not_part_of_the_row():
    """Only a replacement by decision, after repairs in vain, says that the next would fail as well."""
    story = Story()
    story.fail()
    story.bench.lost()
    story.attach()
    assert story.fail_until_the_end()[-2:] == [Action.RETRY, Action.END]
    assert story.actions.count(Action.RESTART_ENGINE) == 1
    assert len(story.bench.all(ReplaceEngine)) == 2


def test_the_search_for_a_poison_request_is_not_counted_and_does_not_begin_the_count_anew():
    """Nothing passes in the search, as nothing passes anywhere: the count goes on where the search left off."""
    story, bench = (made := Story()), made.bench
    actions = []
    for suspects in (0, 0, 1, 1, 0, 0, 1, 1, 0, 0):
        bench.observe(m.RequestsSuspected(engine_id=0, epoch=bench.view().epoch, suspects=suspects, reason="trial"))
        began = bench.now
        story.fail()
        actions.append((story.actions[-1], bench.now - began >= 1.0))
    at_once, paused = (Action.RETRY, False), (Action.RETRY, True)
    assert actions == [*[at_once] * 4, paused, paused, *[at_once] * 2, paused, (Action.RESTART_WORKERS, False)]
