"""What systemd is told of a server: by datagrams to a real socket, of answers as the endpoints give them."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from holdfast.api import systemd
from holdfast.api.systemd import (
    ALIVE,
    READY,
    Listening,
    Serving,
    SystemdReports,
    ask,
    ask_inside,
    period_of,
    send,
    start_telling_systemd,
)
from support.control_plane import MemoryControl
from support.http_app import build_app
from support.live_server import LiveServer, serve

Answer = tuple[int, bytes]
WELL = {ALIVE: (200, b""), READY: (200, b'{"ready": true, "state": "healthy"}')}
RECOVERING = {ALIVE: (200, b""), READY: (503, b'{"ready": false, "state": "recovering"}')}
DEFEATED = {ALIVE: (503, b""), READY: (503, b'{"ready": false, "state": "dead"}')}
SILENT: dict[str, Answer] = {ALIVE: (0, b""), READY: (0, b"")}


def told(*answers: dict[str, Answer]) -> list[list[str]]:
    """What is sent in looks at a server that answers so, one after another."""
    sent: list[list[str]] = []
    now: dict[str, Answer] = {}
    reports = SystemdReports(lambda path: now[path], lambda text: sent.append(text.splitlines()), 1.0)
    for answer in answers:
        now = answer
        before = len(sent)
        reports.look()
        if len(sent) == before:
            sent.append([])
    return sent


def test_a_server_is_ready_once_and_alive_as_long_as_it_answers() -> None:
    assert told(WELL, WELL) == [["STATUS=ready", "READY=1", "WATCHDOG=1"], ["WATCHDOG=1"]]


def test_a_recovery_keeps_the_watchdog_quiet_and_is_told() -> None:
    _, recovering, again = told(WELL, RECOVERING, WELL)
    assert recovering == ["STATUS=no engine makes progress: recovering", "WATCHDOG=1"]
    assert again == ["STATUS=ready", "WATCHDOG=1"]


@pytest.mark.parametrize("answers", [SILENT, DEFEATED])
def test_who_does_not_answer_or_has_ended_is_not_alive(answers: dict[str, Answer]) -> None:
    _, last, later = told(WELL, answers, answers)
    assert not any(line == "WATCHDOG=1" for line in [*last, *later])


def test_who_was_never_ready_is_not_called_ready() -> None:
    assert not any("READY=1" in lines for lines in told(SILENT, RECOVERING))


def test_a_report_that_fails_is_made_at_the_next_look() -> None:
    sent: list[str] = []
    enough = threading.Event()

    def send_at_third(text: str) -> None:
        sent.append(text)
        if len(sent) < 3:
            raise ValueError("cannot be sent")
        enough.set()

    reports = SystemdReports(lambda path: WELL[path], send_at_third, 0.001)
    reports.start()
    assert enough.wait(10.0)
    reports.close()
    assert sent[2].splitlines() == ["STATUS=ready", "READY=1", "WATCHDOG=1"]


def test_the_watchdog_is_fed_well_within_its_time() -> None:
    assert period_of({"WATCHDOG_USEC": "9000000"}) == pytest.approx(3.0)
    assert period_of({}) == period_of({"WATCHDOG_USEC": "soon"}) == systemd.USUAL_PERIOD_S


def test_without_systemd_nothing_runs() -> None:
    assert start_telling_systemd(Listening(), {}) is None


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield listening


def test_what_is_sent_arrives_as_one_datagram(notified: socket.socket) -> None:
    send(notified.getsockname(), "READY=1\nSTATUS=ready")
    assert notified.recv(1000) == b"READY=1\nSTATUS=ready"


def test_an_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("")  # the kernel chooses an abstract one
        listening.settimeout(10)
        send(f"@{listening.getsockname()[1:].decode()}", "READY=1")
        assert listening.recv(1000) == b"READY=1"


def test_where_nobody_listens_it_is_said_and_nothing_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "holdfast"):
        send(str(tmp_path / "nobody"), "READY=1")
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("systemd was not notified:")


def test_a_real_server_is_asked() -> None:
    with LiveServer().running() as server:
        server.control = MemoryControl().attach()
        port = int(server.open_url.rpartition(":")[2])
        code, body = ask(Listening(port=port), READY, 5.0)
        assert (code, json.loads(body)["ready"]) == (200, True)
    assert ask(Listening(port=1), READY, 5.0) == (0, b"")


def test_a_server_that_systemd_started_tells_it_by_itself(notified: socket.socket) -> None:
    control = MemoryControl().attach()
    app = build_app(lambda: control)
    app.add_api_route(ALIVE, lambda: {"alive": True})
    environ = {"NOTIFY_SOCKET": notified.getsockname(), "WATCHDOG_USEC": "600000"}
    with serve(app) as url:
        reports = start_telling_systemd(Listening(port=int(url.rpartition(":")[2])), environ)
        assert reports is not None
        told = notified.recv(1000)
        while b"READY=1" not in told:
            told = notified.recv(1000)
        assert b"STATUS=ready" in told and b"WATCHDOG=1" in told
        assert notified.recv(1000) == b"WATCHDOG=1"
        reports.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority and a server's certificate, in files."""
    folder = tmp_path_factory.mktemp("certificates")
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run(
        [*request, "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True, timeout=60
    )
    return folder


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
@pytest.mark.parametrize("is_stuck", [False, True], ids=["well", "with a stuck event loop"])
def test_a_server_that_wants_certificates_of_its_clients_is_asked_from_inside(
    certificates: Path, is_stuck: bool
) -> None:
    """Systemd killed it before: it was healthy, and never ready."""
    control = MemoryControl().attach()
    app = build_app(lambda: control)
    release = threading.Event()

    async def alive() -> dict[str, bool]:
        if is_stuck:
            release.wait(10)  # the event loop itself waits
        return {"alive": True}

    app.add_api_route(ALIVE, alive)
    loops: list[asyncio.AbstractEventLoop] = []
    port_socket = socket.create_server(("127.0.0.1", 0))
    port = port_socket.getsockname()[1]
    config = uvicorn.Config(
        app,
        log_level="error",
        lifespan="off",
        ws="none",
        ssl_certfile=str(certificates / "cert.pem"),
        ssl_keyfile=str(certificates / "key.pem"),
        ssl_ca_certs=str(certificates / "cert.pem"),
        ssl_cert_reqs=ssl.CERT_REQUIRED,
    )
    server = uvicorn.Server(config)

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[port_socket])

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not (loops and server.started):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        listening = Listening(port=port, tls=True, wants_certificates=True)
        assert ask(listening, READY, 5.0) == (0, b""), "a call without a certificate is refused"
        serving = Serving(app, loops[0])
        assert ask_inside(serving, listening, ALIVE, 0.5 if is_stuck else 5.0)[0] == (0 if is_stuck else 200)
        assert ask_inside(serving, Listening(port=1), ALIVE, 0.5) == (0, b"")
    finally:
        release.set()
        server.should_exit = True
        thread.join(10)
