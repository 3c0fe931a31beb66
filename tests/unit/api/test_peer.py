"""Real sockets: a peer is what the transport says, and a peer that has left is nobody."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from holdfast.api import peer
from holdfast.api.access import Access, Peer
from holdfast.api.gate import install_gate
from holdfast.api.routes import install
from holdfast.core.protocol.commands import Credential, Giver
from holdfast.core.protocol.events import EventKind
from support.control_plane import MemoryControl
from support.http_app import BEARER, TOKEN, build_app

BODY = b'{"instruction": "pause"}'
POST = (
    b"POST /fault_tolerance/apply HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"%sContent-Length: " + str(len(BODY)).encode() + b"\r\n\r\n" + BODY
)
TRIES = 40


@contextlib.contextmanager
def serving(app: FastAPI, listening: socket.socket, http: str) -> Iterator[None]:
    config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none", http=http)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)


def answer_of(connection: socket.socket, request: bytes) -> int:
    connection.settimeout(10)
    connection.sendall(request)
    return int(connection.recv(65_536).split()[1])


@pytest.fixture
def control() -> MemoryControl:
    built = MemoryControl().attach()
    built.obedient = True
    return built


HTTP = pytest.mark.parametrize("http", ["h11", "httptools"])


@HTTP
def test_a_command_whose_sender_has_reset_the_connection_is_not_carried_out(control: MemoryControl, http: str) -> None:
    """The server no longer knows the sender's address then."""
    listening = socket.create_server(("127.0.0.1", 0))
    with serving(build_app(control), listening, http):
        for _ in range(TRIES):
            attacker = socket.create_connection(listening.getsockname())
            attacker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            attacker.sendall(POST % b"")
            attacker.close()
        with socket.create_connection(listening.getsockname()) as probe:  # after all others were read
            assert answer_of(probe, b"GET /fault_tolerance/ready HTTP/1.1\r\nHost: x\r\n\r\n") == 200
        _await_idle(control)
    assert control.sent == []


def _await_idle(control: MemoryControl, quiet_s: float = 0.3) -> None:
    """Wait until no command has arrived for a while; at most ten seconds."""
    seen, since, deadline = len(control.sent), time.monotonic(), time.monotonic() + 10
    while time.monotonic() - since < quiet_s and time.monotonic() < deadline:
        if len(control.sent) != seen:
            seen, since = len(control.sent), time.monotonic()
        time.sleep(0.01)


@HTTP
def test_a_unix_socket_admits_the_servers_own_user_only(control: MemoryControl, http: str, tmp_path: Path) -> None:
    for uid, expected in ((os.getuid(), {200, 202}), (os.getuid() + 1, {401})):
        path = tmp_path / f"{uid}"
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen()
        app = FastAPI()
        install(app, control, Access.by_token(TOKEN.encode(), uid=uid))
        install_gate(app, control)
        with serving(app, listening, http), socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
            assert answer_of(caller, POST % b"") in expected


@HTTP
def test_over_tcp_the_same_user_needs_the_token(control: MemoryControl, http: str) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    with serving(build_app(control), listening, http):
        with socket.create_connection(listening.getsockname()) as caller:
            assert answer_of(caller, POST % b"") == 401
        with socket.create_connection(listening.getsockname()) as caller:
            header = f"Authorization: {BEARER['Authorization']}\r\n".encode()
            assert answer_of(caller, POST % header) in {200, 202}


@HTTP
def test_an_address_from_a_proxy_header_is_no_address(control: MemoryControl, http: str) -> None:
    """The server itself believes such a header when the proxy runs on this machine."""
    listening = socket.create_server(("127.0.0.1", 0))
    seen: list[Peer] = []
    app = build_app(control, is_open=True)
    inner = app.middleware_stack

    async def note(scope, receive, send):  # type: ignore[no-untyped-def]
        seen.append(peer.peer_of(peer.with_peer(scope, receive)))
        await inner(scope, receive, send)  # type: ignore[misc]

    app.middleware_stack = note
    with serving(app, listening, http), socket.create_connection(listening.getsockname()) as caller:
        answer_of(caller, POST % b"X-Forwarded-For: 203.0.113.9\r\n")
    assert seen == [Peer(address="127.0.0.1")]


def test_a_server_that_shows_no_transport_has_unknown_peers() -> None:
    async def receive() -> dict[str, str]:
        return {}

    assert peer.peer_of(peer.with_peer({"type": "http", "client": ("127.0.0.1", 1)}, receive)) == Peer()
    assert peer.peer_of({"client": None}) == Peer()


def _givers(control: MemoryControl) -> list[Giver | None]:
    return [event.given_by for event in control.events if event.kind is EventKind.PAUSE_ORDERED]


@HTTP
def test_the_event_of_a_command_says_what_the_transport_says_of_its_giver(
    control: MemoryControl, http: str, tmp_path: Path
) -> None:
    header = f"Authorization: {BEARER['Authorization']}\r\nX-Forwarded-For: 203.0.113.9\r\nIdempotency-Key: k\r\n"
    listening = socket.create_server(("127.0.0.1", 0))
    with serving(build_app(control), listening, http), socket.create_connection(listening.getsockname()) as caller:
        assert answer_of(caller, POST % header.encode()) in {200, 202}
    token = Credential.TOKEN_MADE_AT_START
    assert _givers(control) == [Giver(credential=token, address="127.0.0.1", idempotency_key="k")]

    local, path = MemoryControl().attach(), str(tmp_path / "socket")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    with serving(build_app(local), listening, http), socket.socket(socket.AF_UNIX) as caller:
        caller.connect(path)
        assert answer_of(caller, POST % b"") in {200, 202}
    assert _givers(local) == [Giver(credential=Credential.SAME_USER, uid=os.getuid())]
