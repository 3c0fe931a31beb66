"""Search among suspected requests for the request that makes a batch fail, with as few further faults as possible.

Chooses the requests to run next, and is told whether that batch failed or passed. Knows request ids only. A trial that
passes costs no fault: therefore the less suspected half runs first, and the last few suspects run one by one, of which
at most one fails. A request is found to be poison when it has failed alone twice, and other requests passed before and
after each time: a fault that strikes for a while, whatever runs, is not the fault of a request. A request that passes
alone and fails beside requests that passed together is one half of a pair, and is kept apart from those requests.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

# So few suspects are tried one by one: each that passes costs a few steps, and one more halving would cost a fault.
SINGLES = 4
# So often somebody has to fail alone, right after others have passed and before others pass again.
LONE_FAILURES = 2
# How many requests of our own one search may ask for, where nobody else is there to compare with.
MAX_CONTROLS = 4


class Kind(enum.Enum):
    """Purpose of a trial."""

    HALF = enum.auto()  # whether a culprit is in this half of the suspects
    CONTROL = enum.auto()  # whether the other half passes, where nothing has passed yet
    ALONE = enum.auto()  # whether one fails by itself
    VOUCH = enum.auto()  # whether those that have passed still do
    JOIN = enum.auto()  # whether one that passed by itself passes beside those that passed together
    RELEASE = enum.auto()  # whether those that nothing is known of pass


COMPARED = frozenset({Kind.CONTROL, Kind.VOUCH})  # of whose probe nothing is suspected


@dataclass(frozen=True)
class Trial:
    """A batch to run. Only requests in `run` are scheduled; the trial tells about the requests in `probe`."""

    kind: Kind
    probe: tuple[str, ...]
    run: frozenset[str]


@dataclass(frozen=True)
class PoisonFound:
    """A request that failed alone twice, while further requests passed before and after each time."""

    request_id: str
    failed_batches: int


@dataclass(frozen=True)
class KeepApart:
    """A request that passes alone, and fails beside the requests in `others`."""

    request_id: str
    others: frozenset[str]


@dataclass(frozen=True)
class Over:
    """The end of a search. `unclear`: reason why no request could be judged, if so."""

    unclear: str = ""


@dataclass(frozen=True)
class NeedsControl:
    """The search needs a control request, because no request is left to compare the suspect with."""


Step = Trial | PoisonFound | KeepApart | NeedsControl | Over


class Bisection:
    """A search. `suspects` are in the order of suspicion, the least suspected first.

    `others` were in the failed batch as well, and are not suspected.
    """

    def __init__(self, suspects: Sequence[str], others: Iterable[str] = ()) -> None:
        self.suspects = list(suspects)
        self.passed: set[str] = set()  # ran together without a fault
        self._unjudged = list(others := list(others))
        self._passed_alone: set[str] = set()
        self._failed_alone: list[str] = []
        self._lone_failures: Counter[str] = Counter()  # those that others passed right before
        self._is_well = False  # somebody has passed since the last failure
        self._tried_unjudged = False
        self._somebody_passed = False  # at any time, and may have left since
        self._controls = 0
        self._owed: tuple[str, ...] = ()  # the other half of one that failed
        self._nothing_passes = False
        self._failures = Counter({**dict.fromkeys(others, 1), **dict.fromkeys(suspects, 2)})
        self._confirmed: str | None = None
        self._apart: KeepApart | None = None
        self.trial: Trial | None = None

    @property
    def open(self) -> int:
        """Number of requests that are not judged yet."""
        return len(self.suspects) + len(self._unjudged)

    # ---- what comes next

    def next(self, bystanders: Iterable[str] = ()) -> Step:
        """Return the next trial or finding. `bystanders` were in no failed batch, and may serve as a control."""
        self.trial = None
        if self._apart is not None:
            found, self._apart = self._apart, None
            return found
        if self._confirmed is not None and self._is_well:
            return self._find_poison(self._confirmed)
        step = self._next_trial(bystanders)
        self.trial = step if isinstance(step, Trial) else None
        return step

    def _find_poison(self, request_id: str) -> PoisonFound:
        """Judge a request; the remaining suspects were only in the same batches."""
        self._unjudged = [u for u in (*self._unjudged, *self.suspects) if u != request_id]
        self.suspects, self._confirmed = [], None
        return PoisonFound(request_id, self._failures[request_id])

    def _next_trial(self, bystanders: Iterable[str]) -> Step:
        if self._failed_alone and self._is_well:
            return self._alone(self._failed_alone[-1])  # once more, now that others are known to pass
        if self._failed_suspects and (vouching := self._vouching()):
            return vouching
        if not self.suspects:
            return self._next_unsuspected(bystanders)
        if self._owed:
            return Trial(Kind.CONTROL, self._owed, frozenset(self._owed))
        if len(self.suspects) > SINGLES:
            return self._try(Kind.HALF, self.suspects[: len(self.suspects) // 2])
        return self._next_single(bystanders)

    @property
    def _failed_suspects(self) -> list[str]:
        """Requests that have failed alone."""
        return [*self._failed_alone, *([self._confirmed] if self._confirmed is not None else [])]

    def _vouching(self) -> Trial | None:
        """Return a trial of requests that passed together, or of a request that passed alone; None without any."""
        failed = set(self._failed_suspects)
        others = sorted(self.passed - failed) or sorted(self._passed_alone - failed)[:1]
        return Trial(Kind.VOUCH, tuple(others), frozenset(others)) if others else None

    def _before_single(self) -> Trial | None:
        """Return the trial that has to pass before a suspect runs alone; None when none is needed or possible."""
        if self._is_well:
            return None
        if (vouching := self._vouching()) or not self._unjudged or self._nothing_passes or self._tried_unjudged:
            return vouching
        self._tried_unjudged = True
        return self._try(Kind.RELEASE, self._unjudged)

    def _next_unsuspected(self, bystanders: Iterable[str]) -> Step:
        if self._unjudged:
            return self._try(Kind.RELEASE, self._unjudged)
        return self._look_elsewhere(bystanders) if self._failed_suspects else Over()

    def _next_single(self, bystanders: Iterable[str]) -> Step:
        tried = {*self._passed_alone, *self._failed_alone}
        if untried := [s for s in self.suspects if s not in tried]:
            return self._before_single() or self._alone(untried[-1])
        if self._failed_alone:
            return self._look_elsewhere(bystanders)
        if not self.passed:  # one that passed alone is the first of those that pass together
            self.passed.add(self.suspects.pop(0))
            return self._next_trial(bystanders)
        return self._try(Kind.JOIN, self.suspects[:1])

    @staticmethod
    def _alone(request_id: str) -> Trial:
        return Trial(Kind.ALONE, (request_id,), frozenset((request_id,)))

    def _look_elsewhere(self, bystanders: Iterable[str]) -> Step:
        """Suspect further requests: every tried request failed, and only a pass shows that requests are the cause."""
        failed = self._failed_suspects
        self.suspects = [u for u in dict.fromkeys((*self._unjudged, *bystanders)) if u not in failed]
        self._unjudged = []
        if self.suspects:
            return self._next_trial(())
        if len(failed) > 1 or self._controls >= MAX_CONTROLS:
            return Over("no request passes that could be compared with the suspects")
        self._controls += 1
        return NeedsControl()

    def _try(self, kind: Kind, probe: Sequence[str]) -> Trial:
        return Trial(kind, tuple(probe), frozenset((*self.passed, *probe)))

    # ---- what came of it

    def passes(self) -> None:
        """Take the trial as passed."""
        assert self.trial is not None
        kind, probe = self.trial.kind, self.trial.probe
        self._owed = ()
        self._is_well |= not {*probe} <= {*self._failed_suspects}
        self._somebody_passed = True
        if kind is Kind.VOUCH:
            return
        if kind is Kind.ALONE:
            self._passes_alone(*probe)
            return
        self._pass(probe)
        self._nothing_passes = False

    def _passes_alone(self, request_id: str) -> None:
        self._passed_alone.add(request_id)
        if request_id in self._failed_alone:  # it fails at times only: nothing is known of it
            self._failed_alone.remove(request_id)
            del self._lone_failures[request_id]
            self._unjudged += [request_id] if request_id not in self.suspects else []

    def fails(self, batch: Collection[str]) -> bool | None:
        """Take the trial's batch as failed.

        Return whether fewer suspects are left; None when no request on trial was in the batch.
        """
        assert self.trial is not None
        was_well, self._is_well = self._is_well, False
        self._failures.update(batch)
        hit = [p for p in self.trial.probe if p in batch]
        if not hit or self.trial.kind is Kind.VOUCH:
            return None
        match self.trial.kind:
            case Kind.HALF:
                return self._half_fails(hit)
            case Kind.CONTROL:
                self._owed, self._nothing_passes = (), True
                return False
            case Kind.ALONE:
                return self._fails_alone(hit[0], counts=was_well)
            case Kind.JOIN:
                self._apart = KeepApart(hit[0], frozenset(self.passed))
                self.suspects.remove(hit[0])
            case _:  # RELEASE
                rest = (*self.suspects, *self._unjudged)
                self.suspects, self._unjudged = hit, [r for r in rest if r not in hit]
        return True

    def _fails_alone(self, request_id: str, *, counts: bool) -> bool:
        self._lone_failures[request_id] += counts
        if request_id not in self._failed_alone:
            self._failed_alone.append(request_id)
        if self._lone_failures[request_id] >= LONE_FAILURES:
            self._failed_alone.remove(request_id)
            self.suspects = [s for s in self.suspects if s != request_id]
            self._confirmed = request_id
        return self._somebody_passed

    def _half_fails(self, hit: list[str]) -> bool:
        rest = [s for s in self.suspects if s not in hit]
        self.suspects = hit
        self._unjudged += rest
        if not self.passed and not self._nothing_passes:
            self._owed = tuple(rest)
        return not self._nothing_passes

    def doubt(self) -> None:
        """Take back lone failures: a batch failed without a request on trial, and the cause may have met them too."""
        self.suspects += [a for a in self._failed_suspects if a not in self.suspects]
        self._failed_alone, self._confirmed, self._is_well = [], None, False
        self._lone_failures.clear()

    def leaves(self) -> None:
        """Take the departure of the requests on trial, after steps without a fault."""
        self._is_well = self._somebody_passed = True

    # ---- meanwhile

    def clear(self, request_ids: Collection[str]) -> None:
        """Clear requests that ran beside the rest of the trial without a fault."""
        if self.trial is not None and self.trial.kind is not Kind.ALONE:
            self._pass(request_ids)

    def ran(self, request_ids: Collection[str]) -> None:
        """Clear requests that were well in the same step that failed for the rest."""
        if request_ids:
            self._pass(request_ids)
            self._is_well = self._somebody_passed = True

    def _pass(self, request_ids: Collection[str]) -> None:
        self.passed.update(request_ids)
        self.suspects = [s for s in self.suspects if s not in self.passed]
        self._unjudged = [u for u in self._unjudged if u not in self.passed]

    def keep(self, still_open: Collection[str]) -> None:
        """Forget requests that have left."""
        self.suspects = [s for s in self.suspects if s in still_open]
        self._unjudged = [u for u in self._unjudged if u in still_open]
        self._failed_alone = [f for f in self._failed_alone if f in still_open]
        self._confirmed = self._confirmed if self._confirmed in still_open else None
        self.passed &= set(still_open)
        self._passed_alone &= set(still_open)
        self._owed = tuple(o for o in self._owed if o in still_open)
