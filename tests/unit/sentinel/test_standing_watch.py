"""The watch of an engine core that schedules nothing ends the busy loop with the cause, once."""

from __future__ import annotations

from typing import Any

from holdfast.core.stalls.standing import NothingScheduled, Planning
from holdfast.core.stalls.step_deadlines import Limits
from holdfast.sentinel.stall_watch import PERIOD_S
from holdfast.sentinel.standing_watch import StandingWatch

INTERRUPT = RuntimeError("Executor failed.")


class Host:
    """An engine core whose scheduler takes turns and plans nothing."""

    def __init__(self) -> None:
        self.turns = self.interrupts = 0

    def planning(self) -> Planning:
        self.turns += 10
        return Planning(self.turns, steps=7)

    def ready_requests(self) -> int:
        return 3

    def interrupt(self) -> None:
        self.interrupts += 1

    def is_interrupt(self, error: Exception) -> bool:
        return error is INTERRUPT


def watched(*, is_running: bool = True) -> tuple[Any, StandingWatch]:
    """Return a host and its watch after eleven seconds of looks."""
    host: Any = Host()
    watch = StandingWatch(host, Limits())
    for look in range(round(11 / PERIOD_S)):
        watch.look(look * PERIOD_S, is_running=is_running)
    return host, watch


def test_a_busy_loop_that_stands_is_interrupted_and_the_cause_is_the_fault() -> None:
    host, watch = watched()
    assert host.interrupts == 1
    assert isinstance(watch.cause_of(INTERRUPT), NothingScheduled)
    assert watch.cause_of(INTERRUPT) is INTERRUPT  # the next interrupt has another reason


def test_an_error_of_the_busy_loop_itself_stays_what_it_is() -> None:
    _, watch = watched()
    error = ValueError("the scheduler raised meanwhile")
    assert watch.cause_of(error) is error
    assert watch.cause_of(INTERRUPT) is INTERRUPT


def test_a_paused_busy_loop_does_not_stand() -> None:
    host, _ = watched(is_running=False)
    assert host.interrupts == 0
