"""Log of Holdfast: to the host's handlers, in the host's format."""

from __future__ import annotations

import logging


def share_log() -> None:
    """Give our logger the host's handlers and level. Idempotent."""
    host, ours = logging.getLogger("vllm"), logging.getLogger("holdfast")
    if host.handlers:
        ours.handlers = list(host.handlers)
        ours.setLevel(host.level)
        ours.propagate = False
