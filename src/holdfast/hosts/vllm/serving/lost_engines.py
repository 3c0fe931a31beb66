"""Lost engine cores as a serving process knows them. On the event loop of the host's client."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from holdfast.core.errors import PeerSilent
from holdfast.core.protocol.events import InstanceView

logger = logging.getLogger("holdfast")


class EngineLost(PeerSilent):
    """A call to a lost engine core."""


class LostEngines:
    """Set of lost engine cores, by identity on the client's socket, until a replacement is admitted."""

    def __init__(self) -> None:
        self._is_ready: dict[bytes, bool] = {}  # whether the replacement has reported ready
        self._losses: dict[bytes, asyncio.Future[None]] = {}
        self._left_out: set[bytes] = set()
        self._returned = asyncio.Event()  # replaced by a new event as soon as any engine core is back, or left out

    def __contains__(self, engine: object) -> bool:
        return engine in self._is_ready

    def __bool__(self) -> bool:
        return bool(self._is_ready)

    @property
    def all_ready(self) -> bool:
        return all(self._is_ready.values())

    def is_ready(self, engine: bytes) -> bool:
        """Return whether the replacement of a lost engine core has reported ready."""
        return self._is_ready.get(engine, False)

    def is_left_out(self, engine: bytes) -> bool:
        """Return whether an engine core has no replacement for now."""
        return engine in self._left_out

    def lose(self, engine: bytes) -> None:
        """Add an engine core, and end the calls that wait for an answer."""
        self._is_ready[engine] = False
        if not (loss := self._loss_of(engine)).done():
            loss.set_result(None)

    def set_left_out(self, engine: bytes, left_out: bool) -> None:
        """Record whether an engine core is left out."""
        (self._left_out.add if left_out else self._left_out.discard)(engine)
        if left_out:
            self._tell_returned()

    def mark_ready(self, engine: bytes) -> bool:
        """Record that a replacement is ready, and return whether the engine core was lost."""
        if engine in self._is_ready:
            self._is_ready[engine] = True
        return engine in self._is_ready

    def readmit(self, engine: bytes) -> None:
        """Remove an engine core: the replacement serves."""
        del self._is_ready[engine]
        self._losses.pop(engine, None)
        self._tell_returned()

    def _tell_returned(self) -> None:
        self._returned.set()
        self._returned = asyncio.Event()

    async def await_return(self, engine: bytes, timeout_s: float) -> None:
        """Wait until an engine core serves, or its replacement does. Raises `EngineLost` for one that is left out."""
        name = f"engine core {int.from_bytes(engine, 'little')}"
        try:
            async with asyncio.timeout(timeout_s):
                while engine in self and engine not in self._left_out:
                    await self._returned.wait()
        except TimeoutError:
            raise EngineLost(f"{name} is lost and was not replaced within {timeout_s:g} s") from None
        if engine in self:
            raise EngineLost(f"{name} is lost and left out")

    async def call(self, call: Callable[[], Awaitable[Any]], engine: bytes) -> Any:
        """Call an engine core. Raises `EngineLost` when the engine core is lost meanwhile."""
        loss = self._loss_of(engine)
        answer = asyncio.ensure_future(call())
        try:
            await asyncio.wait({answer, loss}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise EngineLost(f"engine core {int.from_bytes(engine, 'little')} is lost and does not answer")
        finally:
            answer.cancel()

    async def call_when_back(
        self,
        call: Callable[[], Awaitable[Any]],
        engine: bytes,
        timeout_s: float,
        *,
        before: Callable[[], Awaitable[None]],
    ) -> Any:
        """Call an engine core to set state; while the engine core is lost, wait and call the replacement.

        `before` is awaited before each call.
        Raises `EngineLost` for one that is left out, or that is not replaced within `timeout_s`.
        """
        until = time.monotonic() + timeout_s
        while True:
            await self.await_return(engine, max(0.0, until - time.monotonic()))
            await before()
            try:
                return await self.call(call, engine)
            except EngineLost:
                logger.warning("a call that sets state met the loss of an engine core and waits for the replacement")

    def _loss_of(self, engine: bytes) -> asyncio.Future[None]:
        if engine not in self._losses:
            self._losses[engine] = asyncio.get_running_loop().create_future()
            if engine in self._is_ready:
                self._losses[engine].set_result(None)
        return self._losses[engine]


def error_output(request_id: str) -> Any:
    """Return the output with which a request that was lost with its engine core ends."""
    from vllm.v1.engine import EngineCoreOutput, FinishReason

    return EngineCoreOutput(request_id, [], finish_reason=FinishReason.ERROR)


def makes_progress(view: InstanceView, client: Any, engine: bytes) -> bool:
    """Return whether an engine core makes progress, as far as the view tells."""
    seen = view.engine(client.core_engines.index(engine))
    return seen is None or seen.state.makes_progress


def is_awaited(client: Any, answer: Any) -> bool:
    """Return whether the current process made the call, or the id is below 0 and names no caller.

    Calls of a dead API server are answered to the replacement.
    """
    return answer.call_id < 0 or answer.call_id in client.utility_results


def idle_outputs_of(client: Any, engine: bytes) -> Any:
    """Return the outputs with which a lost engine core's gauges go to zero: no request runs or waits."""
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.metrics.stats import SchedulerStats

    index = client.core_engines.index(engine) + client.engine_ranks_managed[0]
    return EngineCoreOutputs(engine_index=index, scheduler_stats=SchedulerStats())
