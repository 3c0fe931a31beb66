"""Finds resources that grew during a chaos run. Pure.

A surviving process is compared with itself, unless the process has taken another role: a standby that became a worker
is a replacement. All processes are compared by their sum, which a replacement process changes a little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from holdfast.chaos.processes import SessionUsage

ALLOWED = {"files": 1.02, "threads": 1.02, "resident_bytes": 1.10, "shared_segments": 1.0}
# Normal fluctuation: a closing connection, a thread of a pool.
SLACK = {"files": 4, "threads": 2, "resident_bytes": 32 * 2**20, "shared_segments": 0}
# A replacement is no copy of its predecessor: a different process started it, later.
SLACK_OF_ALL = {"files": 16, "threads": 8, "resident_bytes": 256 * 2**20, "shared_segments": 2}

Usage = Mapping[int, SessionUsage]


def leaks(before: Usage, after: Usage) -> list[str]:
    """Describe every growth beyond the allowance."""
    survivors = [pid for pid in sorted(before.keys() & after.keys()) if before[pid].title == after[pid].title]
    found = [f"process {pid}: {what}" for pid in survivors for what in _grown(before[pid], after[pid], SLACK)]
    found += [f"all processes: {what}" for what in _grown(total(before), total(after), SLACK_OF_ALL)]
    if len(after) > len(before):
        found.append(f"{len(before)} processes before, {len(after)} after")
    return found


def _grown(was: SessionUsage, now: SessionUsage, slack: Mapping[str, int]) -> list[str]:
    pairs = ((name, getattr(was, name), getattr(now, name)) for name in ALLOWED)
    return [f"{name} grew from {old} to {new}" for name, old, new in pairs if new > old * ALLOWED[name] + slack[name]]


def total(usage: Usage) -> SessionUsage:
    """Return the sum over processes; a segment counts once for each process that maps it."""
    names = [field.name for field in fields(SessionUsage) if field.name != "title"]
    return SessionUsage(**{name: sum(getattr(one, name) for one in usage.values()) for name in names})
