"""The memory of requests that were found guilty: what enters, what leaves, and which events tell of both."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.core.instance.state import InstanceState, publish_of_instance
from holdfast.core.poison.memory import SHOWN_CHARS, FoundGuilty
from holdfast.core.protocol.effects import Effect
from holdfast.core.protocol.events import EventKind

_OVER = "its time is over"
_QUIET = "it was not found guilty again"


def found_guilty(state: InstanceState, guilty: FoundGuilty, now: float) -> list[Effect]:
    """Take the verdict of an API server or engine core; repetitions are refused from now on."""
    period_s = state.config.poison_memory_s
    if not period_s or not state.guilt.remember(guilty, period_s, now, state.wall_clock()):
        return []
    [entry] = [e for e in state.guilt.view().entries if e.fingerprint == guilty.fingerprint]
    left_s = entry.until - state.wall_clock()
    reason = f"{_named(guilty)} is remembered; repetitions are refused for {left_s:g} s (--poison-memory)"
    return [_publish(state, EventKind.REQUEST_REMEMBERED, guilty, reason)]


def refused(state: InstanceState, fingerprint: str, count: int) -> list[Effect]:
    """Count refusals that an API server reports. Publish the 1st, 2nd, 4th, 8th and so on."""
    known = {e.fingerprint: e for e in state.guilt.view().entries}
    refusals = state.guilt.count_refusals(fingerprint, count)
    if refusals is None or refusals.bit_length() == (refusals - count).bit_length():
        return []
    guilty = known[fingerprint]
    return [_publish(state, EventKind.REQUEST_REFUSED, guilty, f"{_named(guilty)} was refused {refusals} times")]


def expire(state: InstanceState, now: float) -> list[Effect]:
    """End the refusals and trials that are over."""
    return [
        _forget(state, guilty, _OVER if on_trial else _QUIET, on_trial)
        for guilty, on_trial in state.guilt.expire(now, state.wall_clock())
    ]


def try_again(state: InstanceState, why: str, now: float) -> list[Effect]:
    """End every refusal, because the cause may have gone."""
    return _forget_each(state, state.guilt.try_again(now, state.wall_clock()), why, on_trial=True)


def forget_all(state: InstanceState, why: str) -> list[Effect]:
    """Forget everything."""
    return _forget_each(state, state.guilt.forget_all(), why, on_trial=False)


def _forget_each(state: InstanceState, guilty: Iterable[FoundGuilty], why: str, *, on_trial: bool) -> list[Effect]:
    return [_forget(state, each, why, on_trial) for each in guilty]


def _forget(state: InstanceState, guilty: FoundGuilty, why: str, on_trial: bool) -> Effect:
    what = "is no longer refused; its next failed step ends it" if on_trial else "is forgotten"
    return _publish(state, EventKind.REQUEST_FORGOTTEN, guilty, f"{_named(guilty)} {what}: {why}")


def _publish(state: InstanceState, kind: EventKind, guilty: FoundGuilty, reason: str) -> Effect:
    return publish_of_instance(state, kind, reason=reason, incident=guilty.incident)


def _named(guilty: FoundGuilty) -> str:
    return f"poison {guilty.kind} {guilty.fingerprint[:SHOWN_CHARS]}"
