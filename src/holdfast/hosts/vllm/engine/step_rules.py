"""Rules around the scheduling of a step, which is the host's own again as soon as nobody has one.

Nothing of this stands in the step path while everything is well: the method is replaced for as long as a rule holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Rule = Callable[[Callable[[], Any]], Any]  # given what schedules the step, returns what that returned


class StepRules:
    """Of one scheduler. The busy loop's thread. A rule may be taken away while it runs."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._rules: list[Rule] = []
        self._take_back: Callable[[], None] = lambda: None

    def put(self, rule: Rule) -> None:
        """Outside of those that hold already."""
        if not self._rules:
            self._take_back = replaced(self._scheduler, "schedule", self._around(self._scheduler.schedule))
        if rule not in self._rules:
            self._rules.append(rule)

    def take_away(self, rule: Rule) -> None:
        if rule in self._rules:
            self._rules.remove(rule)
            if not self._rules:
                self._take_back()

    def _around(self, schedule: Callable[..., Any]) -> Callable[..., Any]:
        def schedule_by_rule(*args: Any, **kwargs: Any) -> Any:
            call = functools.partial(schedule, *args, **kwargs)
            for rule in tuple(self._rules):
                call = functools.partial(rule, call)
            return call()

        return schedule_by_rule


def replaced(owner: Any, name: str, by: Callable[..., Any]) -> Callable[[], None]:
    """Put a method in one object's place of another; what is returned puts back what stood there."""
    own = vars(owner).get(name)
    setattr(owner, name, by)
    return functools.partial(delattr, owner, name) if own is None else functools.partial(setattr, owner, name, own)
