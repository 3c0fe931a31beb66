"""The verdict of a cell: how the answers of one sampling mode went through one fault. Pure."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from holdfast.bench.incident import Window
from holdfast.chaos.checker import (
    READ_AGAIN_TOLERANCE,
    compare_histories,
    first_token_delay_s,
    interruption_s,
)
from holdfast.chaos.history import History

LONGEST_REASON = 300
_LOST = (
    "no end within",
    "without a finish reason",
    "ConnectError",
    "RemoteProtocolError",
    "ReadError",
    "APIConnection",
)


class Result(enum.StrEnum):
    """What a cell says."""

    EXACT = "exact"
    BY_ORACLE = "exact by the oracle"
    ENDS_ALONE = "ends alone with an error"
    REFUSED = "refused at start"
    HOST_FAILS = "plain vLLM fails too"
    BROKEN = "broken"


@dataclass(frozen=True)
class Cell:
    """A result, why it is not exact, and the longest interruption in steps of the fault-free run."""

    result: Result
    why: str = ""
    steps: float | None = None
    wrong: frozenset[str] = frozenset()  # answers

    def row(self) -> dict[str, object]:
        """Return the cell without what is empty."""
        kept = {"result": str(self.result), "why": self.why[:LONGEST_REASON], "steps": self.steps}
        return {key: value for key, value in kept.items() if value not in ("", None)}


@dataclass(frozen=True)
class Pair:
    """A fault-free answer, the same answer in a run with a fault, and whether its text obeys its grammar."""

    reference: History
    observed: History
    is_valid: Callable[[str], bool] | None = None
    is_greedy: bool = False

    def reasons(self) -> tuple[str, ...]:
        """Return why the answer is wrong; empty when nothing is."""
        if self.is_greedy and self.observed.is_unseeded and self.is_valid is None:
            compared = compare_histories(self.reference, self.observed).reasons
            return (*compared, *_reasons_of_the_likeliest(self.observed))
        if self.is_valid is not None and self.observed.is_unseeded:
            return tuple(_reasons_under_a_grammar(self.observed, self.is_valid))
        return compare_histories(self.reference, self.observed).reasons


def _reasons_under_a_grammar(observed: History, is_valid: Callable[[str], bool]) -> list[str]:
    """Judge an unseeded answer under a grammar, whose tokens are at least as likely as without the grammar."""
    if observed.error is not None:
        return [f"ended with an error: {observed.error}"]
    reasons = [] if is_valid(observed.text) else [f"the text breaks the grammar: {observed.text[:80]!r}"]
    if observed.read_again_logprobs is None:
        reasons.append(f"the answer was not read again: {observed.read_again_error or 'nobody asked'}")
    pairs = zip(observed.logprobs, observed.read_again_logprobs or (), strict=False)
    if any(read - sampled > READ_AGAIN_TOLERANCE for sampled, read in pairs):
        reasons.append("a token is less likely than the model says")
    return reasons


def _reasons_of_the_likeliest(observed: History) -> list[str]:
    """Judge a greedy answer by the oracle: each token is the likeliest, or as likely as the likeliest."""
    pairs = zip(observed.read_again_logprobs or (), observed.read_again_best or (), strict=False)
    short = [position for position, (own, best) in enumerate(pairs) if best - own > READ_AGAIN_TOLERANCE]
    return [f"{len(short)} tokens are not the likeliest, the first at {short[0]}"] if short else []


def not_repeated(first: Mapping[str, History], second: Mapping[str, History]) -> dict[str, str]:
    """Return the answers that two fault-free runs do not give alike, with the difference; unseeded ones excepted."""
    found = {}
    for name, history in first.items():
        if not history.is_unseeded and (reasons := compare_histories(history, second.get(name)).reasons):
            found[name] = "; ".join(reasons)[:LONGEST_REASON]
    return found


def judge(pairs: Sequence[Pair], *, others_are_exact: bool, unwell: str | None) -> Cell:
    """Judge the answers of one mode after one fault. `unwell` is what the instance lacks after the repair."""
    wrong = {pair.observed.name: reasons for pair in pairs if (reasons := pair.reasons())}
    if unwell is not None:
        return Cell(Result.BROKEN, f"the instance is not well afterwards: {unwell}")
    if not wrong:
        return Cell(Result.BY_ORACLE if any(pair.observed.is_unseeded for pair in pairs) else Result.EXACT)
    why = "; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in wrong.items())
    ended = [pair.observed for pair in pairs if pair.observed.name in wrong]
    if others_are_exact and all(is_ended_alone(one) for one in ended):
        return Cell(Result.ENDS_ALONE, why)
    return Cell(Result.BROKEN, why, wrong=frozenset(wrong))


def is_ended_alone(history: History) -> bool:
    """Return whether an answer ended with an error that the server told, rather than with silence."""
    return history.error is not None and not any(word in history.error for word in _LOST)


def step_s(fault_free: Sequence[History]) -> float:
    """Return the median time of a step in a fault-free run: from the first to the last output, by outputs.

    Tokens of a step arrive together. A single gap says nothing: a client that is late reads many outputs at once.
    """
    each = []
    for history in fault_free:
        outputs = sorted(set(history.arrivals_s))
        if len(outputs) > 1:
            each.append((outputs[-1] - outputs[0]) / (len(outputs) - 1))
    waits = [first_token_delay_s(history) for history in fault_free if history.arrivals_s]
    return statistics.median(each or waits or [1.0])


def interruption_steps(pairs: Sequence[Pair], window: Window, one_step_s: float, *, reads_prompt: bool) -> float | None:
    """Return the longest interruption in steps, less the prompt where it is computed again; None without any."""
    waits = []
    for pair in pairs:
        waited_s = interruption_s(pair.reference, pair.observed, window.fault_s, window.recovered_s)
        if waited_s is not None:
            waits.append(max(waited_s - (first_token_delay_s(pair.reference) if reads_prompt else 0.0), 0.0))
    return round(max(waits) / one_step_s, 1) if waits else None


def was_under_way(history: History, window: Window) -> bool:
    """Return whether the end of an answer came after the fault."""
    return history.error is not None or (bool(history.arrivals_s) and history.arrivals_s[-1] > window.fault_s)
