"""Chats with and without pictures are exact after faults, on a model with rotary positions of pictures (M-RoPE)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import count

import pytest

from holdfast.chaos.control import Control
from holdfast.chaos.server import Server
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.engines import engines_of
from integration.helpers.pictures import Chat, ChatLoad, chats, differences
from integration.helpers.processes import workers_of
from integration.helpers.servers import NO_LIMITS, V1_ASYNC, V1_SYNC, V2_SYNC, Kind, Servers, in_matrix, run, well
from support.image_models import make_mrope

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow]

RECOVERED_WITHIN_S = 120.0
TOKENS = {"v1": 60, "v2": 14}  # Triton's interpreter is slow

_pictures = count(1, 100)  # every load has pictures that the server has never seen

Hurt = Callable[[Server, Control], Awaitable[None]]


@pytest.fixture(scope="module", params=[V1_ASYNC, in_matrix(V1_SYNC), in_matrix(V2_SYNC)], ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture(scope="module")
def server(servers: Servers, kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = make_mrope(tmp_path_factory.mktemp("pictures"))
    standby = ("--standby-workers", "1", "--standby-preload")
    with servers.of_model(model, "--enable-fault-injection", *NO_LIMITS, *standby, kind=kind) as started:
        yield started


def raises(phase: Phase, after_steps: int = 0) -> Hurt:
    async def hurt(server: Server, control: Control) -> None:
        await control.inject(InjectionSpec(phase=phase, after_steps=after_steps))

    return hurt


async def kills_worker(server: Server, control: Control) -> None:
    os.kill(workers_of(server)[0, 0], signal.SIGKILL)


async def kills_engine_core(server: Server, control: Control) -> None:
    os.kill((await engines_of(server))[0]["pid"], signal.SIGKILL)


@dataclass(frozen=True)
class Harm:
    """A harm to a server, once every chat has some tokens; without any, before the load begins."""

    hurt: Hurt
    after_tokens: int = 5


HARMS = {
    "before the encoder": Harm(raises(Phase.STEP_START), 0),
    "killed worker": Harm(kills_worker),
    "killed engine core": Harm(kills_engine_core),
}
FURTHER_HARMS = {
    "after the first forward pass": Harm(raises(Phase.STEP_END), 0),
    "decode": Harm(raises(Phase.FORWARD, after_steps=8), 0),
    "engine core killed before the first token": Harm(kills_engine_core, 0),
}


async def through(server: Server, harm: Harm, asked: list[Chat]) -> list[Chat]:
    """Return the answers of a load that is hurt."""
    load = ChatLoad(server.url, asked)
    async with Control(server.url) as control:
        if harm.hurt is kills_worker:
            await control.await_standbys()
        before = await control.last_sequence()
        if not harm.after_tokens:
            await harm.hurt(server, control)
        running = asyncio.create_task(load.run())
        if harm.after_tokens:
            await load.until(harm.after_tokens)
            await harm.hurt(server, control)
        found = await running
        await control.wait_recovered(before, timeout_s=RECOVERED_WITHIN_S)
        return found


@pytest.mark.parametrize(
    "harm", [*HARMS, *(in_matrix(name) for name in FURTHER_HARMS)], ids=lambda name: name.replace(" ", "-")
)
def test_chats_with_and_without_pictures_are_exact_and_known_pictures_stay_usable(
    server: Server, kind: Kind, harm: str
) -> None:
    asked = chats(next(_pictures), TOKENS[kind.runner])
    found = run(through(server, (HARMS | FURTHER_HARMS)[harm], asked))
    expected = run(ChatLoad(server.url, asked).run())  # the same pictures again
    assert differences(expected, found) == []
    assert len({tuple(chat.token_ids) for chat in found}) == len(found)
    assert run(well(server)) is None
