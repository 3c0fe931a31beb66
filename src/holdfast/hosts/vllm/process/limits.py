"""Limits of the system on a process, how far a server raises them, and a temporary folder with room."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import re
import resource
import tempfile

from holdfast.core.errors import WorldError
from holdfast.progress.places import PREFIX
from holdfast.progress.room import ELSEWHERE, look_for_room, shortages

logger = logging.getLogger("holdfast")

COMPILED = "TORCHINDUCTOR_CACHE_DIR"
WANTED_DESCRIPTORS = 65535  # as the host wants


def raise_descriptor_limit() -> None:
    """Raise the limit on open files as far as the system allows, to what the host wants. Children inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(WANTED_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def settle_temporary_folder() -> None:
    """Have compilers and other programs use a temporary folder with room, where the stated folder has none.

    Compiled code goes there too. Where such code cannot be run from there, the code compiled before is used, from where
    torch has put it.
    """
    if stated := os.environ.get("TMPDIR"):
        with contextlib.suppress(OSError, KeyError):  # no folder at all; a user without a name
            os.environ["TMPDIR"] = found = tempfile.gettempdir()
            if found == stated:
                return
            if os.statvfs(found).f_flag & os.ST_NOEXEC:
                user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
                os.environ.setdefault(COMPILED, f"{stated}/torchinductor_{user}")
            elif os.environ.get(COMPILED, "").startswith(f"{stated}/"):  # torch in a parent has set it
                del os.environ[COMPILED]


def warn_of_shortages(engines: int) -> None:
    """Log in one line what the system leaves too little of."""
    if found := list(shortages(look_for_room(tempfile.gettempdir()), engines)):
        logger.warning(
            "a repair may fail for lack of room, see `holdfast doctor`: %s", "; ".join(s.text for s in found)
        )


def make_instance_folder() -> str:
    """Make the instance's folder: only this user reaches the sockets. Raises `WorldError` without room for it."""
    try:
        return tempfile.mkdtemp(prefix=PREFIX)
    except OSError as error:
        raise WorldError(
            f"no folder can be made in {tempfile.gettempdir()}: {error.strerror}", hint=ELSEWHERE
        ) from None
