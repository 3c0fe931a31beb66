"""Limits of the system on a process, how far a server raises them, and a temporary folder with room."""

from __future__ import annotations

import contextlib
import os
import resource
import tempfile

WANTED_DESCRIPTORS = 65535  # as the host wants


def raise_descriptor_limit() -> None:
    """Raise the limit on open files as far as the system allows, to what the host wants. Children inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(WANTED_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def settle_temporary_folder() -> None:
    """Have compilers and other programs use a temporary folder with room, where the stated folder has none."""
    if "TMPDIR" in os.environ:
        with contextlib.suppress(OSError):
            os.environ["TMPDIR"] = tempfile.gettempdir()
