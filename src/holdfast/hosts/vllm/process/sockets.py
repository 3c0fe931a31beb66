"""Folder of the host's sockets: the instance's folder, or the reserve where that has no room; both are removed.

The host puts sockets into the temporary folder, where the files stay: ZeroMQ leaves the file of a socket behind, and a
killed process leaves all. A folder that the operator names is kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Iterable
from pathlib import Path

from holdfast.core.errors import WorldError
from holdfast.progress.places import places, ready_reserve

VARIABLE = "VLLM_RPC_BASE_PATH"  # the host's own
_NAME_CHARS = 36  # of a socket: the host draws a UUID
_LONGEST_PATH = 107  # `sun_path` of Linux, without its end
IPC = "ipc://"
_SOCKETS, _FILE_BYTES = 16, 1 << 16  # as many as an engine core with a few workers makes


def holds_sockets(folder: str) -> bool:
    """Return whether the path of a socket in `folder` is short enough for the system."""
    return len(os.fsencode(folder)) + 1 + _NAME_CHARS <= _LONGEST_PATH


def empty_folder(runtime_dir: str, engine_id: int) -> str:
    """Return an emptied folder for the sockets of a replacement engine core, in the reserve where there is no room.

    Raises:
        WorldError: no folder takes the files.
    """
    name, refused = f"e{engine_id}", ""
    for old in places(runtime_dir):
        shutil.rmtree(old / name, ignore_errors=True)
    for place in (Path(runtime_dir), ready_reserve(runtime_dir)):
        if place is None:
            continue
        folder = str(place / name)
        try:
            os.mkdir(folder, mode=0o700)
            try_out(folder, _SOCKETS, _FILE_BYTES)
        except OSError as error:
            refused = f"{folder}: {error.strerror}"
            continue
        return folder
    raise WorldError(f"no folder takes the sockets of engine core {engine_id}: {refused}")


def try_out(folder: str | Path, sockets: int, file_bytes: int = 0) -> None:
    """Make as many sockets, and a file where `file_bytes` is not 0, and remove all. Raises `OSError` where refused."""
    with contextlib.ExitStack() as made:
        for number in range(sockets):
            path = f"{folder}/try-{os.getpid()}-{threading.get_ident()}-{number}"
            with socket.socket(socket.AF_UNIX) as tried:
                tried.bind(path)
            made.callback(os.unlink, path)
        if file_bytes:
            path = f"{folder}/try-{os.getpid()}"
            made.callback(Path(path).unlink, missing_ok=True)
            Path(path).write_bytes(bytes(file_bytes))


def remove_sockets(addresses: Iterable[str | None]) -> None:
    """Remove the files of unused sockets; addresses without a file are skipped."""
    for address in addresses:
        if address is not None and address.startswith(IPC):
            with contextlib.suppress(OSError):
                os.unlink(address.removeprefix(IPC))
