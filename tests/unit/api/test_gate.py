from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from holdfast.api.access import Access
from holdfast.api.gate import ControlGate, install_gate
from holdfast.api.routes import install
from holdfast.core.config import HoldfastConfig
from holdfast.core.protocol.commands import Retry
from support.control_plane import MemoryControl


class HostGuard:
    """What the host's own API key does: nothing under /v1 without it."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and scope["path"].removeprefix(scope["root_path"]).startswith("/v1")
        if guarded and (b"authorization", b"Bearer host-key") not in scope["headers"]:
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def guarded_app(control: MemoryControl, root_path: str = "") -> FastAPI:
    app = FastAPI(root_path=root_path)

    @app.get("/v1/models")
    def models() -> list[str]:
        return ["m"]

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")

    install(app, control, Access.by_token(b"own-key"))
    app.add_middleware(HostGuard)
    install_gate(app, control)
    return app


# ---- past the host's guard


@pytest.mark.parametrize("root_path", ["", "/behind/proxy"])
@pytest.mark.parametrize("prefix", ["/fault_tolerance", "/v1/fault_tolerance"])
def test_control_paths_want_our_token_only(control: MemoryControl, root_path: str, prefix: str) -> None:
    client = TestClient(guarded_app(control, root_path))
    ours = client.get(f"{root_path}{prefix}/status", headers={"Authorization": "Bearer own-key"})
    hosts = client.get(f"{root_path}{prefix}/status", headers={"Authorization": "Bearer host-key"})
    none = client.get(f"{root_path}{prefix}/status")
    assert (ours.status_code, hosts.status_code, none.status_code) == (200, 403, 401)


def test_a_root_path_that_the_proxy_has_cut_off_is_no_hindrance(control: MemoryControl) -> None:
    client = TestClient(guarded_app(control, "/behind/proxy"))
    assert client.get("/v1/fault_tolerance/ready").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/v1/fault_tolerance",
        "/v1/fault_tolerances/status",
        "/v1//fault_tolerance/status",
        "/v1/models/fault_tolerance/",
    ],
)
def test_other_paths_stay_behind_the_hosts_guard(control: MemoryControl, path: str) -> None:
    assert TestClient(guarded_app(control)).get(path).status_code == 401


@pytest.mark.parametrize("path", ["/v1/fault_tolerance/../models", "/v1/fault_tolerance//v1/models"])
def test_nothing_else_can_be_reached_through_the_control_prefix(control: MemoryControl, path: str) -> None:
    answer = asyncio.run(ask(guarded_app(control), "GET", path))
    assert answer[0]["status"] == 404


def test_websockets_pass(control: MemoryControl) -> None:
    with TestClient(guarded_app(control)).websocket_connect("/v1/realtime") as socket:
        assert socket.receive_text() == "hello"


# ---- requests while nothing makes progress


class Engine:
    """An app whose answers begin when the test says so; counts the requests that reached it."""

    def __init__(self) -> None:
        self.arrived = 0
        self.first_token = asyncio.Event()
        self.end = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.arrived += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.first_token.wait()
        await send({"type": "http.response.body", "body": b"token", "more_body": True})
        await self.end.wait()
        await send({"type": "http.response.body", "body": b""})


def scope_of(method: str, path: str) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", "root_path": ""}


async def ask(
    app: Callable[..., Awaitable[None]], method: str = "POST", path: str = "/v1/completions"
) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope_of(method, path), receive, send)
    return sent


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def holding(at_most: int) -> MemoryControl:
    config = HoldfastConfig(fault_policy="external", max_held_requests=at_most)
    control = MemoryControl(config=config).attach()
    control.obedient = True
    return control


def test_requests_during_a_recovery_wait_up_to_the_bound() -> None:
    async def story() -> None:
        control, engine = holding(2).break_down(), Engine()
        gate = ControlGate(engine, control)
        waiting = [asyncio.create_task(ask(gate)) for _ in range(2)]
        await settle()
        refused = await ask(gate)
        assert (gate.held_requests, engine.arrived, refused[0]["status"]) == (2, 2, 503)
        assert (b"retry-after", b"1") in refused[0]["headers"]
        assert b"paused and holds 2 requests already" in refused[1]["body"]
        engine.first_token.set()
        engine.end.set()
        assert [(await w)[0]["status"] for w in waiting] == [200, 200]

    asyncio.run(story())


def test_a_request_waits_until_its_first_token() -> None:
    async def story() -> None:
        control, engine = holding(1).break_down(), Engine()
        gate = ControlGate(engine, control)
        stream = asyncio.create_task(ask(gate))
        await settle()
        assert gate.held_requests == 1
        engine.first_token.set()
        await settle()
        assert (gate.held_requests, stream.done()) == (0, False)
        engine.end.set()
        await stream
        assert gate.held_requests == 0

    asyncio.run(story())


def test_a_waiting_request_that_is_given_up_frees_its_place() -> None:
    async def story() -> None:
        gate = ControlGate(Engine(), holding(1).break_down())
        stream = asyncio.create_task(ask(gate))
        await settle()
        stream.cancel()
        await settle()
        assert gate.held_requests == 0

    asyncio.run(story())


def test_requests_of_a_healthy_instance_are_not_counted() -> None:
    async def story() -> None:
        engine = Engine()
        gate = ControlGate(engine, holding(0))
        streams = [asyncio.create_task(ask(gate)) for _ in range(3)]
        await settle()
        assert (gate.held_requests, engine.arrived) == (0, 3)
        engine.first_token.set()
        engine.end.set()
        await asyncio.gather(*streams)

    asyncio.run(story())


def test_after_the_recovery_requests_pass_again() -> None:
    async def story() -> None:
        control, engine = holding(0), Engine()
        engine.first_token.set()
        engine.end.set()
        gate = ControlGate(engine, control)
        statuses = [(await ask(gate))[0]["status"]]
        control.break_down()
        statuses.append((await ask(gate))[0]["status"])
        control.submit(Retry(command_id="c0ffee"))
        statuses.append((await ask(gate))[0]["status"])
        assert statuses == [200, 503, 200]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/health"), ("GET", "/metrics"), ("POST", "/fault_tolerance/apply")]
)
def test_reading_and_control_never_wait(method: str, path: str) -> None:
    async def story() -> None:
        engine = Engine()
        engine.first_token.set()
        engine.end.set()
        sent = await ask(ControlGate(engine, holding(0).break_down()), method, path)
        assert sent[0]["status"] == 200

    asyncio.run(story())


def test_a_defeated_instance_refuses_at_once_and_tells_no_stranger_why() -> None:
    """The reason may quote an exception, with another client's prompt."""
    gate = ControlGate(Engine(), holding(1000).defeat())
    refused = asyncio.run(ask(gate))
    assert refused[0]["status"] == 503
    assert b'"state":"dead"' in refused[1]["body"]
    assert b"did not answer in time" not in refused[1]["body"]
    assert b"/fault_tolerance/status" in refused[1]["body"]


def test_a_starting_instance_holds_too() -> None:
    gate = ControlGate(Engine(), MemoryControl(config=HoldfastConfig(max_held_requests=0)))
    assert b'"state":"starting"' in asyncio.run(ask(gate))[1]["body"]
