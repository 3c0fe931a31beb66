"""Takeover by a new client, after the engine cores reported ready to a dead client."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import zmq

pytest.importorskip("vllm")

from vllm.v1.engine import EngineCoreRequestType

from holdfast.core.config import RuntimeSettings
from holdfast.core.errors import PeerSilent
from holdfast.core.protocol.events import EngineStatus, InstanceView
from holdfast.core.states import EngineState
from holdfast.hosts.vllm.engine.api_server_clients import answer_greetings, drop_requests
from holdfast.hosts.vllm.protocol import GREETING
from holdfast.hosts.vllm.serving.takeover import Takeover, greet_engine_cores

ADDRESS = "inproc://input"
WAIT_S = 10.0


class Link:
    """The owner's view of two engine cores."""

    def __init__(self, **second: Any) -> None:
        told = {"pid": os.getpid(), "restarts": 0, "state": EngineState.HEALTHY, **second}
        first = EngineStatus(engine_id=0, status="", state=EngineState.HEALTHY, epoch=0, pid=os.getpid(), restarts=2)
        engines = (first, EngineStatus(engine_id=1, status="", epoch=0, **told))
        self._view = InstanceView(engines=engines, settings=RuntimeSettings())

    def view(self) -> InstanceView:
        return self._view


class EngineCore:
    """Input thread of an engine core that has reported ready to a dead client."""

    def __init__(self, context: zmq.Context[Any], engine_id: int, first_words: Sequence[int]) -> None:
        self.input_queue: queue.Queue[Any] = queue.Queue()
        self.scheduler = SimpleNamespace(requests={})
        answer_greetings(self)
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, engine_id.to_bytes(2, "little"))
        self.socket.connect(ADDRESS)
        if engine_id in first_words:
            self.socket.send(b"first word")
        self.ends = threading.Event()
        self.thread = threading.Thread(target=self.process_input_sockets)
        self.thread.start()

    def process_input_sockets(self) -> None:
        input_socket, ready_payload = self.socket, b"ready"
        while not self.ends.is_set():
            if input_socket.poll(20):
                _, call = input_socket.recv_multipart()
                client_index, call_id, _, arguments = msgspec.msgpack.decode(call)
                self.ft_sentinel.handle_command(client_index, call_id, arguments[0])  # type: ignore[attr-defined]
        assert ready_payload
        input_socket.close(linger=0)

    def close(self) -> None:
        self.ends.set()
        self.thread.join(WAIT_S)


class Client:
    """The part of the host's client that a takeover uses."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.input_socket = context.socket(zmq.ROUTER)
        self.input_socket.bind(ADDRESS)
        self.resources = SimpleNamespace(ctx=context, input_socket=self.input_socket)

    def wait_ready(self) -> dict[int, bytes]:
        """Wait for ready messages, as the host does."""
        greet_engine_cores(lambda client: None, self)
        waiting, heard = {0, 1}, {}
        while waiting:
            assert self.input_socket.poll(WAIT_S * 1000)
            identity, payload = self.input_socket.recv_multipart()
            waiting.remove(int.from_bytes(identity, "little"))
            heard[int.from_bytes(identity, "little")] = payload
        return heard


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    made = zmq.Context[Any]()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def client(context: zmq.Context[Any]) -> Client:
    return Client(context)


@pytest.fixture
def engines(request: pytest.FixtureRequest, context: zmq.Context[Any], client: Client) -> Iterator[list[EngineCore]]:
    first_words = getattr(request, "param", ())
    made = [EngineCore(context, engine_id, first_words) for engine_id in (0, 1)]
    yield made
    for engine in made:
        engine.close()


def test_each_engine_core_reports_ready_once(client: Client, engines: list[EngineCore]) -> None:
    takeover = Takeover(Link(restarts=1), 0, WAIT_S)  # type: ignore[arg-type]
    with takeover.making(client):
        assert client.wait_ready() == {0: b"ready", 1: b"ready"}
    assert takeover.restarts == {0: 2, 1: 1}
    assert client.input_socket is client.resources.input_socket


@pytest.mark.parametrize("engines", [(1,)], indirect=True)
def test_the_first_ready_message_of_a_restarted_engine_core_is_not_counted_twice(
    client: Client, engines: list[EngineCore]
) -> None:
    takeover = Takeover(Link(), 0, WAIT_S)  # type: ignore[arg-type]
    with takeover.making(client):
        assert client.wait_ready() == {0: b"ready", 1: b"ready"}


def test_an_answer_of_a_process_that_is_being_replaced_does_not_count(
    client: Client, engines: list[EngineCore]
) -> None:
    takeover = Takeover(Link(pid=None, state=EngineState.RESTARTING), 0, 0.5)  # type: ignore[arg-type]
    with takeover.making(client), pytest.raises(PeerSilent, match=r"engine core\(s\) 1 did not answer"):
        client.wait_ready()


def test_the_answer_of_a_sibling_stands_for_a_left_out_engine_core(client: Client, engines: list[EngineCore]) -> None:
    takeover = Takeover(Link(pid=None, state=EngineState.LEFT_OUT, restarts=6), 0, WAIT_S)  # type: ignore[arg-type]
    with takeover.making(client):
        assert client.wait_ready() == {0: b"ready", 1: b"ready"}
    assert takeover.restarts == {0: 2, 1: 6}


def test_a_greeting_drops_the_open_requests_of_the_dead_client(client: Client, engines: list[EngineCore]) -> None:
    requests = {"a": 1, "b": 0, "c": 1}
    engines[0].scheduler.requests = {i: SimpleNamespace(request_id=i, client_index=c) for i, c in requests.items()}
    takeover = Takeover(Link(), 1, WAIT_S)  # type: ignore[arg-type]
    with takeover.making(client):
        client.wait_ready()
    kind, request_ids = engines[0].input_queue.get(timeout=WAIT_S)
    assert (kind, set(request_ids)) == (EngineCoreRequestType.ABORT, {"a", "c"})


def test_requests_that_wait_to_be_added_are_dropped_as_well() -> None:
    engine = SimpleNamespace(input_queue=queue.Queue(), scheduler=SimpleNamespace(requests={}))
    drop_requests(engine, 0)
    engine.scheduler.requests["late"] = SimpleNamespace(request_id="late", client_index=0)
    _, request_ids = engine.input_queue.get_nowait()
    assert list(request_ids) == ["late"]


def test_another_call_under_that_name_is_refused() -> None:
    engine: Any = SimpleNamespace(output_queue=queue.Queue())
    answer_greetings(engine)
    engine.ft_sentinel.handle_command(1, 42, {"instruction": "retry"})
    client_index, outputs = engine.output_queue.get_nowait()
    assert (client_index, outputs.utility_output.call_id) == (1, 42)
    assert "is off" in outputs.utility_output.failure_message


def test_a_greeting_is_answered_only_where_messages_arrive() -> None:
    engine: Any = SimpleNamespace(input_queue=queue.Queue(), scheduler=SimpleNamespace(requests={}))
    answer_greetings(engine)
    with pytest.raises(RuntimeError, match="process_input_sockets"):
        engine.ft_sentinel.handle_command(0, 0, GREETING)
