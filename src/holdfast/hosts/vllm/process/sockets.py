"""Where the processes of an instance put the host's sockets: into the folder of the instance, which goes with it.

The host puts them into the temporary folder, and nobody takes them out: ZeroMQ leaves the file of a socket, and a
killed process everything. An operator who names another folder keeps it.
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
    """Whether the path of a socket in `folder` is short enough for the system."""
    return len(os.fsencode(folder)) + 1 + _NAME_CHARS <= _LONGEST_PATH


def empty_folder(runtime_dir: str, engine_id: int) -> str:
    """For the sockets of an engine core that takes another one's place: what that one left is gone."""
    folder = Path(runtime_dir) / f"e{engine_id}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return str(folder)


def remove_sockets(addresses: Iterable[str | None]) -> None:
    """Remove the files of sockets that nobody uses any more; addresses without one are passed over."""
    for address in addresses:
        if address is not None and address.startswith(_IPC):
            with contextlib.suppress(OSError):
                os.unlink(address.removeprefix(_IPC))
