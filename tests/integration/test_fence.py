"""What the fence is for: without it a rank steps on after its own fault, and streams carry wrong tokens."""

from __future__ import annotations

import pytest

from holdfast.bench.topologies import TP2, Topology
from holdfast.chaos.control import Control
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.servers import V1_ASYNC, Kind, Servers, run, served_name

pytestmark = [pytest.mark.host, pytest.mark.server]

FAULTS = 6


def load(salt: str) -> list[StreamSpec]:
    return [StreamSpec(f"s{i}", f"The keeper of boat {i}", max_tokens=60, cache_salt=salt) for i in range(8)]


async def _wrong_streams(server: Server) -> int:
    """How many streams were given a token that the fault-free run does not have there. Ends early with the server."""
    wrong = 0
    expected = await Load(server.url, load(fresh_salt())).run()
    async with Control(server.url) as control:
        for number in range(FAULTS):
            before = await control.last_sequence()
            await control.inject(InjectionSpec(phase=Phase.STEP_START, rank=1, after_steps=20 + 5 * number))
            found = await Load(server.url, load(fresh_salt()), timeout_s=60).run()
            pairs = zip(expected, found, strict=True)
            wrong += sum(f.token_ids != e.token_ids[: len(f.token_ids)] for e, f in pairs)
            if wrong or server.exit_code is not None:
                break
            await control.wait_recovered(before)
    return wrong


@pytest.mark.matrix
def test_without_the_fence_streams_carry_wrong_tokens(servers: Servers) -> None:
    with servers.of(TP2, V1_ASYNC, ["--unsafe-skip-fence"]) as server:
        assert run(_wrong_streams(server)) > 0


@pytest.mark.parametrize("served", [(TP2, V1_ASYNC)], ids=served_name)
def test_with_the_fence_the_same_faults_change_no_token(servers: Servers, served: tuple[Topology, Kind]) -> None:
    assert run(_wrong_streams(servers.shared_of(*served))) == 0
