"""Rules around the scheduling of a step. Without a rule the scheduler's method is the host's own.

The method is replaced only while a rule is present, so a healthy step path has nothing of Holdfast here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Rule = Callable[[Callable[[], Any]], Any]  # given the function that schedules the step; returns the output of the step


class StepRules:
    """The rules of a scheduler. Busy loop's thread. A rule may be removed while running."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._rules: list[Rule] = []
        self._restore: Callable[[], None] = lambda: None

    def add(self, rule: Rule) -> None:
        """Put a rule around the present rules. Idempotent."""
        if not self._rules:
            self._restore = replace_method(self._scheduler, "schedule", self._around(self._scheduler.schedule))
        if rule not in self._rules:
            self._rules.append(rule)

    def remove(self, rule: Rule) -> None:
        """Remove a rule; restore the host's method after the last rule. Idempotent."""
        if rule in self._rules:
            self._rules.remove(rule)
            if not self._rules:
                self._restore()

    def _around(self, schedule: Callable[..., Any]) -> Callable[..., Any]:
        def schedule_by_rules(*args: Any, **kwargs: Any) -> Any:
            call = functools.partial(schedule, *args, **kwargs)
            for rule in tuple(self._rules):
                call = functools.partial(rule, call)
            return call()

        return schedule_by_rules


def replace_method(owner: Any, name: str, by: Callable[..., Any]) -> Callable[[], None]:
    """Replace a method of a single object; return a function that restores the method."""
    own = vars(owner).get(name)
    setattr(owner, name, by)
    return functools.partial(delattr, owner, name) if own is None else functools.partial(setattr, owner, name, own)
