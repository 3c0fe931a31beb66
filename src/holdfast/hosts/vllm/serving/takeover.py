"""Takeover of a dead API server's place: the engine cores report ready once more.

The host's client waits for the first ready message of every engine core, which the dead API server has received. The
answers to a greeting are put where the client reads. An answer carries the process id, and so names its sender.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import zmq

from holdfast.core.errors import PeerSilent
from holdfast.core.protocol.events import EngineStatus
from holdfast.core.states import EngineState
from holdfast.hosts.vllm.protocol import GREETING
from holdfast.sentinel import FrontEndLink

_AGAIN_MS = 200  # a greeting is lost on an engine core that has not connected yet

# The takeover of this process, while its client is made; empty otherwise.
_making: list[Takeover] = []


def greet_engine_cores(original: Any, client: Any) -> None:
    """Greet the engine cores, between the client's binding of sockets and the wait for ready messages."""
    original(client)
    for takeover in _making:
        takeover.greet(client)


class Takeover:
    """Greeting of all engine cores on behalf of a new client.

    `restarts` counts the losses of each engine core, by engine id, that the client need not handle.
    """

    def __init__(self, link: FrontEndLink, client_index: int, timeout_s: float) -> None:
        self.restarts: dict[int, int] = {}
        self._link = link
        self._client_index = client_index
        self._timeout_s = timeout_s
        self._borrowed: list[Any] = []

    @contextmanager
    def making(self, client: Any) -> Iterator[None]:
        """Greet within the block, in which the client is made."""
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
        """Greet every engine core and show the answers to the client. Raises `PeerSilent` without an answer in time."""
        socket: zmq.Socket[bytes] = zmq.Socket.shadow(client.input_socket)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._show(client, self._collect(socket))

    def _collect(self, socket: Any) -> dict[int, bytes]:
        """Return the ready message of each engine core, by engine id."""
        ready: dict[int, bytes] = {}
        deadline = time.monotonic() + self._timeout_s
        while silent := [e for e in self._link.view().engines if e.engine_id not in ready and not _is_left_out(e)]:
            if time.monotonic() > deadline:
                who = ", ".join(str(e.engine_id) for e in silent)
                raise PeerSilent(f"engine core(s) {who} did not answer within {self._timeout_s:g} s")
            for engine in silent:
                if engine.pid is not None:  # before its report an engine core could not answer
                    self._send_greeting(socket, engine)
            while socket.poll(_AGAIN_MS):
                self._take(socket.recv_multipart(), ready)
        self._speak_for_left_out(ready)
        return ready

    def _speak_for_left_out(self, ready: dict[int, bytes]) -> None:
        """Answer for engine cores that are left out: the client waits for all, and learns of the loss afterwards."""
        payload = next(iter(ready.values()), b"")
        for engine in self._link.view().engines:
            if engine.engine_id not in ready:
                ready[engine.engine_id] = payload
                self.restarts[engine.engine_id] = engine.restarts

    def _send_greeting(self, socket: Any, engine: EngineStatus) -> None:
        from vllm.v1.engine import EngineCoreRequestType
        from vllm.v1.fault_tolerance.engine_core_sentinel import FT_UTILITY_METHOD

        call = msgspec.msgpack.encode((self._client_index, 0, FT_UTILITY_METHOD, (GREETING,)))
        socket.send_multipart((_identity(engine.engine_id), EngineCoreRequestType.UTILITY.value, call))

    def _take(self, frames: list[bytes], ready: dict[int, bytes]) -> None:
        """Record an answer, if sent by the process that the owner knows; first ready messages are shorter."""
        if len(frames) != 3:
            return
        identity, pid, payload = frames
        engine = self._link.view().engine(int.from_bytes(identity, "little"))
        if engine is not None and engine.pid == int(pid):
            ready[engine.engine_id] = payload
            self.restarts[engine.engine_id] = engine.restarts

    def _show(self, client: Any, ready: dict[int, bytes]) -> None:
        """Give the client a socket with the answers: on the original socket only engine cores can send."""
        context, address = client.resources.ctx, f"inproc://holdfast-{id(self)}"
        listener = context.socket(zmq.ROUTER)
        self._borrowed.append(listener)
        listener.bind(address)
        for engine_id, payload in ready.items():
            speaker = context.socket(zmq.DEALER)
            self._borrowed.append(speaker)
            speaker.setsockopt(zmq.IDENTITY, _identity(engine_id))
            speaker.connect(address)
            speaker.send(payload)
        client.input_socket = listener


def _is_left_out(engine: EngineStatus) -> bool:
    return engine.state is EngineState.LEFT_OUT


def _identity(engine_id: int) -> bytes:
    return engine_id.to_bytes(2, "little")
