"""Several API servers share a port; a second server of the same user must not join in."""

from __future__ import annotations

import errno
import socket

import pytest

from holdfast.hosts.vllm.owner.exit import refuse_shared_port

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
