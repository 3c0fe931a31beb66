"""Router of the open requests of a serving process: which engine core runs each request, and moves after a loss.

Runs on the event loop of the host's client, except `follow`. A request without an engine core waits here until an
engine core can take it. Late outputs of a lost engine core for a moved request are dropped: exactly once.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import zmq

from holdfast.core.faults.redaction import account_of
from holdfast.core.poison.memory import poison_request_error
from holdfast.core.protocol.events import InstanceView
from holdfast.core.protocol.link_messages import PoisonRequestEnded
from holdfast.core.requests.journal import RequestJournal
from holdfast.core.requests.readmission import Readmission
from holdfast.core.states import EngineState
from holdfast.hosts.vllm.serving.balancing import choose_engine_core, engine_of, has_taker, unpin
from holdfast.hosts.vllm.serving.error_reasons import keep_error_reason, poison_report
from holdfast.hosts.vllm.serving.guilty_requests import GuiltyRequests
from holdfast.hosts.vllm.serving.kept_inputs import open_in
from holdfast.hosts.vllm.serving.lost_engines import LostEngines, error_output, idle_outputs_of, is_awaited
from holdfast.hosts.vllm.serving.resumption import is_on_trial, resumption, strip_private_keys
from holdfast.hosts.vllm.serving.stream_watch import StreamWatch
from holdfast.hosts.vllm.serving.streaming_sessions import StreamingSessions

logger = logging.getLogger("holdfast")

Add = Callable[[Any, Any], Awaitable[None]]
_POISON = "every engine core that runs this request is lost"


class RequestRouter:
    """Router of the requests of a client of the host.

    Args:
        detects_poison: end a request that kills every engine core.
        state_call_timeout_s: how long a call that sets state waits for the replacement of a lost engine core.
        max_input_bytes: of the multimodal inputs that the journal keeps.
    """

    def __init__(
        self,
        client: Any,
        *,
        detects_poison: bool = False,
        state_call_timeout_s: float = 600.0,
        max_input_bytes: float = float("inf"),
    ) -> None:
        self.journal: RequestJournal[Any] = RequestJournal(max_input_bytes)
        self._sessions = StreamingSessions(self.journal)
        self._readmission = Readmission() if detects_poison else None
        self.on_poison: Callable[[PoisonRequestEnded], None] = lambda blamed: None
        self._state_call_timeout_s = state_call_timeout_s
        self.guilty = GuiltyRequests()
        self.watch = StreamWatch()
        self._client = weakref.ref(client)
        self._add: Add | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._restarts: Counter[int] = Counter()  # losses of each engine core that were handled
        self._lost = LostEngines()
        self._waiting: dict[str, bool] = {}  # requests without an engine core, oldest first: whether they had started
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_listening = False  # whether a task reads the input socket, which is not for two
        self._view: InstanceView | None = None
        # Before the replacement of an engine core connects under the same identity.
        client.input_socket.setsockopt(zmq.ROUTER_HANDOVER, 1)

    def assume_restarts(self, restarts: Mapping[int, int]) -> None:
        """Treat `restarts` losses of each engine core, by engine id, as handled before."""
        self._restarts.update(restarts)

    # ---- calls of the client

    async def add(self, original: Add, client: Any, request: Any) -> None:
        """Record a new request, and send the request or let the request wait."""
        self._add = original
        strip_private_keys(request)
        if request.request_id in self._sessions:
            await self._add_input(original, client, request)
            return
        if refused := self.guilty.admit(request):
            self._sessions.open(request)  # further inputs are refused as well
            self._refuse(client, request.request_id, refused)
            return
        unpin(client, request, self._lost)
        is_sent = has_taker(client, request, self._lost)
        open_in(self.journal, self._sessions.open(request), is_sent=is_sent)
        if not is_sent:
            self._waiting[request.request_id] = False
            return
        try:
            await original(client, request)
        except BaseException:
            self._forget([request.request_id])
            raise

    async def _add_input(self, original: Add, client: Any, request: Any) -> None:
        """Take a further input of a streaming session, or the message that ends the session."""
        request_id = request.request_id
        is_known = request_id in self.journal and request_id not in self._waiting  # to an engine core
        if self._sessions.take(request):
            self._forget([request_id])
        elif not is_known:
            self._start(self._resume())
        elif self._sessions.send_later(request):
            return
        if is_known:
            await original(client, request)

    async def abort(self, original: Callable[..., Awaitable[None]], client: Any, request_ids: Sequence[str]) -> None:
        """Forget aborted requests, and abort them in the engine cores."""
        self._forget(request_ids)
        self._sessions.abort(request_ids)
        await original(client, request_ids)

    def _forget(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self._close(request_id)
            self._waiting.pop(request_id, None)

    def _close(self, request_id: str) -> None:
        self.journal.close(request_id)
        self.watch.closed(request_id)
        self._sessions.close(request_id)
        self._clear(request_id)

    def _clear(self, request_id: str) -> None:
        if self._readmission is not None and self._readmission.closed(request_id):
            self._start(self._resume())

    def is_lost(self, engine: bytes) -> bool:
        """Return whether an engine core is lost and has no admitted replacement."""
        return engine in self._lost

    def route(self, choose: Callable[[Any], bytes], client: Any, request: Any, view: InstanceView) -> bytes:
        """Return the identity of the engine core for `request`, and correct the client's counts."""
        return choose_engine_core(choose, client, request, view, self.is_lost)

    async def call_utility(self, call: Callable[[], Awaitable[Any]], engine: bytes) -> Any:
        """Call an engine core. Raises `EngineLost` when the engine core is lost meanwhile."""
        return await self._lost.call(call, engine)

    async def set_state(self, call: Callable[[], Awaitable[Any]], engine: bytes) -> Any:
        """Call an engine core to set state, or its replacement. Raises `EngineLost` without one in time."""
        # What was asked before the call reaches the replacement before the call.
        return await self._lost.call_when_back(call, engine, self._state_call_timeout_s, before=self._resume)

    # ---- outputs

    def deliver(self, outputs: Any) -> Any:
        """Record the outputs of an engine core as delivered, and drop outputs of moved requests."""
        client = self._client()
        if client is not None and outputs.utility_output is not None:
            return outputs if is_awaited(client, outputs.utility_output) else type(outputs)()
        if client is None or not (outputs.outputs or outputs.finished_requests):
            return outputs
        engine = client.core_engines[engine_id := outputs.engine_index - client.engine_ranks_managed[0]]
        if self._restarts:  # requests may have moved
            outputs.outputs = [o for o in outputs.outputs if self._is_with(client, o.request_id, engine)]
            if outputs.finished_requests:
                outputs.finished_requests = {i for i in outputs.finished_requests if self._is_with(client, i, engine)}
        self.watch.delivered(outputs.outputs, engine_id)
        for output in tuple(outputs.outputs):
            if output.finish_reason is not None and str(output.finish_reason) == "error":
                self._take_error(client, output.request_id, output.stop_reason)
            self.journal.deliver(output.request_id, output.new_token_ids)
            if self._readmission is not None and self._readmission.is_trying:
                self._note_progress(self._readmission, output.request_id)
            if output.finish_reason is not None:
                outputs.outputs += self._sessions.fail(output)
                (self._close if self._sessions.ends(output) else self._clear)(output.request_id)
        return outputs

    def _take_error(self, client: Any, request_id: str, why: object) -> None:
        """Keep the reason of an error for the client; after a verdict, end the open copies of the request too."""
        keep_error_reason(request_id, why)
        entry = self.journal.get(request_id)
        if entry is not None and self.guilty.judge(entry.request, why, len(entry.delivered)) is not None:
            self._start(self._end_copies(client, request_id))

    async def _end_copies(self, client: Any, judged: str = "") -> None:
        """End open requests that are refused by now: each would cost further faults."""
        copies = self.guilty.copies(self.journal, judged)
        for request_id, known in copies:
            self._refuse(client, request_id, self.guilty.refuse(known))
        if copies:
            await client.abort_requests_async([request_id for request_id, _ in copies])

    def _refuse(self, client: Any, request_id: str, why: str) -> None:
        """End a request with the error with which the same request was ended before."""
        keep_error_reason(request_id, why)
        self._end(client, request_id)

    def _note_progress(self, readmission: Readmission, request_id: str) -> None:
        if request_id in self.journal and readmission.delivered(request_id, self._sessions.progress(request_id)):
            self._start(self._resume())

    def _is_with(self, client: Any, request_id: str, engine: bytes) -> bool:
        """Return whether an engine core runs a request, or the request is not open."""
        return request_id not in self.journal or self._engine_of(client, request_id) == engine

    def _requests_of(self, client: Any, engine: bytes) -> list[str]:
        return [i for i in self.journal if self._engine_of(client, i) == engine]

    def _engine_of(self, client: Any, request_id: str) -> bytes | None:
        return None if request_id in self._waiting else engine_of(client, request_id)

    # ---- the instance

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the event loop of the client."""
        self._loop = loop
        if self._view is not None:
            loop.call_soon(self._follow)

    def follow(self, view: InstanceView) -> None:
        """Take a later view of the instance. Any thread; does not wait."""
        self._view = view
        has_new_guilt = self.guilty.follow(view)
        if self._loop is not None and not self._loop.is_closed() and (has_new_guilt or self._is_news(view)):
            self._loop.call_soon_threadsafe(self._follow)

    def _is_news(self, view: InstanceView) -> bool:
        is_lost = (e.restarts > self._restarts[e.engine_id] or e.state is EngineState.LEFT_OUT for e in view.engines)
        return bool(self._lost) or any(is_lost) or self.watch.is_news(view)

    def _follow(self) -> None:
        client, view = self._client(), self._view
        if client is None or view is None or view.defeat is not None:
            return
        self.watch.follow(view, lambda i: self._requests_of(client, client.core_engines[i]))
        for engine in view.engines:
            identity = client.core_engines[engine.engine_id]
            if engine.restarts > self._restarts[engine.engine_id]:
                self._restarts[engine.engine_id] = engine.restarts
                self._lose(client, identity)
            elif engine.state is EngineState.LEFT_OUT and identity not in self._lost:
                self._lose(client, identity)
            self._lost.set_left_out(identity, engine.state is EngineState.LEFT_OUT)
            if engine.state is EngineState.HEALTHY and self._lost.is_ready(identity):
                self._lost.readmit(identity)
                logger.info("engine core %d takes requests of this API server again", engine.engine_id)
        if self._waiting:
            self._start(self._resume())
        if view.guilt.entries and len(self.journal):
            self._start(self._end_copies(client))

    def _lose(self, client: Any, engine: bytes) -> None:
        """Send nothing more to an engine core; let the open requests wait for a sibling or the replacement."""
        self._lost.lose(engine)
        leaving = self._requests_of(client, engine)
        self._waiting.update(dict.fromkeys(leaving, True))
        self._sessions.stop_sending(leaving)
        if hasattr(client, "reqs_in_flight"):
            for request_id in [i for i, at in client.reqs_in_flight.items() if at == engine]:
                del client.reqs_in_flight[request_id]
            client.engine_inflight[engine] = 0
        client.outputs_queue.put_nowait(idle_outputs_of(client, engine))
        logger.warning("engine core %d is lost; moving %d requests", int.from_bytes(engine, "little"), len(leaving))
        self._judge_poison(client, engine, leaving)
        if not self._is_listening:
            self._is_listening = True
            self._start(self._await_replacements(client.input_socket))

    def _judge_poison(self, client: Any, engine: bytes, leaving: Sequence[str]) -> None:
        """End a request that kills every engine core, before the request reaches the next engine core."""
        if self._readmission is None:
            return
        there = {i: self._sessions.progress(i) for i in leaving if not self._sessions.is_parked(i)}
        poison = self._readmission.lost(there)
        on_trial = (i for i in there if (entry := self.journal.get(i)) is not None and is_on_trial(entry.request))
        if (poison := next(on_trial, poison)) is not None:
            blamed = poison_report(engine, poison, _POISON)
            self._take_error(client, poison, poison_request_error(blamed.incident))
            self._fail(client, poison, f"{_POISON} (incident {blamed.incident})")
            self.on_poison(blamed)

    async def _await_replacements(self, socket: Any) -> None:
        """Read when replacements are ready, from the socket that requests are sent to; none is sent before."""
        try:
            while not self._lost.all_ready:
                identity, *said = await socket.recv_multipart()
                if len(said) == 1 and self._lost.mark_ready(identity):  # a late answer to a greeting is longer
                    self._follow()
        finally:
            self._is_listening = False

    async def _resume(self) -> None:
        """Send waiting requests to engine cores that can take them, oldest first."""
        client = self._client()
        if client is None or self._add is None:
            return
        for request_id in list(self._waiting):
            entry = self.journal.get(request_id)
            if request_id not in self._waiting or entry is None or self._sessions.is_parked(request_id):
                continue  # aborted or sent meanwhile; or a session that needs no engine core before its next input
            had_started = self._waiting[request_id]
            if had_started and entry.unmovable:
                keep_error_reason(request_id, f"the engine core of this request was lost, and {entry.unmovable}")
                self._fail(client, request_id, entry.unmovable)
                continue
            drawn = self._sessions.drawn(request_id)
            request = resumption(entry.request, entry.delivered, drawn) if had_started else entry.request
            unpin(client, request, self._lost)
            if not has_taker(client, request, self._lost):
                continue
            if self._readmission is None or self._readmission.may_go(request_id):
                del self._waiting[request_id]
                self.watch.sent(entry, again=had_started)
                for part in self._sessions.sending(request):
                    await self._add_again(self._add, client, part)

    async def _add_again(self, add: Add, client: Any, request: Any) -> None:
        try:
            await add(client, request)
        except Exception as error:  # else the client would wait for ever, and so would later requests
            self._fail(client, request.request_id, f"sending the request failed: {account_of(error).message}")

    def _fail(self, client: Any, request_id: str, why: str) -> None:
        """End a request alone, with an error."""
        logger.error("request %s was lost with its engine core and cannot be resumed: %s", request_id, why)
        self.watch.failed()
        self._end(client, request_id)

    def _end(self, client: Any, request_id: str) -> None:
        from vllm.v1.engine import EngineCoreOutputs

        outputs = [ended := error_output(request_id), *self._sessions.fail(ended)]
        self._forget([request_id])
        client.outputs_queue.put_nowait(EngineCoreOutputs(outputs=outputs))

    def _start(self, work: Any) -> None:
        assert self._loop is not None
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("moving requests failed", exc_info=error)
