"""A temporary folder of a server's own, and what is left in it when the server has ended."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STAYS = "torchinductor_"  # the cache of compiled code, which the next server uses


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """For the server's `TMPDIR`. Short, as the paths of sockets have to be."""
    folder = Path(tempfile.mkdtemp(prefix="hf-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def left_in(folder: Path) -> list[str]:
    """The names of what is there and is not there to stay."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(_STAYS))
