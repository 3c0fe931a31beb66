"""Checks the law of exactly once: compares a faulted run with a fault-free run, token by token.

Tokens that were sampled without a seed differ from run to run. They are compared with the model itself: each token's
logprob must equal the logprob of the same token when the model reads prompt and answer again.

Pure: no clock, no I/O. A history with any difference is never called equal, however the difference is counted.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from holdfast.chaos.history import History

# Recomputing a prompt in one piece rounds differently from computing it token by token.
LOGPROB_TOLERANCE = 1e-3
READ_AGAIN_TOLERANCE = 0.05


@dataclass(frozen=True)
class StreamComparison:
    """An answer against its reference: tokens lost, repeated and changed, and all reasons to call it wrong."""

    name: str
    tokens: int
    expected: int
    lost: int = 0
    repeated: int = 0
    changed: int = 0
    reasons: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class RunComparison:
    """All answers of a run against the fault-free run."""

    streams: tuple[StreamComparison, ...]

    @property
    def exact(self) -> bool:
        return bool(self.streams) and all(stream.exact for stream in self.streams)

    @property
    def lost(self) -> int:
        return sum(stream.lost for stream in self.streams)

    @property
    def repeated(self) -> int:
        return sum(stream.repeated for stream in self.streams)

    @property
    def changed(self) -> int:
        return sum(stream.changed for stream in self.streams)

    @property
    def reasons(self) -> tuple[str, ...]:
        said = tuple(f"{stream.name}: {reason}" for stream in self.streams for reason in stream.reasons)
        return said if self.streams else ("nothing was compared",)


def compare_runs(reference: Sequence[History], observed: Sequence[History]) -> RunComparison:
    """Compare two runs by name; an answer without a counterpart is wrong."""
    seen = {history.name: history for history in observed}
    known = {history.name for history in reference}
    comparisons = [compare_histories(one, seen.get(one.name)) for one in reference]
    comparisons += [_unexpected(history) for history in observed if history.name not in known]
    return RunComparison(tuple(comparisons))


def compare_histories(reference: History, observed: History | None) -> StreamComparison:
    """Compare an answer with its fault-free counterpart."""
    expected = len(reference.token_ids)
    if observed is None:
        return StreamComparison(reference.name, 0, expected, lost=expected, reasons=("the answer is missing",))
    if observed.is_unseeded:
        return _judge_unseeded(reference, observed)
    lost, repeated, changed = count_differences(reference.token_ids, observed.token_ids)
    return StreamComparison(
        reference.name,
        tokens=len(observed.token_ids),
        expected=expected,
        lost=lost,
        repeated=repeated,
        changed=changed,
        reasons=tuple(_reasons(reference, observed, lost, repeated, changed)),
    )


def _judge_unseeded(reference: History, observed: History) -> StreamComparison:
    """Judge an answer that was sampled without a seed: its length, its end, and the model's own view of its tokens."""
    expected, tokens = len(reference.token_ids), len(observed.token_ids)
    changed = sum(gap > READ_AGAIN_TOLERANCE for gap in read_again_gaps(observed))
    return StreamComparison(
        reference.name,
        tokens,
        expected,
        lost=max(expected - tokens, 0),
        repeated=max(tokens - expected, 0),
        changed=changed,
        reasons=tuple(_unseeded_reasons(reference, observed, changed)),
    )


def _unseeded_reasons(reference: History, observed: History, changed: int) -> list[str]:
    reasons = _reasons_of_the_end(reference, observed)
    expected, tokens = len(reference.token_ids), len(observed.token_ids)
    if tokens != expected:
        reasons.append(f"{tokens} tokens instead of {expected}")
    if len(observed.logprobs) != tokens:
        reasons.append(f"{len(observed.logprobs)} logprobs for {tokens} tokens")
    if observed.read_again_logprobs is None:
        reasons.append(f"the answer was not read again: {observed.read_again_error or 'nobody asked'}")
    if changed:
        gaps = read_again_gaps(observed)
        first = next(position for position, gap in enumerate(gaps) if gap > READ_AGAIN_TOLERANCE)
        reasons.append(
            f"{changed} tokens are not the model's own, the first at {first}: sampled with other logprobs than the "
            f"model gives when it reads the answer again (up to {max(gaps):.3f} nats apart)"
        )
    return reasons


def read_again_gaps(history: History) -> list[float]:
    """Return how far each token's logprob is from the logprob that the model gives when it reads the answer again."""
    pairs = zip(history.logprobs, history.read_again_logprobs or (), strict=False)
    return [abs(sampled - read) for sampled, read in pairs]


def count_differences(expected: Sequence[int], seen: Sequence[int]) -> tuple[int, int, int]:
    """Count tokens lost, repeated and changed; extra tokens without repetition count as changed."""
    if expected == seen:
        return 0, 0, 0
    lost = repeated = changed = 0
    matcher = SequenceMatcher(None, expected, seen, autojunk=False)
    for kind, start, end, seen_start, seen_end in matcher.get_opcodes():
        missing, extra = end - start, seen_end - seen_start
        if kind == "insert" and _repeats(seen, seen_start, seen_end):
            repeated += extra
        elif kind != "equal":
            changed += min(missing, extra) + max(extra - missing, 0)
            lost += max(missing - extra, 0)
    return lost, repeated, changed


def _repeats(seen: Sequence[int], start: int, end: int) -> bool:
    """Return whether an extra piece equals the piece right before or right after."""
    size, piece = end - start, seen[start:end]
    return piece == seen[start - size : start] or piece == seen[end : end + size]


def _reasons(reference: History, observed: History, lost: int, repeated: int, changed: int) -> list[str]:
    reasons = [f"{count} tokens {word}" for count, word in ((lost, "lost"), (repeated, "repeated")) if count]
    if changed:
        reasons.append(f"{changed} tokens changed, the first at {_first_difference(reference, observed)}")
    reasons += _reasons_of_the_end(reference, observed)
    if observed.text != reference.text:
        reasons.append("the text differs")
    if not _same_logprobs(reference.logprobs, observed.logprobs):
        reasons.append("the logprobs differ")
    return reasons


def _reasons_of_the_end(reference: History, observed: History) -> list[str]:
    reasons = []
    if reference.error is not None:
        reasons.append(f"the fault-free run failed: {reference.error}")
    if observed.error is not None:
        reasons.append(f"ended with an error: {observed.error}")
    if observed.finish_reason != reference.finish_reason:
        reasons.append(f"finished with {observed.finish_reason!r} instead of {reference.finish_reason!r}")
    return reasons


def _first_difference(reference: History, observed: History) -> int:
    pairs = enumerate(zip(reference.token_ids, observed.token_ids, strict=False))
    shorter = min(len(reference.token_ids), len(observed.token_ids))
    return next((position for position, (one, other) in pairs if one != other), shorter)


def _same_logprobs(one: Sequence[float], other: Sequence[float]) -> bool:
    if len(one) != len(other):
        return False
    return all(abs(a - b) <= LOGPROB_TOLERANCE for a, b in zip(one, other, strict=True))


def _unexpected(history: History) -> StreamComparison:
    tokens = len(history.token_ids)
    return StreamComparison(
        history.name, tokens, 0, changed=tokens, reasons=("the fault-free run has no answer of this name",)
    )


# ---- how long a client waited


def interruption_s(reference: History, observed: History, fault_s: float, recovered_s: float) -> float | None:
    """Return the seconds a client waited because of a fault; None when the answer had ended before.

    The measure is the longest wait that ends after the fault and begins before the end of the recovery: "last token
    before the fault to first token after" would be too short when tokens were under way at the fault. An answer without
    a token at the fault counts with the delay of its first token against the fault-free run, and at least with the time
    that the engine was paused.
    """
    end_s = max(fault_s, recovered_s)
    arrivals = observed.arrivals_s
    if not arrivals:
        return None
    if arrivals[0] > fault_s:
        paused_s = min(end_s, arrivals[0]) - max(fault_s, observed.sent_s)
        return max(first_token_delay_s(observed) - first_token_delay_s(reference), paused_s, 0.0)
    return max(gaps_touching_s(observed, fault_s, end_s), default=None)


def gaps_touching_s(history: History, begin_s: float, end_s: float) -> list[float]:
    """Return the waits between successive tokens that end after `begin_s` and begin no later than `end_s`."""
    waits = itertools.pairwise(history.arrivals_s)
    return [after - before for before, after in waits if after > begin_s and before <= end_s]


def first_token_delay_s(history: History) -> float:
    """Return the time to the first token; 0 without tokens."""
    return history.arrivals_s[0] - history.sent_s if history.arrivals_s else 0.0


def longest_gap_s(history: History) -> float:
    """Return the longest wait between two successive tokens of an answer."""
    return max(history.gaps_s(), default=0.0)


@dataclass(frozen=True)
class Spread:
    """Median, bounds and quartiles of several measurements."""

    median: float
    minimum: float
    maximum: float
    quartile_low: float
    quartile_high: float

    @property
    def interquartile_range(self) -> float:
        return self.quartile_high - self.quartile_low


def spread_of(values: Sequence[float]) -> Spread:
    """Compute median, bounds and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(*[values[0]] * 5)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, min(values), max(values), low, high)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the ordered values do not exceed."""
    rank = max(0, -int(-share * len(ordered) // 1) - 1)
    return ordered[min(rank, len(ordered) - 1)]
