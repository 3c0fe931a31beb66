"""A rank comes to a rendezvous that closes at that moment: it is told at once, not when all its time is over."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import psutil
import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm")

from torch.distributed import TCPStore

from holdfast.core.config import HoldfastConfig, runtime_settings
from holdfast.core.errors import RecoveryFailed
from holdfast.core.protocol.events import EngineStatus, Event, EventKind, InstanceView
from holdfast.core.protocol.messages import Rendezvous
from holdfast.core.states import EngineState
from holdfast.hosts.vllm.communicators import rendezvous as module
from holdfast.hosts.vllm.communicators.rendezvous import (
    EPOCH_KEY,
    InstanceRendezvous,
    RendezvousHost,
    join_rendezvous,
)

pytestmark = pytest.mark.host

HEALTHY, RECOVERING = EngineState.HEALTHY, EngineState.RECOVERING


def a_recovery_of(engine_id: int) -> Event:
    return Event(sequence=1, at=0.0, kind=EventKind.ENGINE_RECOVERED, engine_id=engine_id)


def a_view(*states: EngineState) -> InstanceView:
    engines = tuple(
        EngineStatus(engine_id=n, status=state.on_the_wire, state=state, epoch=1, ranks=1)
        for n, state in enumerate(states)
    )
    return InstanceView(engines=engines, settings=runtime_settings(HoldfastConfig()))


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


@pytest.fixture
def rendezvous() -> Iterator[Rendezvous]:
    owner = RendezvousHost()
    yield owner.open(3)
    owner.close_all()


def foreign_client(rendezvous: Rendezvous) -> Any:
    return TCPStore(rendezvous.host, rendezvous.port, is_master=False, timeout=timedelta(seconds=5))


def test_a_foreign_client_that_sets_the_epoch_changes_nothing(rendezvous: Rendezvous) -> None:
    foreign = foreign_client(rendezvous)
    for key in (EPOCH_KEY, f"workers/3/{EPOCH_KEY}", f"/{EPOCH_KEY}"):
        foreign.set(key, "99")
    ranks = [join_rendezvous(rendezvous, "workers", 5.0) for _ in range(2)]
    ranks[0].set("address", "of the first rank")
    assert ranks[1].get("address") == b"of the first rank"


def test_a_rank_with_another_secret_finds_no_epoch(rendezvous: Rendezvous) -> None:
    """It belongs to another instance."""
    with pytest.raises(RecoveryFailed, match="is over"):
        join_rendezvous(msgspec.structs.replace(rendezvous, secret="another"), "workers", 2.0)


def test_the_store_listens_on_the_loopback_only(rendezvous: Rendezvous) -> None:
    listening = [
        c.laddr.ip
        for c in psutil.Process().net_connections("tcp")
        if c.laddr.port == rendezvous.port and c.status == "LISTEN"
    ]
    assert listening == ["127.0.0.1"]


def test_no_listener_stays_behind_a_closed_rendezvous() -> None:
    owner = RendezvousHost()
    for epoch in range(1, 21):
        opened = owner.open(epoch)
        owner.close(epoch)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((opened.host, opened.port), timeout=2.0).close()


def test_every_epoch_has_a_secret_of_its_own() -> None:
    owner = RendezvousHost()
    opened = [owner.open(epoch) for epoch in (1, 2)]
    assert opened[0].secret != opened[1].secret
    assert owner.open(2).secret == opened[1].secret
    owner.close_all()


def test_the_store_of_a_group_closes_once_the_whole_group_serves_again() -> None:
    rendezvous = InstanceRendezvous()
    opened = {group: rendezvous.open(group, 1) for group in ((0, 1), (2,))}
    recovered = a_recovery_of(0)
    rendezvous.close_used(recovered, a_view(HEALTHY, RECOVERING, RECOVERING))
    for one in opened.values():
        join_rendezvous(one, "workers", 5.0)
    rendezvous.close_used(recovered, a_view(HEALTHY, HEALTHY, RECOVERING))
    with pytest.raises(RecoveryFailed, match="is gone"):
        join_rendezvous(opened[0, 1], "workers", 5.0)
    join_rendezvous(opened[2,], "workers", 5.0)
    rendezvous.close_all()


def test_the_store_of_a_group_stays_open_where_connections_are_made_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL connects when a communicator is first used."""
    monkeypatch.setattr(type(module.current_platform), "is_cpu", lambda self: False)
    rendezvous = InstanceRendezvous()
    opened = rendezvous.open((0,), 1)
    rendezvous.close_used(a_recovery_of(0), a_view(HEALTHY))
    join_rendezvous(opened, "workers", 5.0)
    rendezvous.close_all()


def test_the_secret_is_in_no_log(rendezvous: Rendezvous) -> None:
    assert rendezvous.secret
    assert rendezvous.secret not in f"{rendezvous!r} {rendezvous}"
