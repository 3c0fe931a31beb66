"""NaN logits in one step: a fault of that step, and every stream ends with the tokens of a fault-free run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import FAULT, RECOVERED, Control
from holdfast.chaos.history import History
from holdfast.chaos.loads import every_feature, few_tokens, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec
from integration.helpers.servers import MANY_RETRIES, V1_ASYNC, V1_SYNC, V2_ASYNC, Kind, Servers, in_matrix, run
from integration.helpers.streams import assert_exact, faulted

pytestmark = [pytest.mark.host, pytest.mark.server]


@pytest.fixture(scope="module", params=[in_matrix(V1_SYNC), V1_ASYNC, V2_ASYNC], ids=lambda k: k.name)
def checked(request: pytest.FixtureRequest, servers: Servers) -> Iterator[tuple[Kind, Server]]:
    """A server that checks logits."""
    arguments = ("--check-logits", "--enable-fault-injection", *MANY_RETRIES)
    with servers.start(*arguments, kind=request.param) as server:
        yield request.param, server


def load_of(kind: Kind, salt: str) -> list[StreamSpec]:
    return every_feature(salt) if kind.runner == "v1" else few_tokens(salt)


def spoilt(request_index: int = 1, after_steps: int = 5, times: int = 1) -> InjectionSpec:
    return InjectionSpec(
        phase=Phase.FORWARD,
        kind=FaultKind.NAN,
        request_index=request_index,
        after_steps=after_steps,
        times=times,
    )


def test_a_step_without_numbers_is_repeated_and_changes_no_token(checked: tuple[Kind, Server]) -> None:
    """One row, then all of them, then several steps running; whatever was cached meanwhile is good."""
    kind, server = checked
    expected = run(Load(server.url, load_of(kind, fresh_salt())).run())
    for injection in (spoilt(), spoilt(request_index=0, after_steps=3), spoilt(after_steps=4, times=2)):
        salt = fresh_salt()
        found, events = run(faulted(server, load_of(kind, salt), injection))
        assert_exact(expected, found)
        assert_exact(expected, run(Load(server.url, load_of(kind, salt)).run()))
        assert_told(events, of_all=injection.request_index == 0)


def assert_told(events: list, of_all: bool) -> None:
    faults = [e["fault"] for e in events if e["kind"] == FAULT]
    assert {(f["fault_class"], f["error_type"]) for f in faults} == {("numerical", "NonFiniteLogits")}
    assert all(f["phase"] == "sample-end" and f["rank"] == 0 for f in faults)
    assert len(faults[0]["request_ids"]) == 1 or of_all
    assert [e for e in events if e["kind"] == RECOVERED]


def test_without_the_option_nobody_notices(servers: Servers) -> None:
    """What the option is for: the streams end as if all were well, with tokens that nobody computed."""
    server = servers.shared(V1_SYNC)
    specs = [StreamSpec(f"s{i}", f"The keeper of boat {i}", max_tokens=40, cache_salt=fresh_salt()) for i in range(4)]
    expected = run(Load(server.url, specs).run())

    async def unnoticed() -> tuple[list[History], int, int]:
        async with Control(server.url) as control:
            before = await control.last_sequence()
            await control.inject(spoilt(request_index=0))
            return await Load(server.url, specs).run(), before, await control.last_sequence()

    found, before, after = run(unnoticed())
    assert after == before + 1, "nothing happened but that the fault was armed"
    assert not compare_runs(expected, found).exact
