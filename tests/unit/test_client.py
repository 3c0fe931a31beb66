"""The typed client against a real HTTP server without a model: nothing is missed or done twice; the examples."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from holdfast.api.formats import render_notification
from holdfast.api.notify import Publisher
from holdfast.client import AsyncClient, Client, ClientFailure, Place, following, http, notifications
from holdfast.core.config import HoldfastConfig
from support.control_plane import MemoryControl
from support.live_server import LiveServer

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def _running() -> Iterator[LiveServer]:
    with LiveServer().running() as server:
        yield server


@pytest.fixture
def server(_running: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LiveServer:
    monkeypatch.setattr(following, "POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(http, "RETRY_PAUSE_S", 0.0)
    config = HoldfastConfig(fault_policy="external", incident_dir=str(tmp_path / "incidents"))
    _running.control = MemoryControl(config=config).attach()
    _running.control.obedient = True
    return _running


def test_status_commands_and_incidents(server: LiveServer) -> None:
    client = Client(server.open_url)
    assert client.status().ready
    server.control.break_down()
    assert client.apply("retry", engines=[0]).message
    [summary] = client.incidents().incidents
    assert client.incident(summary.incident_id).incident.outcome == "repaired"
    assert client.incident_tar(summary.incident_id)
    with pytest.raises(ClientFailure, match="no engine 7"):
        client.apply("pause", engines=[7])


def test_the_asynchronous_client_does_the_same(server: LiveServer) -> None:
    async def use() -> list[int]:
        async with AsyncClient(server.open_url) as client:
            assert await client.is_ready() and (await client.status()).ready
            server.control.break_down()
            await client.apply("retry", engines=[0])
            [summary] = (await client.incidents()).incidents
            assert (await client.incident(summary.incident_id)).incident.action
            seen = []
            async for event in client.follow():
                seen.append(event.sequence)
                if len(seen) == len(server.control.events):
                    return seen
        return []

    assert asyncio.run(use()) == [e.sequence for e in server.control.events]


def test_a_follower_sees_every_event_once_also_of_a_server_that_was_restarted(server: LiveServer) -> None:
    client = Client(server.open_url)
    server.control.break_down()
    first = [e.sequence for e in itertools.islice(client.follow(), 3)]
    assert first == [1, 2, 3]
    follower = client.follow(Place(3, server.control.view().instance_id))
    assert next(follower).sequence == 4
    server.control = MemoryControl().attach()
    assert next(follower).sequence == 1


def test_a_command_whose_answer_is_lost_is_sent_again_under_the_same_key(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, keys = Client(server.open_url), []
    send = client._send

    def lose_once(call: Any) -> bytes:
        keys.append(call.headers[b"Idempotency-Key"])
        if len(keys) == 1:
            raise ClientFailure("lost", 2, passing=True)
        return send(call)

    monkeypatch.setattr(client, "_send", lose_once)
    client.apply("pause")
    assert len(keys) == 2 and len(set(keys)) == 1
    monkeypatch.setattr(client, "_send", lambda call: (_ for _ in ()).throw(ClientFailure("lost", 2, passing=True)))
    with pytest.raises(ClientFailure):
        client.apply("pause")


def test_notifications_are_typed(server: LiveServer) -> None:
    publisher = Publisher("127.0.0.1", 0)
    control = server.control.break_down()
    stop = threading.Event()

    def publish() -> None:
        while not stop.wait(0.02):
            publisher.publish(control.events[-1], control.view())

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        told = next(notifications(publisher.address, idle_s=10.0))
        assert told.event == render_notification(control.events[-1], control.view()).event
    finally:
        stop.set()
        thread.join(5.0)
        publisher.close()


# ---- the examples


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def taking(status: int = 200, refuse_first: int = 0) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Serve a URL that takes POSTs; gives what was sent, also what was refused."""
    taken: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(503 if len(taken) <= refuse_first else status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{web.server_address[1]}", taken
        web.shutdown()


def test_the_relay_delivers_every_event_and_continues_where_it_stopped(
    server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = example("webhook_relay")
    monkeypatch.setattr(relay.time, "sleep", lambda seconds: None)
    server.control.break_down()
    with taking(refuse_first=1) as (webhook, taken):
        common = ["relay", "--webhook", webhook, "--url", server.open_url, "--place", str(tmp_path / "place.json")]
        for events in ("2", "1"):
            monkeypatch.setattr(sys, "argv", [*common, "--events", events])
            assert relay.main() == 0
    assert [event["sequence"] for _, event in taken] == [1, 1, 2, 3], "the first was refused once"


def test_the_sidecar_has_a_pod_evicted_that_makes_no_progress(
    server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecar = example("drain_pod")
    (tmp_path / "token").write_text("secret")
    monkeypatch.setenv("POD_NAME", "server-0")
    monkeypatch.setenv("POD_NAMESPACE", "models")
    server.control.break_down()
    with taking() as (api, taken):
        arguments = ["--url", server.open_url, "--after", "0.05", "--period", "0.01", "--api", api]
        monkeypatch.setattr(sys, "argv", ["drain_pod", *arguments, "--account", str(tmp_path)])
        assert sidecar.main() == 0
    [(path, body)] = taken
    assert path == "/api/v1/namespaces/models/pods/server-0/eviction" and body["kind"] == "Eviction"


def test_the_health_endpoint_tells_the_share_of_engines_that_serve(server: LiveServer, closed_url: str) -> None:
    health = example("health_endpoint")
    server.control = MemoryControl(((0,), (1,))).attach()
    assert health.share_of(Client(server.open_url)) == 100
    server.control.break_down(1)
    assert health.share_of(Client(server.open_url)) == 50
    assert health.share_of(Client(closed_url)) == 0
    web = health.make_server(server.open_url, 0)
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    with web:
        answer = Client(f"http://127.0.0.1:{web.server_address[1]}").fetch("status")
        web.shutdown()
    assert answer == b"50%\n"


@pytest.fixture
def closed_url() -> str:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as once:
        return f"http://127.0.0.1:{once.getsockname()[1]}"
