"""Reports to systemd, from the server's own endpoints: ready, alive, state. Runs only when systemd asks for reports.

The endpoints are called over HTTP as by any client: a server that does not answer is not alive. A server that wants
certificates of its clients would refuse such a call: there the port has to accept a connection, and the app has to
answer on the server's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from starlette.types import ASGIApp

from holdfast.api.routes import PREFIXES
from holdfast.sentinel.watching import WatchThread

logger = logging.getLogger("holdfast")

ALIVE, READY = "/health", f"{PREFIXES[0]}/ready"
USUAL_PERIOD_S = 2.0
LONGEST_PERIOD_S = 10.0
SHORTEST_PERIOD_S = 0.05
PINGS_IN_TIME = 3  # of which two may be late or lost

Ask = Callable[[str], tuple[int, bytes]]
Send = Callable[[str], None]


@dataclass(frozen=True)
class Listening:
    """Address of the server of this process."""

    host: str = "127.0.0.1"
    port: int = 8000
    tls: bool = False
    unix_socket: str | None = None
    wants_certificates: bool = False  # of its clients


@dataclass(frozen=True)
class Serving:
    """The app of this process and the event loop on which the app answers."""

    app: ASGIApp
    loop: asyncio.AbstractEventLoop


def start_telling_systemd(
    listening: Listening, environ: Mapping[str, str] = os.environ, serving: Serving | None = None
) -> SystemdReports | None:
    """Start the reports when systemd started this process and wants notifications; else return None.

    `serving` is asked where the server wants certificates of its clients.
    """
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return None
    period_s = period_of(environ)

    def ask_server(path: str) -> tuple[int, bytes]:
        if listening.wants_certificates and serving is not None:
            return ask_inside(serving, listening, path, period_s)
        return ask(listening, path, period_s)

    reports = SystemdReports(ask_server, lambda text: send(address, text), period_s)
    reports.start()
    return reports


def period_of(environ: Mapping[str, str]) -> float:
    """Return the seconds between two looks: a part of the watchdog's time (`WATCHDOG_USEC`), if set."""
    with contextlib.suppress(KeyError, ValueError):
        wanted_s = int(environ["WATCHDOG_USEC"]) / 1e6 / PINGS_IN_TIME
        return min(LONGEST_PERIOD_S, max(SHORTEST_PERIOD_S, wanted_s))
    return USUAL_PERIOD_S


class SystemdReports:
    """Reports to systemd: READY once, STATUS at changes, WATCHDOG while the server is alive."""

    def __init__(self, ask: Ask, send: Send, period_s: float) -> None:
        self._ask = ask
        self._send = send
        self._was_ready = False
        self._status = ""
        self._thread = WatchThread("SystemdReports", self.look, period_s)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._thread.close()

    def look(self) -> None:
        alive, (code, body) = self._ask(ALIVE)[0] == http.HTTPStatus.OK, self._ask(READY)
        told = [f"STATUS={status}"] if (status := _status(alive, code, body)) != self._status else []
        is_ready = alive and code == http.HTTPStatus.OK
        told += ["READY=1"] if is_ready and not self._was_ready else []
        told += ["WATCHDOG=1"] if alive else []
        if told:
            self._send("\n".join(told))
        self._status, self._was_ready = status, self._was_ready or is_ready


def _status(alive: bool, code: int, body: bytes) -> str:
    if not alive:
        return "does not answer, or has ended" if code == 0 else "has ended"
    with contextlib.suppress(ValueError, AttributeError):
        answer = json.loads(body)
        if reason := answer.get("reason"):
            return str(reason)
        state = answer.get("state", "")
        return "ready" if code == http.HTTPStatus.OK else f"no engine makes progress: {state}"
    return "starting"


def ask(listening: Listening, path: str, timeout_s: float) -> tuple[int, bytes]:
    """Return the code and the body of an answer; code 0 without an answer in time."""
    connection = _connection(listening, timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def ask_inside(serving: Serving, listening: Listening, path: str, timeout_s: float) -> tuple[int, bytes]:
    """Return the app's answer on the server's event loop, once the port accepts a connection; code 0 without."""
    answer = None
    try:
        _accepts(listening, timeout_s)
        answer = asyncio.run_coroutine_threadsafe(_ask_app(serving.app, path), serving.loop)
        return answer.result(timeout_s)
    except Exception:  # of the app too: no answer is an answer
        if answer is not None:
            answer.cancel()
        return 0, b""


async def _ask_app(app: ASGIApp, path: str) -> tuple[int, bytes]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        answer = await client.get(path)
        return answer.status_code, answer.content


def _accepts(listening: Listening, timeout_s: float) -> None:
    if listening.unix_socket is None:
        socket.create_connection((listening.host, listening.port), timeout=timeout_s).close()
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(timeout_s)
        probe.connect(listening.unix_socket)


def _connection(listening: Listening, timeout_s: float) -> http.client.HTTPConnection:
    if listening.unix_socket is not None:
        return _UnixConnection(listening.unix_socket, timeout_s)
    if listening.tls:  # to this machine itself: whose certificate it is does not matter
        context = ssl._create_unverified_context()
        return http.client.HTTPSConnection(listening.host, listening.port, timeout=timeout_s, context=context)
    return http.client.HTTPConnection(listening.host, listening.port, timeout=timeout_s)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def send(address: str, text: str) -> None:
    """Send a datagram of the sd_notify(3) protocol. A failure is logged and not tried again."""
    to = f"\0{address[1:]}" if address.startswith("@") else str(Path(address))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(text.encode(), to)
    except OSError as error:
        logger.warning("systemd was not notified: %s", error)
