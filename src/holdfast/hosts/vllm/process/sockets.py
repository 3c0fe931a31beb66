"""Folder of the host's sockets: the instance's folder, removed with the instance.

The host puts sockets into the temporary folder, where the files stay: ZeroMQ leaves the file of a socket behind, and a
killed process leaves all. A folder that the operator names is kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

VARIABLE = "VLLM_RPC_BASE_PATH"  # the host's own
_NAME_CHARS = 36  # of a socket: the host draws a UUID
_LONGEST_PATH = 107  # `sun_path` of Linux, without its end
_IPC = "ipc://"


def holds_sockets(folder: str) -> bool:
    """Return whether the path of a socket in `folder` is short enough for the system."""
    return len(os.fsencode(folder)) + 1 + _NAME_CHARS <= _LONGEST_PATH


def empty_folder(runtime_dir: str, engine_id: int) -> str:
    """Return an emptied folder for the sockets of a replacement engine core."""
    folder = Path(runtime_dir) / f"e{engine_id}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return str(folder)


def remove_sockets(addresses: Iterable[str | None]) -> None:
    """Remove the files of unused sockets; addresses without a file are skipped."""
    for address in addresses:
        if address is not None and address.startswith(_IPC):
            with contextlib.suppress(OSError):
                os.unlink(address.removeprefix(_IPC))
