"""Counts the effects of a chaos run on its streams: each answer is compared with the fault-free answer. Pure.

A connection that ended with its API server is counted separately, since no process was left to answer. The tokens
delivered until then must be right all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from holdfast.chaos.checker import compare_runs, gaps_touching_s
from holdfast.chaos.history import History
from holdfast.chaos.victims import ProcessKind, Victim

FELT_WITHIN_S = 10.0  # of a kill: a wait that begins later has another cause
MAX_PROBLEMS = 50  # listed; all are counted
REFUSED_WITHIN_S = 1.0  # a connection to a dead API server may be tried for a moment


@dataclass
class Kill:
    """A killed process, the time on the client's clock (seconds), and the consequences.

    `ports` are the clients' ports of the connections that the process served; `longest_gap_s` is the longest wait
    between two tokens of any stream afterwards.
    """

    victim: Victim
    at_s: float
    ports: frozenset[int] = frozenset()
    healed_s: float | None = None
    longest_gap_s: float = 0.0

    def severed(self, history: History) -> bool:
        """Return whether an answer's connection ended with the process."""
        if self.victim.kind is not ProcessKind.API_SERVER or history.sent_s > self.at_s + REFUSED_WITHIN_S:
            return False
        return history.port in self.ports if history.port is not None else not history.token_ids


@dataclass
class Tally:
    """All answers of a run so far; `severed` answers ended with the API server that held their connection."""

    reference: Sequence[History]
    answers: int = 0
    tokens: int = 0
    exact: int = 0
    severed: int = 0
    lost_tokens: int = 0
    repeated_tokens: int = 0
    changed_tokens: int = 0
    wrong: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, observed: Sequence[History], kills: Sequence[Kill]) -> None:
        """Add the answers of a load; the times of the kills during the load are known by now."""
        severed = [one for one in observed if one.error is not None and any(kill.severed(one) for kill in kills)]
        names = {one.name for one in severed}
        rest = [one for one in observed if one.name not in names]
        self._compare([one for one in self.reference if one.name not in names], rest)
        self._take_severed(severed)
        self.answers += len(observed)
        self.tokens += sum(len(one.token_ids) for one in observed)
        for kill in kills:
            waits = [wait for one in rest for wait in gaps_touching_s(one, kill.at_s, kill.at_s + FELT_WITHIN_S)]
            kill.longest_gap_s = max([kill.longest_gap_s, *waits])

    def _compare(self, reference: Sequence[History], observed: Sequence[History]) -> None:
        if not reference:
            return
        comparison = compare_runs(reference, observed)
        self.exact += sum(stream.exact for stream in comparison.streams)
        self.lost_tokens += comparison.lost
        self.repeated_tokens += comparison.repeated
        self.changed_tokens += comparison.changed
        self._record(comparison.reasons, sum(not stream.exact for stream in comparison.streams))

    def _take_severed(self, severed: Sequence[History]) -> None:
        """Check that the delivered tokens are a prefix of the fault-free answer; without a seed there is none."""
        twins = {one.name: one.token_ids for one in self.reference}
        self.severed += len(severed)
        seeded = [one for one in severed if not one.is_unseeded]
        wrong = [one.name for one in seeded if twins[one.name][: len(one.token_ids)] != one.token_ids]
        self._record([f"{name}: wrong tokens before the end of its connection" for name in wrong], len(wrong))

    def _record(self, reasons: Sequence[str], wrong: int) -> None:
        self.wrong += wrong
        self.problems += reasons[: max(0, MAX_PROBLEMS - len(self.problems))]
