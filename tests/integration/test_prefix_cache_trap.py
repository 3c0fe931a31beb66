"""Blocks enter the prefix cache before they are computed: what a failed step was to write must leave it."""

from __future__ import annotations

import pytest

from holdfast.chaos.checker import RunComparison, compare_runs
from holdfast.chaos.control import Control
from holdfast.chaos.loads import LONG, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.servers import V1_SYNC, Servers, run

pytestmark = [pytest.mark.host, pytest.mark.server]

# The first step of a prompt raises before the model has written anything.
FIRST_STEP = InjectionSpec(phase=Phase.STEP_START)


def long_prompt(salt: str) -> list[StreamSpec]:
    return [StreamSpec("victim", LONG, max_tokens=40, cache_salt=salt)]


async def _run_into_fault(server: Server, salt: str) -> RunComparison:
    expected = await Load(server.url, long_prompt(fresh_salt())).run()
    async with Control(server.url) as control:
        await control.inject(FIRST_STEP)
    victim = await Load(server.url, long_prompt(salt)).run()
    next_client = await Load(server.url, long_prompt(salt)).run()
    verdicts = [compare_runs(expected, found) for found in (victim, next_client)]
    return RunComparison(tuple(s for v in verdicts for s in v.streams))


def test_the_victim_and_the_next_client_with_its_prompt_get_the_right_tokens(servers: Servers) -> None:
    verdict = run(_run_into_fault(servers.shared(V1_SYNC), fresh_salt()))
    assert verdict.exact, verdict.reasons


@pytest.mark.matrix
def test_without_eviction_both_get_wrong_tokens(servers: Servers) -> None:
    """The trap is real: if this test ever fails, eviction has become unnecessary or untested."""
    with servers.start("--enable-fault-injection", "--unsafe-keep-suspect-blocks") as server:
        verdict = run(_run_into_fault(server, fresh_salt()))
    assert [stream.changed > 0 for stream in verdict.streams] == [True, True]
