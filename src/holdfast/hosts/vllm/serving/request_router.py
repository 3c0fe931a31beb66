"""The open requests of a process that serves: where each of them is computed, and how it moves when that is gone.

On the event loop of the host's client, but for `follow`. A request that no engine can take waits here and goes on
when one can. What a lost engine core still says about a request that has left it is dropped: exactly once.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import zmq

from holdfast.core.poison.detector import words_of_blame
from holdfast.core.protocol.events import InstanceView
from holdfast.core.protocol.link_messages import RequestBlamed
from holdfast.core.protocol.messages import MAX_ID_CHARS
from holdfast.core.requests.journal import RequestJournal
from holdfast.core.requests.readmission import Readmission
from holdfast.core.states import EngineState
from holdfast.hosts.vllm.serving.error_reasons import idle_outputs_of, keep_error_reason
from holdfast.hosts.vllm.serving.lost_engines import LostEngines
from holdfast.hosts.vllm.serving.resumption import resumption, strip_history, unmovable

logger = logging.getLogger("holdfast")

Add = Callable[[Any, Any], Awaitable[None]]
_DEADLY = "every engine core that it is given to is lost"


class RequestRouter:
    """One for each client of the host's."""

    def __init__(self, client: Any, *, detects_poison: bool = False) -> None:
        self.open: RequestJournal[Any] = RequestJournal()
        self._readmission = Readmission() if detects_poison else None
        self.on_blamed: Callable[[RequestBlamed], None] = lambda blamed: None
        self._client = weakref.ref(client)
        self._add: Add | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._restarts: Counter[int] = Counter()  # how many losses of each engine were followed
        self._lost = LostEngines()
        self._held: dict[str, bool] = {}  # requests that are with no engine, oldest first: whether they were with one
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_listening = False  # whether somebody hears what successors say; one at a time may read
        self._view: InstanceView | None = None
        # Before a lost engine core's successor connects under the same identity.
        client.input_socket.setsockopt(zmq.ROUTER_HANDOVER, 1)

    def begin_with(self, restarts: Mapping[int, int]) -> None:
        """Serve for engine cores that were lost before, so many times each: that is no news here."""
        self._restarts.update(restarts)

    # ---- what the client does

    async def add(self, original: Add, client: Any, request: Any) -> None:
        self._add = original
        strip_history(request)
        self.open.open(request.request_id, request, unmovable(request))
        self._unpin(client, request)
        if not self._has_taker(client, request):
            self._held[request.request_id] = False
            return
        try:
            await original(client, request)
        except BaseException:
            self._forget([request.request_id])
            raise

    async def abort(self, original: Callable[..., Awaitable[None]], client: Any, request_ids: Sequence[str]) -> None:
        self._forget(request_ids)
        await original(client, request_ids)

    def _forget(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self._close(request_id)
            self._held.pop(request_id, None)

    def _close(self, request_id: str) -> None:
        self.open.close(request_id)
        if self._readmission is not None and self._readmission.closed(request_id):
            self._start(self._resume())

    def is_lost(self, engine: bytes) -> bool:
        return engine in self._lost

    def _unpin(self, client: Any, request: Any) -> None:
        """One that names an engine core in whose place there is none goes where there is one."""
        named = request.data_parallel_rank
        if named in range(len(client.core_engines)) and self._lost.is_left_out(client.core_engines[named]):
            request.data_parallel_rank = None

    def _has_taker(self, client: Any, request: Any) -> bool:
        if not self._lost:
            return True
        if not hasattr(client, "reqs_in_flight"):
            return client.core_engine not in self._lost
        if request.data_parallel_rank is not None:
            return client.core_engines[request.data_parallel_rank] not in self._lost
        return any(engine not in self._lost for engine in client.core_engines)

    async def call_utility(self, call: Callable[[], Awaitable[Any]], engine: bytes) -> Any:
        """A call to one engine core, which ends when that is lost. Raises `EngineLost`."""
        return await self._lost.call(call, engine)

    # ---- what the engine cores say

    def take(self, outputs: Any) -> Any:
        """Outputs of one engine core, without those of requests that have left it; they count as delivered."""
        client = self._client()
        if client is not None and outputs.utility_output is not None:
            return outputs if _is_awaited(client, outputs.utility_output) else type(outputs)()
        if client is None or not (outputs.outputs or outputs.finished_requests):
            return outputs
        engine = client.core_engines[outputs.engine_index - client.engine_ranks_managed[0]]
        if self._has_moved:
            outputs.outputs = [o for o in outputs.outputs if self._is_with(client, o.request_id, engine)]
            if outputs.finished_requests:
                outputs.finished_requests = {i for i in outputs.finished_requests if self._is_with(client, i, engine)}
        for output in outputs.outputs:
            self.open.deliver(output.request_id, output.new_token_ids)
            if self._readmission is not None and self._readmission.is_trying:
                self._note_progress(self._readmission, output.request_id)
            if output.finish_reason is not None:
                self._close(output.request_id)
                if str(output.finish_reason) == "error":
                    keep_error_reason(output.request_id, output.stop_reason)
        return outputs

    def _note_progress(self, readmission: Readmission, request_id: str) -> None:
        """Whoever waits for one that is on trial may go when that one gets on."""
        entry = self.open.get(request_id)
        if entry is not None and readmission.delivered(request_id, len(entry.delivered)):
            self._start(self._resume())

    @property
    def _has_moved(self) -> bool:
        return bool(self._restarts)

    def _is_with(self, client: Any, request_id: str, engine: bytes) -> bool:
        """Whether an engine is the one that computes a request; of one that is not open nobody cares."""
        return request_id not in self.open or self._engine_of(client, request_id) == engine

    def _engine_of(self, client: Any, request_id: str) -> bytes | None:
        if request_id in self._held:
            return None
        engine: bytes | None = (
            client.reqs_in_flight.get(request_id) if hasattr(client, "reqs_in_flight") else client.core_engine
        )
        return engine

    # ---- what the owner says

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop on which the client lives."""
        self._loop = loop
        if self._view is not None:
            loop.call_soon(self._follow)

    def follow(self, view: InstanceView) -> None:
        """A later view of the instance. Any thread; does not wait."""
        self._view = view
        if self._loop is not None and not self._loop.is_closed() and self._is_news(view):
            self._loop.call_soon_threadsafe(self._follow)

    def _is_news(self, view: InstanceView) -> bool:
        is_lost = (e.restarts > self._restarts[e.engine_id] or e.state is EngineState.LEFT_OUT for e in view.engines)
        return bool(self._lost) or any(is_lost)

    def _follow(self) -> None:
        client, view = self._client(), self._view
        if client is None or view is None or view.defeat is not None:
            return
        for engine in view.engines:
            identity = client.core_engines[engine.engine_id]
            if engine.restarts > self._restarts[engine.engine_id]:
                self._restarts[engine.engine_id] = engine.restarts
                self._lose(client, identity)
            elif engine.state is EngineState.LEFT_OUT and identity not in self._lost:
                self._lose(client, identity)
            self._lost.leave_out(identity, engine.state is EngineState.LEFT_OUT)
            if engine.state is EngineState.HEALTHY and self._lost.is_ready(identity):
                self._lost.returns(identity)
                logger.info("engine core %d takes requests of this process again", engine.engine_id)
        if self._held:
            self._start(self._resume())

    def _lose(self, client: Any, engine: bytes) -> None:
        """Nothing more is sent there; what was open there waits, for a moment or for its successor."""
        self._lost.lose(engine)
        leaving = [i for i in self.open if self._engine_of(client, i) == engine]
        self._held.update(dict.fromkeys(leaving, True))
        if hasattr(client, "reqs_in_flight"):
            for request_id in [i for i, at in client.reqs_in_flight.items() if at == engine]:
                del client.reqs_in_flight[request_id]
            client.engine_inflight[engine] = 0
        client.outputs_queue.put_nowait(idle_outputs_of(client, engine))
        logger.warning("engine core %d is lost: %d requests leave it", int.from_bytes(engine, "little"), len(leaving))
        self._blame(client, engine, leaving)
        if not self._is_listening:
            self._is_listening = True
            self._start(self._hear_ready(client.input_socket))

    def _blame(self, client: Any, engine: bytes, leaving: Sequence[str]) -> None:
        """One that kills every engine core that it is moved to ends, before it meets the next one."""
        if self._readmission is None:
            return
        there = {i: len(entry.delivered) for i in leaving if (entry := self.open.get(i)) is not None}
        if (culprit := self._readmission.lost(there)) is not None:
            engine_id = int.from_bytes(engine, "little")
            incident = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-engine{engine_id}-lost"
            keep_error_reason(culprit, words_of_blame(incident))
            self._fail(client, culprit, f"{_DEADLY} (incident {incident})")
            blamed = culprit[:MAX_ID_CHARS]
            self.on_blamed(RequestBlamed(engine_id=engine_id, request_id=blamed, incident=incident, reason=_DEADLY))

    async def _hear_ready(self, socket: Any) -> None:
        """A successor says that it is ready where requests are sent to it; nothing may be sent to it before."""
        try:
            while not self._lost.all_ready:
                identity, *said = await socket.recv_multipart()
                if len(said) == 1 and self._lost.says_ready(identity):  # more is a late answer to a greeting
                    self._follow()
        finally:
            self._is_listening = False

    async def _resume(self) -> None:
        """Send what waits to whoever can take it, oldest first."""
        client = self._client()
        if client is None or self._add is None:
            return
        for request_id in list(self._held):
            entry = self.open.get(request_id)
            if request_id not in self._held or entry is None:
                continue  # aborted meanwhile
            began = self._held[request_id]
            if began and entry.unmovable:
                self._fail(client, request_id, entry.unmovable)
                continue
            request = resumption(entry.request, entry.delivered) if began else entry.request
            self._unpin(client, request)
            if self._has_taker(client, request) and self._may_go(request_id):
                del self._held[request_id]
                await self._add_again(self._add, client, request)

    def _may_go(self, request_id: str) -> bool:
        return self._readmission is None or self._readmission.may_go(request_id)

    async def _add_again(self, add: Add, client: Any, request: Any) -> None:
        try:
            await add(client, request)
        except Exception as error:  # else its client would wait for ever, and those behind it
            self._fail(client, request.request_id, f"it could not be sent: {error}")

    def _fail(self, client: Any, request_id: str, why: str) -> None:
        """It ends alone, with an error."""
        from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

        logger.error("request %s was lost with its engine core and cannot go on: %s", request_id, why)
        self._forget([request_id])
        lost = EngineCoreOutput(request_id, [], finish_reason=FinishReason.ERROR)
        client.outputs_queue.put_nowait(EngineCoreOutputs(outputs=[lost]))

    def _start(self, work: Any) -> None:
        assert self._loop is not None
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("moving requests failed", exc_info=error)


def _is_awaited(client: Any, answer: Any) -> bool:
    """Whether this process asked, or nobody (ids below 0): what a dead one asked is answered to its successor."""
    return answer.call_id < 0 or answer.call_id in client.utility_results
