"""What a run has seen, and how it ended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """Counts of a run, for the coverage of many runs."""

    transitions: Counter[str] = field(default_factory=Counter)
    failed_effects: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    runs: int = 0

    def add(self, other: Tally) -> None:
        self.transitions.update(other.transitions)
        self.failed_effects.update(other.failed_effects)
        self.events.update(other.events)
        self.faults += other.faults
        self.runs += other.runs

    def figures(self) -> dict[str, Any]:
        """Return the counts as plain numbers and mappings, for a file."""
        counted = {"transitions": self.transitions, "failed_effects": self.failed_effects, "events": self.events}
        return {"runs": self.runs, "faults": self.faults, **{name: dict(count) for name, count in counted.items()}}


@dataclass(frozen=True)
class RunResult:
    """Summary of a run. `ended`: the last line of an instance that gave up."""

    seed: int
    ended: str | None
    finished_requests: int
    events: int
    virtual_s: float
    tally: Tally
