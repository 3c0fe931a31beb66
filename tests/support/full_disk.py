"""A small file system of its own that is full: of content, and of files."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIZE_BYTES = 8 << 20
_BLOCK = bytes(1 << 16)


def can_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0


@contextlib.contextmanager
def small_disk(at: Path, files: int = 400) -> Iterator[Path]:
    """Mount an empty file system of 8 MiB and a limited number of files."""
    options = f"size={SIZE_BYTES},nr_inodes={files},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(at)], check=True, timeout=30)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True, timeout=30)


def fill(disk: Path) -> None:
    """Leave no room for content and none for a further file."""
    with contextlib.suppress(OSError), (disk / "content").open("wb", buffering=0) as file:
        while True:
            file.write(_BLOCK)
    with contextlib.suppress(OSError):
        number = 0
        while True:
            (disk / f"file-{number}").touch()
            number += 1
