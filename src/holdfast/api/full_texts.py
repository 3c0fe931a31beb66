"""File for texts of exceptions as they are, which may quote requests: only where an operator asks for that.

Runs beside every decision, as all consumers of events do. Private to the server's user, and bounded in size.
"""

from __future__ import annotations

import os

import msgspec

from holdfast.core.errors import BadConfiguration
from holdfast.core.protocol.events import Event, FullText, InstanceView

MAX_FILE_BYTES = 1 << 20  # the file before is kept under the same name with an ending
_OLD = ".1"


class FullTextsFile:
    """Appends each full text once, as a line of JSON. Raises `BadConfiguration` for a path that cannot be written."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._written: tuple[FullText, ...] = ()
        try:
            self._append(b"")
        except OSError as error:
            raise BadConfiguration(
                f"cannot write full texts to {path}: {error.strerror}", hint="--full-texts-file names a file"
            ) from None

    def take(self, event: Event, view: InstanceView) -> None:
        """Write the texts of a view that were not written yet."""
        for text in view.full_texts:
            if text not in self._written:
                self._append(msgspec.json.encode(text) + b"\n")
        self._written = view.full_texts

    def _append(self, line: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(self._path, flags, 0o600)
        try:
            os.fchmod(file, 0o600)
            os.write(file, line)
            is_full = os.fstat(file).st_size > MAX_FILE_BYTES
        finally:
            os.close(file)
        if is_full:
            os.replace(self._path, self._path + _OLD)
