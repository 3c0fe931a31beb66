"""A log that nobody reads: in a process of its own, with the three real sentinels and a full pipe for stderr."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import subprocess
import sys
import threading
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from starlette.types import Receive, Scope, Send
from uvicorn.logging import AccessFormatter

from holdfast.hosts.vllm.process.logs import divert, flush_log
from holdfast.plugin.endpoint import _LogBeside

WAIT_S = 30.0
FULL_AFTER = 65536
LINES = 100
PROGRAM = """
import logging, os, sys, threading, time
sys.path[:0] = {paths!r}
from test_sentinels import Bench, EventKind
from holdfast.api.notify import log_event
from holdfast.hosts.vllm.process import logs

host = logging.getLogger("vllm")
host.addHandler(logging.StreamHandler(sys.stderr))
host.setLevel(logging.INFO)
logs.write_log_beside()
os.set_blocking(2, False)
try:
    while {is_full} and os.write(2, b"x" * 4096):
        pass
except BlockingIOError:
    pass
os.set_blocking(2, True)
bench = Bench({{"events in the log": log_event}})
bench.attach()
for n in range({lines}):
    host.error("line %d of the host: %s", n, "y" * 200)
began = time.monotonic()
bench.run(ValueError("boom"))
bench.settled(EventKind.ENGINE_RECOVERED)
print(f"{{time.monotonic() - began:.3f}} s", logs._lines.dropped, flush=True)
if {ends_by_itself}:
    bench.close()
    sys.exit(0)
time.sleep(20)
"""


def start(*, is_full: bool, lines: int = 2000, ends_by_itself: bool = False) -> subprocess.Popen[bytes]:
    paths = [str(Path(__file__).parents[1] / "sentinel"), str(Path(__file__).parents[2])]
    program = PROGRAM.format(paths=paths, is_full=is_full, lines=lines, ends_by_itself=ends_by_itself)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def first_line(process: subprocess.Popen[bytes]) -> list[bytes]:
    """Return the words of the first line, or none when there is no line in time."""
    assert process.stdout is not None
    killer = threading.Timer(WAIT_S, process.kill)
    killer.start()
    line = process.stdout.readline()
    killer.cancel()
    return line.split()


def test_a_recovery_takes_no_longer_when_nobody_reads_the_log() -> None:
    with start(is_full=True) as process:
        said = first_line(process)
        process.send_signal(signal.SIGKILL)
    assert said, "nothing was repaired"
    assert float(said[0]) < 1.0  # a machine under load; alone it takes milliseconds
    assert int(said[2]) > 900


def test_a_reader_that_comes_back_learns_how_many_lines_are_lost() -> None:
    with start(is_full=True) as process:
        dropped = int(first_line(process)[2])
        assert process.stderr is not None
        read = b""
        while b"lines dropped" not in read and (more := os.read(process.stderr.fileno(), FULL_AFTER)):
            read += more
        process.send_signal(signal.SIGKILL)
    assert dropped > 900
    assert b" log lines dropped: nobody read the log" in read
    assert b"Logging error" not in read


def test_the_last_lines_are_written_before_the_process_ends() -> None:
    with start(is_full=False, lines=LINES, ends_by_itself=True) as process:
        _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    read = errors.decode()
    places = [read.index(f"line {n} of") for n in range(LINES)]
    assert places == sorted(places)
    assert "engine 0 recovered" in read


def test_the_log_of_the_http_server_is_written_beside_from_its_start() -> None:
    """The server sets up its log after all plugins; an access log that nobody reads stopped every answer."""
    log = logging.getLogger("uvicorn.access")
    before, log.handlers = log.handlers, [logging.StreamHandler()]
    served: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        raise AssertionError("the app takes nothing")

    try:
        asyncio.run(_LogBeside(app)({"type": "lifespan"}, nothing, nothing))
        [handler] = log.handlers
    finally:
        log.handlers = before
    assert isinstance(handler, QueueHandler)
    assert served == ["lifespan"]


def test_a_line_of_the_access_log_is_written_as_the_server_writes_it() -> None:
    """The server's formatter reads the arguments of the record."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(AccessFormatter("%(client_addr)s %(request_line)s %(status_code)s", use_colors=False))
    log = logging.Logger("uvicorn.access")
    log.handlers = [handler]
    divert(log)
    log.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", "/health", "1.1", 200)
    assert flush_log(10.0)
    assert written.getvalue() == "127.0.0.1:1 GET /health HTTP/1.1 200 OK\n"
