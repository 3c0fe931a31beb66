"""Memory of requests that were found guilty, so that their repetitions cost no further faults.

Holds fingerprints, never a prompt or a parameter. An entry is first refused, then on trial: its repetition runs beside
the others, and the first failed step ends it. Pure: time is an argument. The owner of the instance keeps the memory;
every API server follows it.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field

import msgspec

MAX_REMEMBERED = 64
SHOWN_CHARS = 8  # of a fingerprint, to people
ON_TRIAL_PERIODS = 5  # so many periods of refusal later an entry is forgotten
MAX_PERIODS = 16  # each time that an entry is found guilty again, the refusal is twice as long, up to this


class GuiltKind(enum.StrEnum):
    """Kind of a guilty party: one request, or an adapter with all of its requests."""

    REQUEST = "request"
    ADAPTER = "adapter"


class FoundGuilty(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict of an engine core or API server. `output_tokens`: delivered before the request was ended."""

    fingerprint: str
    kind: GuiltKind
    incident: str
    error: str
    output_tokens: int = 0


class Remembered(FoundGuilty, frozen=True, kw_only=True):
    """An entry of the memory. `until`: end of the refusal, or of the trial, in wall-clock seconds."""

    is_refused: bool = True
    refusals: int = 0
    until: float = 0.0


class PoisonMemoryView(msgspec.Struct, frozen=True, kw_only=True):
    """The memory for API servers. `key` is secret: with the key, a prompt could be guessed from a fingerprint."""

    key: bytes = b""
    entries: tuple[Remembered, ...] = ()

    def __repr__(self) -> str:
        return f"PoisonMemoryView({len(self.entries)} entries)"


# ---- the texts in which a verdict reaches the client

_REQUEST = "this request makes the server fail and was ended"
_ADAPTER = "the adapter of this request cannot be loaded, and the request was ended"
_VERDICT = re.compile(rf"({_REQUEST}|{_ADAPTER}) \(incident ([0-9A-Za-z-]{{1,80}})\)")


def poison_request_error(incident: str) -> str:
    """Return the error text for the client of a poison request."""
    return f"{_REQUEST} (incident {incident})"


def adapter_error(incident: str) -> str:
    """Return the error text for the client of a request whose adapter cannot be loaded."""
    return f"{_ADAPTER} (incident {incident})"


def verdict_in(error: object) -> tuple[GuiltKind, str] | None:
    """Return kind and incident of an error text that is a verdict; None for any other error."""
    found = _VERDICT.fullmatch(error) if isinstance(error, str) else None
    if found is None:
        return None
    return (GuiltKind.REQUEST if found[1] == _REQUEST else GuiltKind.ADAPTER), found[2]


# ---- the memory


@dataclass
class _Entry:
    guilty: FoundGuilty
    period_s: float
    ends_at: float
    until: float  # the same moment on the wall clock
    is_refused: bool = True
    refusals: int = 0


@dataclass
class PoisonMemory:
    """Memory of an instance, bounded: the entry that was found guilty longest ago makes room."""

    key: bytes = b""
    _entries: dict[str, _Entry] = field(default_factory=dict)

    def remember(self, guilty: FoundGuilty, period_s: float, now: float, wall_now: float) -> bool:
        """Refuse what was found guilty from now on. Return False for a repeated report of a known verdict.

        After another verdict the refusal is twice as long as the last time.
        """
        known = self._entries.get(guilty.fingerprint)
        if known is not None and (known.is_refused or known.guilty.incident == guilty.incident):
            return False
        period_s = period_s if known is None else min(known.period_s * 2, period_s * MAX_PERIODS)
        self._entries.pop(guilty.fingerprint, None)
        while len(self._entries) >= MAX_REMEMBERED:
            del self._entries[next(iter(self._entries))]
        refusals = 0 if known is None else known.refusals
        self._entries[guilty.fingerprint] = _Entry(
            guilty, period_s, now + period_s, wall_now + period_s, refusals=refusals
        )
        return True

    def count_refusals(self, fingerprint: str, count: int) -> int | None:
        """Add refusals of an entry, and return how many there are now; None for an unknown entry."""
        entry = self._entries.get(fingerprint)
        if entry is None:
            return None
        entry.refusals += count
        return entry.refusals

    def try_again(self, now: float, wall_now: float) -> list[FoundGuilty]:
        """Put every refused entry on trial, because the cause may have gone. Return these entries."""
        lifted = [entry for entry in self._entries.values() if entry.is_refused]
        for entry in lifted:
            _put_on_trial(entry, now, wall_now)
        return [entry.guilty for entry in lifted]

    def forget_all(self) -> list[FoundGuilty]:
        """Forget everything, and return what was forgotten."""
        forgotten = [entry.guilty for entry in self._entries.values()]
        self._entries.clear()
        return forgotten

    def expire(self, now: float, wall_now: float) -> list[tuple[FoundGuilty, bool]]:
        """End what is over; return each entry concerned, and whether the entry is on trial now and not forgotten."""
        over = [entry for entry in self._entries.values() if now >= entry.ends_at]
        for entry in over:
            if entry.is_refused and entry.guilty.kind is GuiltKind.REQUEST:
                _put_on_trial(entry, now, wall_now)
            else:  # a step that cannot load an adapter names the adapter: no trial is needed
                del self._entries[entry.guilty.fingerprint]
        return [(entry.guilty, entry.guilty.fingerprint in self._entries) for entry in over]

    def view(self) -> PoisonMemoryView:
        """Return the memory for API servers and the status."""
        entries = (
            Remembered(
                **msgspec.structs.asdict(entry.guilty),
                is_refused=entry.is_refused,
                refusals=entry.refusals,
                until=entry.until,
            )
            for entry in self._entries.values()
        )
        return PoisonMemoryView(key=self.key, entries=tuple(entries))


def _put_on_trial(entry: _Entry, now: float, wall_now: float) -> None:
    left_s = ON_TRIAL_PERIODS * entry.period_s
    entry.is_refused, entry.ends_at, entry.until = False, now + left_s, wall_now + left_s
