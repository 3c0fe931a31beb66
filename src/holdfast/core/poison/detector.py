"""Poison detector of one engine core: finds the request that makes every batch fail that contains the request.

Pure: takes faults and steps, and answers with a `Restriction`. After a first fault every request runs again as before.
A second fault begins a search (`bisection`) when requests of the first failed batch have not got past their position at
that fault. A request is ended only after at least four failed batches in a row, two or more of them alone, when other
requests passed right before and right after each of those two.

A numerical fault names the requests whose rows of a step had non-finite logits (NaN or Inf); a request with finite rows
in the same step is not suspected. A rank that names different requests each time is faulty, and the requests are not.
KV of a named request is computed again, once, because the KV may have been damaged before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from holdfast.core.poison.bisection import COMPARED, Bisection, KeepApart, NeedsControl, Over, PoisonFound, Trial
from holdfast.core.poison.named import in_fault

# The first is nobody's, the second begins the search: they are tried again like any other.
FAULTS_BEFORE_SEARCH = 2
# A trial in which nobody has got any further for so many turns of the busy loop shows nothing.
IDLE_TURNS = 400
# A trial that fails by chance later than in so many steps is rare enough.
PASSING_TURNS = 3
# Batches that fail without anybody on trial in them, until what was found out is given up.
MAX_STRAYS = 2


class RequestProgress(NamedTuple):
    """Progress of an open request, in tokens: good KV, good KV and tokens in flight, and output.

    `on_trial`: the same request was found guilty before, and is tried again. `adapter_id`: 0 without an adapter.
    """

    good: int
    reached: int
    output: int
    on_trial: bool = False
    adapter_id: int = 0

    @property
    def in_flight(self) -> bool:
        return self.reached > self.good


ProgressOfRequests = Mapping[str, RequestProgress]


@dataclass(frozen=True)
class Restriction:
    """Rule for scheduling the open requests of an engine core.

    Only requests in `run` may be scheduled; when `run` is None, all but `excluded`. Requests in `end` are ended with an
    error, and so are those in `unloadable`, for which an adapter cannot be loaded. `watch`: the detector takes the
    progress before every step. `search_progressed`: the fault has left fewer suspects. `wants_control`: a control
    request has to be added, which can be compared with the suspect.
    """

    reason: str = ""
    run: frozenset[str] | None = None
    excluded: frozenset[str] = frozenset()
    end: tuple[str, ...] = ()
    unloadable: tuple[str, ...] = ()
    suspects: int = 0
    search_progressed: bool = False
    wants_control: bool = False

    @property
    def watch(self) -> bool:
        return self.run is not None or bool(self.excluded)


@dataclass(eq=False)
class PoisonDetector:
    """Detector of poison requests of an engine core. Used by the busy loop's thread."""

    _faults: int = 0  # failed batches in a row
    _marks: dict[str, int] = field(default_factory=dict)  # positions of the requests of the first of them
    _search: Bisection | None = None
    _bars: dict[str, int] = field(default_factory=dict)  # positions that requests on trial have to get past
    _draining: bool = False  # a request that is not on trial has a step in flight
    _idle_turns: int = 0
    _busy_turns: int = 0
    _progress: int = 0
    _strays: int = 0
    _apart: dict[str, frozenset[str]] = field(default_factory=dict)  # requests that wait until the others have left

    # ---- faults

    def fault(
        self, progress: ProgressOfRequests, named: Collection[str] = (), *, names_cause: bool = False
    ) -> Restriction:
        """Take a failed step; return the rule for the next steps.

        `named`: requests for which the step failed, if known; with `names_cause` they are ended when a retry has met
        the same. A step without requests in flight teaches nothing.
        """
        everybody = frozenset(i for i, s in progress.items() if s.in_flight)
        batch = in_fault(everybody, named)
        if guilty := tuple(i for i in progress if i in batch and progress[i].on_trial):
            return self._end_on_trial(guilty, progress)
        if names_cause and (guilty := tuple(i for i in progress if i in batch and self._is_stuck(i, progress))):
            found = "the error names the request, and a retry has met the same error"
            return self._end_guilty(guilty, guilty, found, progress)
        self._forget_left(progress)
        if not batch:
            return self._restriction(progress, "the failed step had no requests" if self._search else "")
        fine = everybody - batch
        search_progressed = (
            self._search_on(batch, progress, fine) if self._search else self._begin(batch, progress, fine)
        )
        return replace(self._next(_rewound(progress)), search_progressed=search_progressed)

    def _end_on_trial(self, guilty: tuple[str, ...], progress: ProgressOfRequests) -> Restriction:
        """End requests that were found guilty before; the failed step says nothing about the others."""
        found = "a request that was found to be a poison request before was in the failed step"
        return self._end_guilty(guilty, guilty, found, progress)

    def _end_guilty(
        self, end: tuple[str, ...], guilty: Collection[str], found: str, progress: ProgressOfRequests
    ) -> Restriction:
        """Go on without the guilty requests; the failed step says nothing about the others."""
        others = {i: s for i, s in progress.items() if i not in guilty}
        self._forget_left(others)
        restriction = self._next(_rewound(others)) if self._search else self._restriction(others, "")
        reason = "; ".join(filter(None, (found, restriction.reason)))
        return replace(restriction, reason=reason, end=(*end, *restriction.end), search_progressed=True)

    def adapter_fault(self, adapter_id: int, progress: ProgressOfRequests) -> Restriction | None:
        """Take a step that failed because an adapter cannot be loaded: end every request for the adapter.

        Return None when no request is for the adapter.
        """
        unloadable = tuple(i for i, s in progress.items() if s.adapter_id == adapter_id)
        if not unloadable:
            return None
        found = f"adapter {adapter_id} cannot be loaded; {len(unloadable)} requests are for it"
        return replace(self._end_guilty((), unloadable, found, progress), unloadable=unloadable)

    def renewed(self, *, by_ladder: bool) -> None:
        """Take the replacement of rank processes.

        `by_ladder`: not for this fault, but because retries did not last; then findings about old processes are
        dropped.
        """
        if by_ladder:  # what was found out was found out about processes that were not to be trusted
            self._drop()

    def _begin(self, batch: frozenset[str], progress: ProgressOfRequests, fine: frozenset[str] = frozenset()) -> bool:
        """Begin a search when requests of the last failed batch failed again before any progress.

        `fine` were well in the step that failed.
        """
        again = [i for i in batch if self._is_stuck(i, progress)]
        if not again:
            self._faults, self._marks = 1, {i: progress[i].reached for i in batch}
            return False
        self._faults += 1
        came = {i: place for place, i in enumerate(progress)}  # they stand in the order in which they came
        suspects = sorted(again, key=lambda i: (-progress[i].output, came[i]))
        self._search = Bisection(suspects, batch - set(again))
        self._search.ran(fine)
        return False

    def _is_stuck(self, request_id: str, progress: ProgressOfRequests) -> bool:
        """Return whether a request has not got past its position at the first of the faults."""
        return request_id in self._marks and progress[request_id].good <= self._marks[request_id]

    def _search_on(self, batch: frozenset[str], progress: ProgressOfRequests, fine: frozenset[str]) -> bool:
        assert self._search is not None
        search, trial = self._search, self._search.trial
        if trial is None or self._draining:
            return self._stray(search, batch, progress)
        passed = {i for i in trial.run & progress.keys() if progress[i].good > self._bars.get(i, 0)}
        search.clear(passed)
        search_progressed = search.fails(batch - passed)
        search.ran(fine)
        if search_progressed is None:
            return self._stray(search, batch, progress)
        self._faults += 1
        return search_progressed

    def _stray(self, search: Bisection, batch: frozenset[str], progress: ProgressOfRequests) -> bool:
        self._strays += 1
        search.doubt()
        if self._strays >= MAX_STRAYS:
            self._drop()
            return self._begin(batch, progress)
        return False

    # ---- steps

    def step(self, progress: ProgressOfRequests) -> Restriction | None:
        """Take the progress before a step. Return None when nothing changes. Called while the restriction watches."""
        self._forget_left(progress)
        search = self._search
        if search is None:
            return self._release_apart(progress)
        if search.trial is None:
            return self._await_control(progress)
        if self._draining:
            return self._drain(search.trial, progress)
        self._count_turn([progress[i] for i in search.trial.run if i in progress])
        if self._all_past(search.trial, progress):
            if any(i in progress for i in search.trial.probe):
                search.passes()
            elif self._busy_turns:
                search.leaves()
            return self._next(progress)
        return self._give_up(progress) if self._idle_turns >= IDLE_TURNS else None

    def _drain(self, trial: Trial, progress: ProgressOfRequests) -> Restriction | None:
        """Start the trial once steps of requests that are not on trial have ended."""
        if not _others_in_flight(trial, progress):
            return replace(self._start(trial, progress), reason="")  # that has been said
        self._count_turn(progress.values())
        return self._give_up(progress) if self._idle_turns >= IDLE_TURNS else None

    def _await_control(self, progress: ProgressOfRequests) -> Restriction | None:
        if self._outside(progress):
            return self._next(progress)
        self._idle_turns += 1
        return self._give_up(progress) if self._idle_turns >= IDLE_TURNS else None

    def _all_past(self, trial: Trial, progress: ProgressOfRequests) -> bool:
        """Return True when every request on trial has made progress in several steps, or has left."""
        there = [i for i in trial.run if i in progress]
        past = all(progress[i].good > self._bars.get(i, 0) for i in there)
        return not there or (past and self._busy_turns >= PASSING_TURNS)

    def _count_turn(self, on_trial: Collection[RequestProgress]) -> None:
        progress = sum(s.good for s in on_trial)
        moved = progress != self._progress
        self._busy_turns += moved
        self._idle_turns = 0 if moved else self._idle_turns + 1
        self._progress = progress

    def _give_up(self, progress: ProgressOfRequests) -> Restriction:
        self._drop()
        return self._restriction(progress, "requests on trial make no progress; search given up, all requests run")

    def _release_apart(self, progress: ProgressOfRequests) -> Restriction | None:
        """Release requests that were kept apart, once the conflicting requests have left."""
        free = [i for i, others in self._apart.items() if not others & progress.keys()]
        for request_id in free:
            del self._apart[request_id]
        return (
            self._restriction(
                progress, "a request that was kept apart runs again; the requests it fails beside have left"
            )
            if free
            else None
        )

    # ---- what follows

    def _next(self, progress: ProgressOfRequests) -> Restriction:
        """Follow the search to the next trial, through the findings on the way."""
        ended: list[str] = []
        found: list[str] = []
        while self._search is not None:
            step = self._search.next(self._outside(progress))
            if isinstance(step, Trial | NeedsControl):
                restriction = self._start(step, progress) if isinstance(step, Trial) else self._ask(progress)
                return replace(restriction, reason="; ".join((*found, restriction.reason)), end=tuple(ended))
            ended += [step.request_id] if isinstance(step, PoisonFound) else []
            found.append(self._take(step))
        return replace(self._restriction(progress, "; ".join(found)), end=tuple(ended))

    def _outside(self, progress: ProgressOfRequests) -> list[str]:
        """Return requests to compare suspects with: requests that waited, or came after the search began."""
        return [i for i in progress if i not in self._marks and i not in self._apart]

    def _take(self, found: PoisonFound | KeepApart | Over) -> str:
        """Take a finding of the search; return the finding in words."""
        match found:
            case PoisonFound():
                batches = f"the request was in {found.failed_batches} failed batches, the last alone"
                return f"{batches}; other requests passed in between"
            case KeepApart():
                self._apart[found.request_id] = found.others
                return "a request passes alone and fails beside others; it waits until those have left"
            case _:  # Over
                self._drop()
                return found.unclear or "no request is suspected any more"

    def _ask(self, progress: ProgressOfRequests) -> Restriction:
        self._idle_turns = 0
        reason = f"after {self._faults} failed batches in a row one suspect is left; comparing with a control request"
        return replace(self._restriction(progress, reason), run=frozenset(), wants_control=True)

    def _start(self, trial: Trial, progress: ProgressOfRequests) -> Restriction:
        self._draining = _others_in_flight(trial, progress)
        self._idle_turns = self._busy_turns = 0
        self._progress = sum(s.good for i, s in progress.items() if i in trial.run)
        self._bars = {i: max(s.reached, self._marks.get(i, 0)) for i, s in progress.items() if i in trial.run}
        assert self._search is not None
        on_trial = "others" if trial.kind in COMPARED else f"{len(trial.probe)} of {self._search.open} suspects"
        running = len(trial.run)
        reason = f"after {self._faults} failed batches in a row {on_trial} run on trial ({running} requests in all)"
        return self._restriction(progress, reason)

    def _restriction(self, progress: ProgressOfRequests, reason: str) -> Restriction:
        excluded = frozenset(i for i, others in self._apart.items() if others & progress.keys())
        trial = self._search.trial if self._search is not None else None
        suspects = self._search.open if self._search is not None else 0
        run = None if trial is None else (frozenset() if self._draining else trial.run)
        return Restriction(reason, run=run, excluded=excluded, suspects=suspects)

    def _drop(self) -> None:
        self._search, self._strays, self._marks = None, 0, {}

    def _forget_left(self, progress: ProgressOfRequests) -> None:
        self._marks = {i: mark for i, mark in self._marks.items() if i in progress}
        self._apart = {i: others & progress.keys() for i, others in self._apart.items() if i in progress}
        if self._search is not None:
            self._search.keep(progress.keys())


def _rewound(progress: ProgressOfRequests) -> ProgressOfRequests:
    """Return the progress with nothing in flight: every request has to get past tokens that were in flight."""
    return {i: RequestProgress(s.reached, s.reached, s.output) for i, s in progress.items()}


def _others_in_flight(trial: Trial, progress: ProgressOfRequests) -> bool:
    return any(s.in_flight and i not in trial.run for i, s in progress.items())
