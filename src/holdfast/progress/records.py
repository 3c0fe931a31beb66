"""Small JSON files that processes of an instance leave for each other. Reading a file never raises an error."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")

MAX_RECORD_BYTES = 1 << 20


def read_record(path: Path, kind: type[T]) -> T | None:
    """Return the content of a file; None for a file that cannot be read, or holds something else."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECORD_BYTES + 1)
        return msgspec.json.decode(data, type=kind) if len(data) <= MAX_RECORD_BYTES else None
    except (OSError, ValueError, RecursionError):  # `DecodeError` and `UnicodeDecodeError` are of `ValueError`
        return None
