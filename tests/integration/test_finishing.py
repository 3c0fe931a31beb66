"""A failed rank takes part in the rest of its step: whatever line raises, no token changes and little is broken."""

from __future__ import annotations

import random
import statistics

import pytest

from holdfast.bench.instrument import precise_client
from holdfast.bench.topologies import PP2, TP2, Topology
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import FAULT, RECOVERED, Control
from holdfast.chaos.history import History
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.servers import V1_ASYNC, V1_SYNC, Kind, Servers, run, served_name

pytestmark = [pytest.mark.host, pytest.mark.server]

LINES = 4000  # of the host's Python code in a step, about
SHORT, LONG = 8, 50  # places
FAULTS_IN_A_LOAD = 4
SERVED = [(TP2, V1_ASYNC)]


def load(salt: str) -> list[StreamSpec]:
    return [
        StreamSpec(
            f"s{i}",
            f"The keeper of boat {i}",
            max_tokens=60,
            cache_salt=salt,
            temperature=0.9 * (i % 2),
            seed=i,
            repetition_penalty=1.1,
        )
        for i in range(8)
    ]


async def _raise_in(
    server: Server, topology: Topology, dice: random.Random, places: int
) -> tuple[list[str], list[dict], list[float]]:
    """Return what differs from the fault-free run, the events, and the longest wait of a stream for each load."""
    wrong: list[str] = []
    waits: list[float] = []
    expected = await Load(server.url, load(fresh_salt())).run()
    async with Control(server.url) as control:
        before = await control.last_sequence()
        for number in range(places // FAULTS_IN_A_LOAD):
            for fault in range(FAULTS_IN_A_LOAD):
                engine, rank = topology.places[(number + fault) % len(topology.places)]
                spec = InjectionSpec(
                    phase=Phase.STEP_START,
                    engine_id=engine,
                    rank=rank,
                    after_steps=6 + 12 * fault,
                    lines=dice.randint(1, LINES),
                )
                await control.inject(spec)
            with precise_client():
                found = await Load(server.url, load(fresh_salt())).run()
            wrong += _differences(expected, found)
            waits.append(max(max(one.gaps_s()) for one in found))
            wrong += _differences(expected, await Load(server.url, load(fresh_salt())).run())
        events = await control.wait_recovered(before)
        assert await control.unwell() is None
    return wrong, events, waits


def _differences(expected: list[History], found: list[History]) -> list[str]:
    return list(compare_runs(expected, found).reasons)


def _check(server: Server, topology: Topology, seed: int, places: int) -> None:
    wrong, events, waits = run(_raise_in(server, topology, random.Random(seed), places))
    assert wrong == []
    faults = [e for e in events if e["kind"] == FAULT]
    rebuilt = [e for e in events if e["kind"] == RECOVERED and e["report"]["rebuild_s"] > 0.01]
    print(f"{len(faults)} faults, {len(rebuilt)} with a rebuild, longest waits {statistics.median(waits):.3f} s")
    assert len(faults) >= places // 2  # a line may be after the end of its load, or in code that expects errors
    assert len(rebuilt) <= len(faults) // 4


@pytest.mark.parametrize("served", SERVED, ids=served_name)
def test_an_exception_at_any_line_changes_no_token_and_breaks_little(
    servers: Servers, served: tuple[Topology, Kind]
) -> None:
    _check(servers.shared_of(*served), served[0], seed=1, places=SHORT)


@pytest.mark.matrix
@pytest.mark.parametrize("served", [(TP2, V1_ASYNC), (TP2, V1_SYNC), (PP2, V1_SYNC)], ids=served_name)
def test_exceptions_at_many_lines_change_no_token(servers: Servers, served: tuple[Topology, Kind]) -> None:
    _check(servers.shared_of(*served), served[0], seed=2, places=LONG)


# ---- what the checks are for


async def _wrong_streams(server: Server, phase: Phase) -> int:
    """Count the streams with a token that the fault-free run does not have there. Ends early with the server."""
    wrong = 0
    expected = await Load(server.url, load(fresh_salt())).run()
    async with Control(server.url) as control:
        for number in range(6):
            before = await control.last_sequence()
            await control.inject(InjectionSpec(phase=phase, rank=1, after_steps=20 + 5 * number))
            for _ in range(2):
                found = await Load(server.url, load(fresh_salt()), timeout_s=60).run()
                pairs = zip(expected, found, strict=True)
                wrong += sum(f.token_ids != e.token_ids[: len(f.token_ids)] for e, f in pairs)
            if wrong or server.exit_code is not None:
                break
            await control.wait_recovered(before)
    return wrong


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("kind", "unsafe", "goes_wrong"),
    [
        (V1_SYNC, ["--unsafe-skip-exit-check"], True),
        (V1_ASYNC, ["--unsafe-send-nan"], True),
        (V1_SYNC, ["--unsafe-send-nan"], False),  # the next step writes the slot again
    ],
    ids=["no-exit-check", "nan-sent", "nan-sent-sync"],
)
def test_without_a_check_or_with_nan_streams_carry_wrong_tokens(
    servers: Servers, kind: Kind, unsafe: list[str], goes_wrong: bool
) -> None:
    with servers.of(TP2, kind, unsafe) as server:
        assert (run(_wrong_streams(server, Phase.FORWARD)) > 0) is goes_wrong
