"""The same over real sockets: what no well-behaved client would ever send."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from support.control_plane import MemoryControl
from support.http_app import build_app
from support.live_server import serve

HEAD = b"POST /v1/fault_tolerance/apply HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
CHUNK = b"1000\r\n" + b" " * 4096 + b"\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serve(build_app(MemoryControl().attach(), is_open=True)) as url:
        yield int(url.rpartition(":")[2])


def say(port: int, data: bytes) -> bytes:
    """What the server answers to these bytes before it closes the connection."""
    answer = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        try:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            while piece := raw.recv(65_536):
                answer += piece
        except ConnectionError:
            pass  # it may hang up on us
    return bytes(answer)


def status_of(answer: bytes) -> int:
    return int(answer.split()[1])


@pytest.fixture(autouse=True)
def _server_goes_on(port: int) -> Iterator[None]:
    yield
    assert status_of(say(port, b"GET /fault_tolerance/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")) == 200


@pytest.mark.parametrize("junk", [b"", b"\x00" * 5000, b"\xff" * 70_000, b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n"])
def test_junk_does_not_disturb_the_server(port: int, junk: bytes) -> None:
    say(port, junk)


def test_random_bytes_do_not_disturb_the_server(port: int) -> None:
    for _ in range(20):
        say(port, os.urandom(2000))


def test_an_endless_chunked_body_is_cut_off(port: int) -> None:
    answer = say(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK * 17)
    assert status_of(answer) == 413


def test_a_body_shorter_than_announced_does_no_harm(port: int) -> None:
    say(port, HEAD + b'Content-Length: 500\r\n\r\n{"instruction"')


def test_a_body_longer_than_announced_is_read_to_its_announced_end(port: int) -> None:
    body = b'{"instruction": "retry"}'
    answer = say(port, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"x" * 100_000)
    assert not answer or status_of(answer) in (400, 409)


def test_many_announced_bytes_are_refused_before_they_come(port: int) -> None:
    answer = say(port, HEAD + b"Content-Length: 99999999999\r\n\r\n")
    assert not answer or status_of(answer) == 413
