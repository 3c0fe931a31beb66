"""Watch of the progress of processes, from a thread that runs while the processes are stuck.

An observation reads a little shared memory, and once from /proc, for each process. Never waits for a watched process.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from holdfast.core.stalls.stalls import Observation, Stall, StallDetector
from holdfast.core.stalls.step_deadlines import Limits
from holdfast.progress import ProgressReader, Seen, look_at, published
from holdfast.progress.activity import Activity

logger = logging.getLogger("holdfast")

PERIOD_S = 0.1
_UNREADABLE = "cannot read the progress of process %d; only a stopped process is detected: %s"
_CLOSER_S = 0.25  # a call that is older is looked at more closely


@dataclass(frozen=True)
class _Watched:
    reader: ProgressReader | None
    activity: Activity


class ProgressWatch:
    """Watch of some processes, each by a number; returns the stalls among them.

    With peers: every other process with a record in the folder is a lockstep peer, for which watched processes may
    wait.
    """

    def __init__(self, folder: str, limits: Limits | None = None, *, with_peers: bool = False) -> None:
        self._limits = limits or Limits()
        self.detector = StallDetector(self._limits)
        self._folder = folder
        self._with_peers = with_peers
        self._watched: dict[int, _Watched] = {}
        self._known_peers: set[int] = set()
        self._observed_at: float | None = None
        self._closer = False

    def is_due(self, now: float) -> bool:
        """Return True when the next observation is due."""
        return self._observed_at is None or now - self._observed_at >= PERIOD_S

    def observe(self, now: float, pids: Mapping[int, int]) -> list[Stall]:
        """Observe the processes; return the stalls among them."""
        elapsed_s = PERIOD_S if self._observed_at is None else now - self._observed_at
        self._observed_at = now
        peers = self._peers(pids.values())
        self._forget_others({*pids.values(), *peers})
        observations = {number: self._observe(pid, elapsed_s) for number, pid in pids.items()}
        observations |= {-pid: self._observe(pid, elapsed_s, is_peer=True) for pid in peers}  # no rank's number
        self._closer = any(now - c.began_at >= _CLOSER_S for seen in observations.values() for c in seen.running)
        return self.detector.observe(now, PERIOD_S, observations)

    def _peers(self, own: Collection[int]) -> set[int]:
        if self._with_peers:
            with contextlib.suppress(OSError):  # no descriptor is left to look with: unknown is not gone
                self._known_peers = published(self._folder) - {os.getpid()}
        return self._known_peers.difference(own)

    def _forget_others(self, pids: Collection[int]) -> None:
        self._watched = {pid: watched for pid, watched in self._watched.items() if pid in pids}

    def _observe(self, pid: int, elapsed_s: float, *, is_peer: bool = False) -> Observation:
        watched = self._watched.get(pid) or self._begin(pid)
        process = look_at(pid)
        seen = self._read(pid, watched)
        doing = watched.activity.look(process, elapsed_s, closer=self._closer)
        return Observation(pid, process.state, seen.running, seen.ended, doing.starved_s, doing.is_computing, is_peer)

    def _begin(self, pid: int) -> _Watched:
        activity = Activity(pid, with_children=self._limits.may_compile)
        try:
            watched = _Watched(ProgressReader.of(self._folder, pid), activity)
        except (OSError, ValueError) as error:
            watched = _Watched(None, activity)
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                return watched  # not kept: the record is looked for again once a descriptor is free
            logger.error(_UNREADABLE, pid, error)
        self._watched[pid] = watched
        return watched

    def _read(self, pid: int, watched: _Watched) -> Seen:
        """Read the record of a process; a record that makes no sense costs the others nothing."""
        try:
            return watched.reader.look() if watched.reader is not None else Seen()
        except Exception as error:
            logger.error(_UNREADABLE, pid, error)
            self._watched[pid] = _Watched(None, watched.activity)
            return Seen()
