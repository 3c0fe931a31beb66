"""A rank comes to a rendezvous that closes at that moment: it is told at once, not when all its time is over."""

from __future__ import annotations

import socket
import struct
import threading
import time

import pytest

from holdfast.core.errors import RecoveryFailed
from holdfast.core.protocol.messages import Rendezvous
from holdfast.hosts.vllm.communicators.rendezvous import join_rendezvous

pytestmark = pytest.mark.host

RESET = struct.pack("ii", 1, 0)  # linger for no time: closing resets


def close_on_second_visit(listener: socket.socket) -> None:
    listener.accept()[0].close()
    visitor = listener.accept()[0]
    listener.close()
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    visitor.close()


def test_a_store_that_closes_while_a_rank_connects_is_not_waited_for() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=close_on_second_visit, args=(listener,), daemon=True).start()
    began = time.monotonic()
    with pytest.raises(RecoveryFailed, match="epoch 3 is gone"):
        join_rendezvous(Rendezvous("127.0.0.1", listener.getsockname()[1], 3), "workers", 30.0)
    assert time.monotonic() - began < 5.0
