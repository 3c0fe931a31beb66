"""Measures the cost of a fault without Holdfast: the full restart of the same server, up to its first token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec

from holdfast.chaos.server import Server
from holdfast.chaos.streams import first_token_s


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a restart: ending the server, starting until healthy, first token."""

    stop_s: float
    start_s: float
    first_token_s: float

    @property
    def total_s(self) -> float:
        return self.stop_s + self.start_s + self.first_token_s


def measure_restart(server: Server, tick: Callable[[float], None] | None = None) -> tuple[Server, Restart]:
    """Restart a server on the same port and wait for a token; return the new server, which the caller ends."""
    begin_s = time.monotonic()
    server.stop()
    stopped_s = time.monotonic()
    restarted = Server(replace(server.spec, port=server.port)).start(tick)
    try:
        healthy_s = time.monotonic()
        token_s = asyncio.run(first_token_s(restarted.url))
    except BaseException:
        restarted.stop()
        raise
    restart = Restart(stop_s=stopped_s - begin_s, start_s=healthy_s - stopped_s, first_token_s=token_s - healthy_s)
    return restarted, restart
