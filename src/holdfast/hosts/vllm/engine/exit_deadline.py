"""An engine core that has failed for good is gone in bounded time, however long the host would take to end it.

Its requests go on elsewhere once its process is gone. What it leaves is removed by its owner; its workers follow it.
"""

from __future__ import annotations

import logging
import os
import threading

logger = logging.getLogger("holdfast")

LEAVE_WITHIN_S = 5.0  # the host tells its clients and ends the workers: a fraction of that where all is well
EXIT_FAILED = 1  # that of an exception


def leave_within(seconds: float = LEAVE_WITHIN_S) -> None:
    """End this process then, if it has not ended by itself. Does not wait."""
    threading.Thread(target=_leave, args=(seconds,), name="EngineCoreLeaves", daemon=True).start()


def _leave(seconds: float) -> None:
    threading.Event().wait(seconds)
    logger.error("this engine core has failed and did not end within %g s: it ends now", seconds)
    os._exit(EXIT_FAILED)
