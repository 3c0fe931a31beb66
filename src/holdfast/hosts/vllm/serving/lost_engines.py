"""The engine cores that are lost, as one process that serves knows them. On the event loop of the host's client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from holdfast.core.errors import PeerSilent


class EngineLost(PeerSilent):
    """A call to an engine core whose process is gone."""


class LostEngines:
    """By the identity under which requests are sent to them. One is back once its successor is let in."""

    def __init__(self) -> None:
        self._is_ready: dict[bytes, bool] = {}  # whether the next one said that it is
        self._losses: dict[bytes, asyncio.Future[None]] = {}
        self._left_out: set[bytes] = set()

    def __contains__(self, engine: object) -> bool:
        return engine in self._is_ready

    def __bool__(self) -> bool:
        return bool(self._is_ready)

    @property
    def all_ready(self) -> bool:
        return all(self._is_ready.values())

    def is_ready(self, engine: bytes) -> bool:
        return self._is_ready.get(engine, False)

    def is_left_out(self, engine: bytes) -> bool:
        """Whether nobody takes its place for now."""
        return engine in self._left_out

    def lose(self, engine: bytes) -> None:
        """Whoever waits for an answer of it waits no longer."""
        self._is_ready[engine] = False
        if not (loss := self._loss_of(engine)).done():
            loss.set_result(None)

    def leave_out(self, engine: bytes, left_out: bool) -> None:
        (self._left_out.add if left_out else self._left_out.discard)(engine)

    def says_ready(self, engine: bytes) -> bool:
        """Its successor says that it is ready; whether it is one that was lost."""
        if engine in self._is_ready:
            self._is_ready[engine] = True
        return engine in self._is_ready

    def returns(self, engine: bytes) -> None:
        del self._is_ready[engine]
        self._losses.pop(engine, None)

    async def call(self, call: Callable[[], Awaitable[Any]], engine: bytes) -> Any:
        """A call to one engine core, which ends when that is lost. Raises `EngineLost`."""
        loss = self._loss_of(engine)
        answer = asyncio.ensure_future(call())
        try:
            await asyncio.wait({answer, loss}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise EngineLost(f"engine core {int.from_bytes(engine, 'little')} is gone, and does not answer")
        finally:
            answer.cancel()

    def _loss_of(self, engine: bytes) -> asyncio.Future[None]:
        if engine not in self._losses:
            self._losses[engine] = asyncio.get_running_loop().create_future()
            if engine in self._is_ready:
                self._losses[engine].set_result(None)
        return self._losses[engine]
