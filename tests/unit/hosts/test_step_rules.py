"""Rules around the scheduling of a step: several at once, in any order, and no trace afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.engine.pacing import Rule, StepRules


class Scheduler:
    def schedule(self, throttle_prefills: bool = False) -> str:
        return "throttled" if throttle_prefills else "step"


def marking(mark: str) -> Rule:
    def rule(schedule: Callable[[], Any]) -> Any:
        return f"{mark}({schedule()})"

    return rule


def test_a_rule_wraps_the_hosts_scheduling_and_the_rules_before() -> None:
    scheduler = Scheduler()
    rules = StepRules(scheduler)
    rules.add(marking("a"))
    rules.add(marking("b"))
    assert scheduler.schedule() == "b(a(step))"
    assert scheduler.schedule(True) == "b(a(throttled))"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_after_the_last_rule_the_method_is_the_hosts_own_in_any_order(order: tuple[int, ...]) -> None:
    scheduler = Scheduler()
    rules, there = StepRules(scheduler), [marking(str(i)) for i in range(3)]
    for rule in there:
        rules.add(rule)
    for index in order:
        assert f"{index}(" in scheduler.schedule()
        rules.remove(there[index])
        assert f"{index}(" not in scheduler.schedule()
    assert vars(scheduler) == {}


def test_adding_twice_and_removing_an_absent_rule_change_nothing() -> None:
    scheduler, rule = Scheduler(), marking("a")
    rules = StepRules(scheduler)
    rules.remove(rule)
    rules.add(rule)
    rules.add(rule)
    assert scheduler.schedule() == "a(step)"
    rules.remove(rule)
    assert vars(scheduler) == {}


def test_a_rule_may_remove_itself_within_a_step() -> None:
    scheduler = Scheduler()
    rules = StepRules(scheduler)

    def once(schedule: Callable[[], Any]) -> Any:
        rules.remove(once)
        return schedule()

    rules.add(once)
    assert scheduler.schedule() == "step"
    assert vars(scheduler) == {}


def test_a_replaced_method_of_the_scheduler_is_restored() -> None:
    scheduler = Scheduler()
    others = scheduler.schedule = lambda *_: "others"  # type: ignore[method-assign]
    rules, rule = StepRules(scheduler), marking("a")
    rules.add(rule)
    assert scheduler.schedule() == "a(others)"
    rules.remove(rule)
    assert scheduler.schedule is others
