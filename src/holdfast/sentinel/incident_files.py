"""Evidence of stalls, written before a process is killed: one folder per incident, bounded in number and size.

Never contains prompts, tokens, arguments or environments: only states, names of threads and kernel functions, sizes,
and Python stacks without values. Evidence never delays a repair: a failure here is logged and ignored.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.core.ports import Devices
from holdfast.core.stalls.stalls import Stall
from holdfast.progress.stacks import ask_for_stacks, forget_stacks
from holdfast.progress.surroundings import fields, look_around, read

logger = logging.getLogger("holdfast")

MAX_INCIDENTS = 32
MAX_THREADS = 256


class IncidentFiles:
    """Writer of the incidents of an engine core. `runtime_dir`: folder in which processes answer for stacks."""

    def __init__(self, incident_dir: str, runtime_dir: str, engine_id: int) -> None:
        self._folder = Path(incident_dir) if incident_dir else default_folder()
        self._runtime_dir = runtime_dir
        self._engine_id = engine_id
        self.devices: Devices | None = None  # who is asked for their health

    def keep(self, stall: Stall, pids: Mapping[int, int]) -> Path | None:
        """Write the state of a stalled process and of the peers; return the folder, None when writing failed."""
        try:
            return self._keep(stall, pids)
        except OSError as error:
            logger.warning("cannot write the evidence of a stall: %s", error)
            return None

    def _keep(self, stall: Stall, pids: Mapping[int, int]) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        folder = self._folder / f"{stamp}-engine{self._engine_id}-{stall.pid}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        summary = self._summary(stall, pids)
        (folder / "incident.json").write_text(json.dumps(summary, indent=2) + "\n")
        ranks = {pid: rank for rank, pid in {**pids, stall.rank: stall.pid}.items()}
        for pid, stacks in ask_for_stacks(self._runtime_dir, ranks).items():
            (folder / f"stacks-{ranks[pid]}-{pid}.txt").write_text(stacks)
        forget_stacks(self._runtime_dir, stall.pid)
        self._drop_oldest()
        return folder

    def _summary(self, stall: Stall, pids: Mapping[int, int]) -> dict[str, Any]:
        call, deadline = stall.call, stall.deadline
        return {
            "at": time.time(),
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

    def _drop_oldest(self) -> None:
        kept = sorted((p for p in self._folder.iterdir() if (p / "incident.json").is_file()), reverse=True)
        for old in kept[MAX_INCIDENTS:]:
            shutil.rmtree(old, ignore_errors=True)


def default_folder() -> Path:
    """Return the folder for incidents in the user's state directory (XDG_STATE_HOME)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "holdfast" / "incidents"


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
