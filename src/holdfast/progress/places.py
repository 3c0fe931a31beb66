"""The reserve of an instance's folder: a second folder, in memory, where the temporary folder has no room left.

A repair makes sockets and small files. The shared memory that the host needs for every repair is in the same place, so
that a repair depends on one place only. The reserve has the name of the instance's folder.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

PREFIX = "holdfast-"  # of the folders of instances
MEMORY = Path("/dev/shm")


def reserve_of(folder: str) -> Path:
    """Return the path of the reserve, whether there is one or not."""
    return MEMORY / Path(folder).name


def has_reserve(folder: str) -> bool:
    """Return whether a folder may have a reserve: no other name is made in memory."""
    return Path(folder).name.startswith(PREFIX)


def ready_reserve(folder: str) -> Path | None:
    """Return the reserve of an instance's folder, made anew if missing; None without one.

    The system removes the reserve when the user logs out, where it is set up so.
    """
    reserve = reserve_of(folder)
    if not has_reserve(folder):
        return None
    with contextlib.suppress(OSError):
        reserve.mkdir(mode=0o700, exist_ok=True)
    return reserve if is_private_folder(reserve) else None


def places(folder: str) -> tuple[Path, ...]:
    """Return the folders that may hold files of an instance, the instance's folder first."""
    reserve = reserve_of(folder)
    return (Path(folder), reserve) if has_reserve(folder) and is_private_folder(reserve) else (Path(folder),)


def find(folder: str, name: str) -> Path:
    """Return the path of a file of the instance; the path in the instance's folder when the file is nowhere."""
    return next((path / name for path in places(folder) if os.path.lexists(path / name)), Path(folder) / name)


def make_in(folder: str, make: Callable[[Path], None]) -> None:
    """Call `make` with the instance's folder, and with the reserve where that fails.

    Raises:
        OSError: neither folder takes the file.
    """
    try:
        make(Path(folder))
    except OSError:
        if (reserve := ready_reserve(folder)) is None:
            raise
        make(reserve)


def is_private_folder(path: Path) -> bool:
    """Return whether only the current user can reach a folder; a link is no folder."""
    try:
        seen = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid() and not seen.st_mode & 0o077
