"""Several API servers share a port; a second server of the same user must not join in."""

from __future__ import annotations

import errno
import socket
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.owner.exit import _serve_many_then_exit, refuse_shared_port
from holdfast.hosts.vllm.process.settings import KEY
from holdfast.hosts.vllm.serving.serve_command import _in_use

SHARED = (socket.SO_REUSEADDR, socket.SO_REUSEPORT)  # as the host's launcher of several API servers listens


def listening(*options: int) -> socket.socket:
    made = socket.socket()
    for option in options:
        made.setsockopt(socket.SOL_SOCKET, option, 1)
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_port_that_another_server_shares_among_its_processes_is_refused(host: str) -> None:
    with listening(*SHARED) as other, socket.socket() as joining:
        port = other.getsockname()[1]
        for option in SHARED:
            joining.setsockopt(socket.SOL_SOCKET, option, 1)
        joining.bind((host, port))  # what the host would do, without an error
        with pytest.raises(OSError) as caught:
            refuse_shared_port(host, port)
    assert caught.value.errno == errno.EADDRINUSE


def test_a_free_port_and_a_port_of_ended_connections_are_not_refused() -> None:
    with listening(socket.SO_REUSEADDR) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()  # closed first: the connection lingers in TIME_WAIT on the server's port
    refuse_shared_port("127.0.0.1", port)


def test_the_hosts_launcher_starts_nothing_on_the_port_of_another_server() -> None:
    started: list[Any] = []
    with listening(*SHARED) as other:
        args = SimpleNamespace(host=None, port=other.getsockname()[1], uds=None, additional_config={KEY: {}})
        with pytest.raises(OSError, match="in use"):
            _serve_many_then_exit(started.append, args)
        assert started == []
        args.additional_config = None  # without protection the host decides
        _serve_many_then_exit(started.append, args)
    assert started == [args]


def test_what_is_in_use_is_named() -> None:
    assert "port 8000 is in use" in str(_in_use(SimpleNamespace(uds=None, port=8000)))  # type: ignore[arg-type]
    assert "the socket /run/vllm is there already" in str(_in_use(SimpleNamespace(uds="/run/vllm", port=8000)))  # type: ignore[arg-type]
