"""A server's own temporary folder, and the files left in it after the server has ended."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STAYS = "torchinductor_"  # the cache of compiled code, which the next server uses


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder for the server's `TMPDIR`, with a short path as sockets require."""
    folder = Path(tempfile.mkdtemp(prefix="hf-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def left_in(folder: Path) -> list[str]:
    """Return the names of the files that should have been removed."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(_STAYS))
