"""The folder of stalls of a simulated instance: the shipped files in a temporary folder, with little in them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.core.stalls.stalls import Stall
from holdfast.sentinel import incident_files

Run = Any  # of the module `run`, which imports this one


class SmallStallFiles(incident_files.StallFiles):
    """Files of stalls without a look at the machine, which is no part of a simulation."""

    def _summary(self, stall: Stall, pids: Mapping[int, int]) -> dict[str, Any]:
        return {"pid": stall.pid}


class Evidence:
    """The evidence of all engine cores of a run. The newest stall stays, whatever the clock shows."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def keep(self, engine_id: int, stall: Stall, pids: Mapping[int, int]) -> None:
        """Keep the evidence of a stall."""
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="holdfast-simulated-")
        newest = SmallStallFiles(self._folder.name, self._folder.name, engine_id).keep(stall, pids)
        kept = list(Path(self._folder.name).glob("evidence/*/stall.json"))
        law = self._run.law
        law(newest is not None and (newest / "stall.json").exists(), "the newest stall is kept")
        law(len(kept) <= incident_files.MAX_STALLS, "a bounded number of stalls is kept")

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
