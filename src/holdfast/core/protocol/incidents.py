"""Incidents as they are published: `incident.json`, HTTP and the command line show these structs.

Schema: `docs/reference/incident.schema.json`. Fields are added, never renamed. Never holds prompts, tokens or texts of
exceptions as they are.
"""

from __future__ import annotations

import enum
import re

import msgspec

from holdfast.core.faults.faults import FaultClass
from holdfast.core.protocol.events import DecisionRecord, Event, EventKind
from holdfast.core.protocol.messages import RecoveryReport

SCHEMA_VERSION = 1
INCIDENT_ID = r"[0-9A-Za-z][0-9A-Za-z_-]{0,99}"
TAR_SUFFIX = ".tar"

_is_id = re.compile(INCIDENT_ID).fullmatch


class Outcome(enum.StrEnum):
    """How an incident ended."""

    OPEN = "open"
    REPAIRED = "repaired"
    LEFT_OUT = "left-out"  # siblings serve on without the engine core
    DEFEATED = "defeated"  # the instance has ended


class IncidentFault(msgspec.Struct, frozen=True, kw_only=True):
    """A fault of an incident. `stack`: file, line and function of each frame of the exception, outermost first."""

    at: float
    fault_class: FaultClass
    error_type: str
    message: str
    class_reason: str = ""
    engine_id: int
    rank: int | None = None
    phase: str | None = None
    step: int | None = None
    place: str = ""
    stack: tuple[str, ...] = ()


class IncidentDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided, and why: `reason` in words, `figures` as in the event."""

    at: float
    engine_id: int | None
    reason: str
    figures: DecisionRecord | None = None


class IncidentRecovery(msgspec.Struct, frozen=True, kw_only=True):
    """End of a recovery of an engine core. `report` is None where the process was replaced."""

    at: float
    engine_id: int
    interruption_s: float
    report: RecoveryReport | None = None


class TimelineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Event of the incident, by the sequence number in the event log."""

    sequence: int
    at: float
    kind: EventKind
    engine_id: int | None = None
    text: str = ""


class PhaseSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each phase, None for a phase that has not ended. The slowest engine core counts."""

    contain: float | None = None  # from the detection until every engine core was paused
    decide: float | None = None
    repair: float | None = None  # drain, rewind, replacements and rebuilt collectives
    restore: float | None = None


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """One incident, from the first fault until the lockstep group is healthy again.

    `engines` are the engine cores of the lockstep group, or none for a `process` beside the engine cores. `told_as`
    are the names by which clients of ended requests were told of the incident. `number` orders the incidents of a
    folder. `left_out` counts faults, decisions, recoveries and events that are too many to be kept.
    """

    schema_version: int = SCHEMA_VERSION
    incident_id: str
    number: int = 0
    instance_id: str
    instance: str = ""  # the name of the instance's folder while the server ran
    version: str = ""
    engines: tuple[int, ...] = ()
    process: str | None = None
    outcome: Outcome = Outcome.OPEN
    opened_at: float
    closed_at: float | None = None
    cause: str = ""
    action: str = ""  # the repair that ended the incident, or the last one so far
    interruption_s: float | None = None
    requests_rewound: int = 0
    requests_failed: int = 0
    tokens_recomputed: int = 0
    phases: PhaseSeconds = PhaseSeconds()
    next_step: str = ""
    told_as: tuple[str, ...] = ()
    faults: tuple[IncidentFault, ...] = ()
    decisions: tuple[IncidentDecision, ...] = ()
    recoveries: tuple[IncidentRecovery, ...] = ()
    timeline: tuple[TimelineEntry, ...] = ()
    left_out: int = 0


class IncidentSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Line of a list of incidents; fields as in `Incident`."""

    incident_id: str
    number: int = 0
    instance_id: str
    engines: tuple[int, ...] = ()
    process: str | None = None
    outcome: Outcome
    opened_at: float
    closed_at: float | None = None
    cause: str = ""
    action: str = ""
    interruption_s: float | None = None
    next_step: str = ""
    told_as: tuple[str, ...] = ()


class IncidentsPage(msgspec.Struct, frozen=True, kw_only=True):
    """The incidents of a folder, newest first."""

    incidents: tuple[IncidentSummary, ...]


class StoredIncident(msgspec.Struct, frozen=True, kw_only=True):
    """An incident with the names of the files of its folder."""

    incident: Incident
    files: tuple[str, ...] = ()


def is_incident_id(text: str) -> bool:
    """Return whether a text can be the id of an incident: such a text names no other folder."""
    return _is_id(text) is not None


def summary_of(incident: Incident) -> IncidentSummary:
    """Return the line of an incident in a list."""
    return IncidentSummary(**{name: getattr(incident, name) for name in IncidentSummary.__struct_fields__})


def entry_of(event: Event) -> TimelineEntry:
    """Return the entry of an event in the timeline of an incident."""
    text = event.fault.summary() if event.fault is not None else event.reason or ""
    return TimelineEntry(
        sequence=event.sequence, at=event.at, kind=event.kind, engine_id=event.engine_id, text=text[:MAX_TEXT_CHARS]
    )


MAX_TEXT_CHARS = 500
