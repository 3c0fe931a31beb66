"""Two workers of one run take turns: tests with the mark `timed` run alone, the others beside each other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def folder() -> Path | None:
    """Return the folder of the run's locks; None when one process runs all tests."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    return None if run is None else Path(tempfile.gettempdir()) / f"holdfast-tests-{run}"


@contextlib.contextmanager
def turn(locks: Path | None, *, alone: bool) -> Iterator[None]:
    """Wait until no other worker runs a test, or with `alone` false, no test that must be alone.

    A worker that waits holds the gate: the other one cannot begin a further test before.
    """
    if locks is None:
        yield
        return
    locks.mkdir(exist_ok=True)
    with (locks / "gate").open("w") as gate, (locks / "floor").open("w") as floor:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(floor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(floor, fcntl.LOCK_UN)
