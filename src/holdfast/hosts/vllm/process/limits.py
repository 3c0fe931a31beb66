"""Limits of the system on a process, and how far a server raises them."""

from __future__ import annotations

import contextlib
import resource

WANTED_DESCRIPTORS = 65535  # as the host wants


def raise_descriptor_limit() -> None:
    """Raise the limit on open files as far as the system allows, to what the host wants. Children inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(WANTED_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
