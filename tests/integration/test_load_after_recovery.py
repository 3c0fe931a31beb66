"""Requests that move with long histories do not starve those that were with the sibling all the while."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator

import pytest

from holdfast.bench.topologies import DP2
from holdfast.chaos.checker import compare_runs, gaps_touching_s, spread_of
from holdfast.chaos.history import History
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from integration.helpers.engines import kill_in_mid_stream, wait_healthy
from integration.helpers.servers import V1_SYNC, Servers, in_matrix, run
from integration.helpers.streams import interruptions

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.spawned, pytest.mark.timed]

MOVING, STAYING = 16, 6
PROMPT_TOKENS = 1200
TOKENS = 800
WHOLE_STEP = 2048
LOST, SIBLING = 0, 1


def load(server: Server) -> Load:
    """Long prompts with one engine core, short ones with the other."""
    salt = fresh_salt()
    moving = [
        StreamSpec(f"moves {i}", f"{i} " + "storm " * PROMPT_TOKENS, 120, cache_salt=salt, data_parallel_rank=LOST)
        for i in range(MOVING)
    ]
    staying = [
        StreamSpec(f"stays {i}", f"The keeper {i}", TOKENS, cache_salt=salt, data_parallel_rank=SIBLING)
        for i in range(STAYING)
    ]
    return Load(server.url, moving + staying, timeout_s=120)


@pytest.fixture(params=[512, in_matrix(128), in_matrix(0)], ids=lambda tokens: f"{tokens}-tokens")
def bound(request: pytest.FixtureRequest) -> int:
    tokens: int = request.param
    return tokens


@pytest.fixture
def server(servers: Servers, bound: int) -> Iterator[Server]:
    arguments = ("--max-num-batched-tokens", str(WHOLE_STEP), "--recovery-prefill-tokens", str(bound))
    with servers.of(DP2, V1_SYNC, arguments) as started:
        yield started


def at_last_back_s(moved: list[History], killed_at: float) -> float:
    """When the last of those that moved got its first token after the kill."""
    return max(next(at for at in h.arrivals_s if at > killed_at) for h in moved)


async def through_a_kill(server: Server) -> tuple[list[History], float]:
    running = load(server)
    streams = asyncio.create_task(running.run())
    await started(running)
    killed_at = await kill_in_mid_stream(server, running, LOST)
    return await streams, killed_at


async def started(running: Load) -> None:
    async with asyncio.timeout(60):
        while not all(h.token_ids for h in running.histories):
            await asyncio.sleep(0.005)


def test_who_stays_decodes_on_while_who_moved_is_computed_again(server: Server, bound: int) -> None:
    reference = run(load(server).run())
    observed, killed_at = run(through_a_kill(server))
    verdict = compare_runs(reference, observed)
    assert verdict.exact, verdict.reasons
    moved, stayed = observed[:MOVING], observed[MOVING:]
    back_at = at_last_back_s(moved, killed_at)
    gaps = [gap for h in stayed for gap in gaps_touching_s(h, killed_at, back_at)]
    got = min(sum(killed_at < at <= back_at for at in h.arrivals_s) for h in stayed)
    waits, gap = spread_of(interruptions(moved, killed_at)), spread_of(gaps)
    usual = spread_of([g for h in reference[MOVING:] for g in h.gaps_s()])
    print(
        f"{bound} tokens a step: {MOVING} moved within {back_at - killed_at:.2f} s, "
        f"waits {waits.median:.2f} s median, {waits.maximum:.2f} s max; {STAYING} stayed, {got} tokens meanwhile: "
        f"gaps {gap.median * 1000:.0f} ms median, {gap.maximum * 1000:.0f} ms max "
        f"(usually {usual.median * 1000:.0f} and {usual.maximum * 1000:.0f})"
    )
    if bound:
        steps = MOVING * PROMPT_TOKENS / bound
        assert got >= 0.8 * steps, "they are in every step that computes a part of the histories"
        assert_told(server)
    run(wait_healthy(server))


def assert_told(server: Server) -> None:
    deadline = time.monotonic() + 10
    while not (told := re.search(r"(\d+) requests of \d+ tokens in all were computed again", log_of(server))):
        assert time.monotonic() < deadline, "the log says when the histories are computed"
        time.sleep(0.1)
    assert int(told[1]) == MOVING


def log_of(server: Server) -> str:
    return server.spec.log.read_text(errors="replace")
