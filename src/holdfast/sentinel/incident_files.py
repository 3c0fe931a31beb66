"""Evidence of stalls, taken before a process is killed: one folder per stall, which the incident takes over.

Never contains prompts, tokens, arguments or environments: only states, names of threads and kernel functions, sizes,
and Python stacks without values. Evidence never prevents a repair, and delays a repair by a bounded time only: a hung
folder, a full disk or a missing thread is logged and costs the evidence.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from holdfast.core.ports import Devices
from holdfast.core.stalls.stalls import Stall
from holdfast.progress.places import is_private_folder
from holdfast.progress.stacks import ask_for_stacks, forget_stacks
from holdfast.progress.surroundings import fields, look_around, read

logger = logging.getLogger("holdfast")

EVIDENCE = "evidence"  # folder of what no incident has taken over yet, beside the incidents
STALL = "stall.json"
STEP = "step.json"
FAILED_STEP = "failed-step"
MAX_STALLS = 32
MAX_THREADS = 256
EVIDENCE_BOUND_S = 1.5  # a stopped process is asked for its stacks in vain for a part of that
MAX_WRITERS = 4  # threads that write, or hang in the folder, in the whole process

_UNFINISHED = "unfinished-"
_writers = threading.BoundedSemaphore(MAX_WRITERS)


class StallFiles:
    """Writer of the stalls of an engine core. `runtime_dir`: folder in which processes answer for stacks."""

    def __init__(self, incident_dir: str, runtime_dir: str, engine_id: int) -> None:
        self._is_given = bool(incident_dir)
        self._folder = (Path(incident_dir).expanduser() if incident_dir else default_folder()) / EVIDENCE
        self._runtime_dir = runtime_dir
        self._engine_id = engine_id
        self.devices: Devices | None = None  # who is asked for their health

    def keep_within(
        self, stall: Stall, pids: Mapping[int, int], then: Callable[[], None], bound_s: float = EVIDENCE_BOUND_S
    ) -> None:
        """Write the evidence of a stall on a thread, and call `then` once: after that, or after `bound_s`.

        Does not wait. `then` runs on any thread, on the caller's when no thread can be started.
        """
        proceed = _once(then)
        if not _writers.acquire(blocking=False):
            logger.warning("the evidence of a stall is left out: the evidence of %d others hangs", MAX_WRITERS)
            proceed()
            return

        def write() -> None:
            try:
                self.keep(stall, pids)
            finally:
                _writers.release()
                proceed()

        try:
            limit = threading.Timer(bound_s, proceed)
            limit.daemon = True
            limit.start()
            writer = threading.Thread(target=write, name="StallFiles", daemon=True)
            writer.start()
        except RuntimeError as error:  # no thread is left
            logger.warning("the evidence of a stall is left out: %s", error)
            _writers.release()
            proceed()

    def keep_step(self, step: Mapping[str, Any]) -> None:
        """Write what a failed step was about, in numbers."""
        try:
            folder = self._new_folder(os.getpid(), FAILED_STEP)
            (folder / STEP).write_text(json.dumps(step, indent=2) + "\n")
            self._complete(folder)
        except Exception as error:
            logger.warning("cannot write the evidence of a failed step: %s", error)

    def keep(self, stall: Stall, pids: Mapping[int, int]) -> Path | None:
        """Write the state of a stalled process and of the peers; return the folder, None when writing failed."""
        try:
            return self._keep(stall, pids)
        except Exception as error:
            logger.warning("cannot write the evidence of a stall: %s", error)
            return None

    def _keep(self, stall: Stall, pids: Mapping[int, int]) -> Path:
        folder = self._new_folder(stall.pid, "stall")
        (folder / STALL).write_text(json.dumps(self._summary(stall, pids), indent=2) + "\n")
        ranks = {pid: rank for rank, pid in {**pids, stall.rank: stall.pid}.items()}
        for pid, stacks in ask_for_stacks(self._runtime_dir, ranks).items():
            (folder / f"stacks-{ranks[pid]}-{pid}.txt").write_text(stacks)
        forget_stacks(self._runtime_dir, stall.pid)
        return self._complete(folder)

    def _complete(self, folder: Path) -> Path:
        """Let an incident take the folder over."""
        complete = folder.with_name(folder.name.removeprefix(_UNFINISHED))
        folder.rename(complete)
        self._drop_oldest(spare=complete)
        return complete

    def _new_folder(self, pid: int, what: str) -> Path:
        """Make a folder for one piece of evidence.

        Other instances may share the parent, also from containers with equal ids.
        """
        if not self._is_given:
            make_private(self._folder.parent)
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        for number in range(1, MAX_STALLS):
            again = f"-{number}" if number > 1 else ""
            name = f"{os.path.basename(self._runtime_dir)}-engine{self._engine_id}-{what}-{stamp}-{pid}{again}"
            if not (self._folder / name).exists():
                with contextlib.suppress(FileExistsError):
                    folder = self._folder / (_UNFINISHED + name)
                    folder.mkdir(mode=0o700, parents=True)
                    return folder
        raise OSError(f"too many stalls at {stamp}")

    def _summary(self, stall: Stall, pids: Mapping[int, int]) -> dict[str, Any]:
        call, deadline = stall.call, stall.deadline
        return {
            "at": time.time(),
            "instance": os.path.basename(self._runtime_dir),
            "engine_id": self._engine_id,
            "rank": stall.rank,
            "pid": stall.pid,
            "reason": stall.reason,
            "phase": call.phase if call else None,
            "step": call.step if call else None,
            "tokens": call.shape.tokens if call else None,
            "requests": call.shape.requests if call else None,
            "age_s": round(stall.age_s, 3),
            "deadline_s": deadline.seconds if deadline else None,
            "deadline_source": deadline.source if deadline else None,
            **look_around(),
            "devices": self.devices.look() if self.devices is not None else [],
            "processes": {str(rank): _process(pid) for rank, pid in {**pids, stall.rank: stall.pid}.items()},
        }

    def _drop_oldest(self, spare: Path) -> None:
        """Remove the oldest stalls that no incident has taken over: their owner was lost, or counted them as none."""
        stalls = [p for p in self._folder.iterdir() if p != spare and any((p / f).is_file() for f in (STALL, STEP))]
        for old in sorted(stalls, key=lambda folder: folder.stat().st_mtime, reverse=True)[MAX_STALLS - 1 :]:
            shutil.rmtree(old, ignore_errors=True)


def _once(call: Callable[[], None]) -> Callable[[], None]:
    """Return a function that makes the call the first time only, on whichever thread comes first."""
    first = threading.Lock()

    def proceed() -> None:
        if first.acquire(blocking=False):
            call()

    return proceed


def make_private(folder: Path) -> None:
    """Make the parent of the default folder of incidents, where others could have made it. Raises `OSError`."""
    if folder.parent == fallback_folder():
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        if not is_private_folder(folder.parent):
            raise OSError(f"{folder.parent} belongs to another user, or others can read it")


def default_folder() -> Path:
    """Return the folder for incidents in the user's state directory (XDG_STATE_HOME).

    A user without a home directory, as in many containers, gets a folder below the temporary folder.
    """
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "holdfast" / "incidents"
    try:
        return Path.home() / ".local" / "state" / "holdfast" / "incidents"
    except RuntimeError:  # neither HOME nor an entry for the user
        return fallback_folder() / "incidents"


def fallback_folder() -> Path:
    """Return the current user's folder below the temporary folder, where every other user could have made it."""
    return Path(tempfile.gettempdir()) / f"holdfast-{os.getuid()}"


def _process(pid: int) -> dict[str, Any]:
    status = fields(Path(f"/proc/{pid}/status"), ("State", "VmRSS", "VmSwap", "Threads"))
    threads = sorted(_names(f"/proc/{pid}/task"), key=int)[:MAX_THREADS]
    return {"pid": pid, **status, "threads": [_thread(pid, thread) for thread in threads]}


def _thread(pid: int, thread: str) -> dict[str, str]:
    at = Path(f"/proc/{pid}/task/{thread}")
    state = fields(at / "status", ("State",)).get("State", "gone")
    kernel = read(at / "stack").strip() or read(at / "wchan").strip()  # the first for root only
    return {"id": thread, "name": read(at / "comm").strip(), "state": state, "kernel": kernel}


def _names(folder: str) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []
