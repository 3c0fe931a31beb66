"""An API server that takes a dead one's place: it has the engine cores say once more that they are ready.

The host's client waits for their first word, which the dead one has heard. What they answer to a greeting is put
where the client looks for that. The answer names the process, so it is known whose word it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import zmq

from holdfast.core.errors import PeerSilent
from holdfast.core.protocol.events import EngineView
from holdfast.core.states import EngineState
from holdfast.hosts.vllm.protocol.calls import GREETING
from holdfast.sentinel import FrontEndLink

_AGAIN_MS = 200  # an engine core that was greeted before it had connected has heard nothing

# The one that this process is, while its client is made.
_making: list[Takeover] = []


def greet_engine_cores(original: Any, client: Any) -> None:
    """Around the one thing that the client does between binding its sockets and waiting for the engine cores."""
    original(client)
    for takeover in _making:
        takeover.greet(client)


class Takeover:
    """Greets the engine cores for a client, and knows afterwards how often each had been lost by then."""

    def __init__(self, link: FrontEndLink, client_index: int, timeout_s: float) -> None:
        self.restarts: dict[int, int] = {}
        self._link = link
        self._client_index = client_index
        self._timeout_s = timeout_s
        self._borrowed: list[Any] = []

    @contextmanager
    def making(self, client: Any) -> Iterator[None]:
        """While the client is made."""
        _making[:] = [self]
        try:
            yield
        finally:
            _making.clear()
            for socket in self._borrowed:
                socket.close(linger=0)
            if self._borrowed:
                client.input_socket = client.resources.input_socket

    def greet(self, client: Any) -> None:
        """Raises `PeerSilent` for an engine core that does not answer in time."""
        socket: zmq.Socket[bytes] = zmq.Socket.shadow(client.input_socket)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._show(client, self._collect(socket))

    def _collect(self, socket: Any) -> dict[int, bytes]:
        """What each engine core says when it is ready."""
        said: dict[int, bytes] = {}
        deadline = time.monotonic() + self._timeout_s
        while silent := [e for e in self._link.view().engines if e.engine_id not in said and not _is_left_out(e)]:
            if time.monotonic() > deadline:
                who = ", ".join(str(e.engine_id) for e in silent)
                raise PeerSilent(f"engine core(s) {who} did not answer within {self._timeout_s:g} s")
            for engine in silent:
                if engine.pid is not None:  # it has reported: before that it could not answer
                    self._send_greeting(socket, engine)
            while socket.poll(_AGAIN_MS):
                self._take(socket.recv_multipart(), said)
        self._speak_for_left_out(said)
        return said

    def _speak_for_left_out(self, said: dict[int, bytes]) -> None:
        """The client waits for each of them, and they all say the same. Afterwards it is told that they are gone."""
        payload = next(iter(said.values()), b"")
        for engine in self._link.view().engines:
            if engine.engine_id not in said:
                said[engine.engine_id] = payload
                self.restarts[engine.engine_id] = engine.restarts

    def _send_greeting(self, socket: Any, engine: EngineView) -> None:
        from vllm.v1.engine import EngineCoreRequestType
        from vllm.v1.fault_tolerance.engine_core_sentinel import FT_UTILITY_METHOD

        call = msgspec.msgpack.encode((self._client_index, 0, FT_UTILITY_METHOD, (GREETING,)))
        socket.send_multipart((_identity(engine.engine_id), EngineCoreRequestType.UTILITY.value, call))

    def _take(self, frames: list[bytes], said: dict[int, bytes]) -> None:
        """Only an answer of the process that the owner knows counts; a first word always comes before it."""
        if len(frames) != 3:
            return
        identity, pid, payload = frames
        engine = self._link.view().engine(int.from_bytes(identity, "little"))
        if engine is not None and engine.pid == int(pid):
            said[engine.engine_id] = payload
            self.restarts[engine.engine_id] = engine.restarts

    def _show(self, client: Any, said: dict[int, bytes]) -> None:
        """Give the client another socket to hear them from: on its own one nobody else can speak for them."""
        context, address = client.resources.ctx, f"inproc://holdfast-{id(self)}"
        listener = context.socket(zmq.ROUTER)
        self._borrowed.append(listener)
        listener.bind(address)
        for engine_id, payload in said.items():
            speaker = context.socket(zmq.DEALER)
            self._borrowed.append(speaker)
            speaker.setsockopt(zmq.IDENTITY, _identity(engine_id))
            speaker.connect(address)
            speaker.send(payload)
        client.input_socket = listener


def _is_left_out(engine: EngineView) -> bool:
    return engine.state is EngineState.LEFT_OUT


def _identity(engine_id: int) -> bytes:
    return engine_id.to_bytes(2, "little")
