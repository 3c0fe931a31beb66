"""Nobody is accused of a stall who only has much to do: half an hour of mixed load, and ten times too many requests.

How long they take: `HOLDFAST_MIXED_LOAD_MINUTES` and `HOLDFAST_SATURATION_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import aiohttp
import pytest

from holdfast.bench.topologies import MOE_EP, ONE, PP2, TP2, Topology
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import FAULT, LOST, RECOVERED, Control
from holdfast.chaos.history import History
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import MODEL_NAME, Load, StreamSpec
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec
from integration.helpers.servers import NO_LIMITS, V1_ASYNC, V1_SYNC, Kind, Servers, run

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow, pytest.mark.timed]

MIXED_LOAD_S = 60 * float(os.environ.get("HOLDFAST_MIXED_LOAD_MINUTES", "3"))
SATURATION_S = float(os.environ.get("HOLDFAST_SATURATION_S", "120"))
SEED = 5
LONGEST_PROMPT_WORDS = 2000  # of a context of 2,048 tokens, read in one step of 2,048
ONE_STEP_PROMPTS = ("--max-num-batched-tokens", "2048")
RANKS_SUSPECTED = "make no progress"  # what the log says as soon as ranks are suspected


# ---- mixed load


def hogs() -> list[subprocess.Popen[bytes]]:
    """As many processes that compute for ever as there are processors."""
    return [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def hogs_now_and_then(chance: random.Random) -> AsyncIterator[None]:
    """Processes that compute for ever, for tens of seconds each time."""

    async def come_and_go() -> None:
        while True:
            there = hogs()
            try:
                await asyncio.sleep(chance.uniform(10, 40))
            finally:
                end(there)
            await asyncio.sleep(chance.uniform(2, 10))

    coming = asyncio.create_task(come_and_go())
    try:
        yield
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


def longest_prompts(count: int) -> list[StreamSpec]:
    salt = fresh_salt()
    return [
        StreamSpec(f"long {i}", f"{i} " + "storm " * LONGEST_PROMPT_WORDS, max_tokens=8, cache_salt=salt)
        for i in range(count)
    ]


def burst(count: int) -> list[StreamSpec]:
    salt = fresh_salt()
    return [StreamSpec(f"burst {i}", f"Count the bells {i}:", max_tokens=20, cache_salt=salt) for i in range(count)]


@dataclass
class Mixed:
    """What was asked of one server in random order, and what was wrong with its answers."""

    server: Server
    reference: list[History] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    longest_gap_s: float = 0.0

    async def run_for(self, seconds: float, chance: random.Random, control: Control) -> list[dict]:
        """The accusations, at the latest when the time is over: one is enough."""
        before, accusations = await control.last_sequence(), list[dict]()
        self.reference = await Load(self.server.url, every_feature(fresh_salt())).run()
        until = time.monotonic() + seconds
        acts = {self._decode: 5, self._prefills: 3, self._burst: 2, self._both: 2, self._pause: 3}
        while time.monotonic() < until and not accusations:
            [act] = chance.choices(list(acts), list(acts.values()))
            self.asked[act.__name__.strip("_")] += 1
            await act(chance)
            accusations = [e for e in await control.events(before) if e["kind"] in {FAULT, LOST}]
        return accusations

    async def _decode(self, chance: random.Random) -> None:
        found = await self._ask(every_feature(fresh_salt()))
        self.wrong += compare_runs(self.reference, found).reasons

    async def _prefills(self, chance: random.Random) -> None:
        await self._ask(longest_prompts(chance.randint(1, 6)))

    async def _burst(self, chance: random.Random) -> None:
        await self._ask(burst(chance.randint(32, 96)))

    async def _both(self, chance: random.Random) -> None:
        await asyncio.gather(self._decode(chance), self._prefills(chance))

    async def _pause(self, chance: random.Random) -> None:
        await asyncio.sleep(chance.uniform(0.5, 12))

    async def _ask(self, specs: list[StreamSpec]) -> list[History]:
        found = await Load(self.server.url, specs, timeout_s=300).run()
        self.wrong += [f"{one.name}: {one.error}" for one in found if one.error is not None]
        self.longest_gap_s = max([self.longest_gap_s, *(gap for one in found for gap in one.gaps_s())])
        return found


LOADED = [(ONE, V1_ASYNC), (TP2, V1_SYNC), (PP2, V1_SYNC), (MOE_EP, V1_SYNC)]


@pytest.mark.matrix
@pytest.mark.timeout(MIXED_LOAD_S + 600)
@pytest.mark.parametrize(("topology", "kind"), LOADED, ids=lambda p: p.name)
def test_no_rank_is_declared_hung_in_a_mixed_load_beside_processes_that_take_every_processor(
    servers: Servers, topology: Topology, kind: Kind
) -> None:
    chance = random.Random(SEED)

    async def scenario(server: Server) -> tuple[Mixed, list[dict]]:
        mixed = Mixed(server)
        async with Control(server.url, timeout_s=60) as control, hogs_now_and_then(chance):
            return mixed, await mixed.run_for(MIXED_LOAD_S, chance, control)

    with servers.of(topology, kind, ONE_STEP_PROMPTS) as server:
        mixed, accusations = run(scenario(server))
        said = server.spec.log.read_text(errors="replace")
    print(f"{topology.name}: {dict(mixed.asked)}, longest gap {mixed.longest_gap_s:.1f} s")
    assert accusations == []
    assert RANKS_SUSPECTED not in said
    assert mixed.wrong == []
    assert all(mixed.asked[what] for what in ("decode", "prefills", "burst", "both", "pause"))


# ---- saturation

STREAMS_AT_ONCE = 32  # what the server's arguments allow
ANSWER_TOKENS = 150
PATIENCE_S = (1.0, 20.0)  # of clients, who then go away: were it the same for all, who is served would just have gone
PROBE_S = 0.5
ANSWERED_WITHIN_S = 30.0  # what a probe takes is printed
TOO_MANY = 10


@dataclass
class Asked:
    """How requests ended."""

    answered: int = 0
    gave_up: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Crowd:
    """Clients that come at a rate of their own, whether or not the server keeps up."""

    def __init__(self, server: Server) -> None:
        # httpx looks at every connection for each request: with thousands it would be the crowd that is saturated.
        connector, patient = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
        self._client = aiohttp.ClientSession(server.url, connector=connector, timeout=patient)
        self.asked = Asked()
        self._number = 0
        self._chance = random.Random(SEED)

    async def __aenter__(self) -> Crowd:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def rate_served(self, seconds: float) -> float:
        """Requests a second that are answered where as many as can run do at all times."""
        until, asked = time.monotonic() + seconds, Asked()

        async def one_after_another() -> None:
            while time.monotonic() < until:
                await self._ask(asked, 60.0)

        await asyncio.gather(*(one_after_another() for _ in range(STREAMS_AT_ONCE)))
        return asked.answered / seconds

    async def come(self, per_s: float, seconds: float) -> None:
        """Ask at a steady rate; each client gives up when it has waited too long."""
        began, clients = time.monotonic(), list[asyncio.Task[None]]()
        while (passed_s := time.monotonic() - began) < seconds:
            for _ in range(int(per_s * passed_s) - len(clients)):
                clients.append(asyncio.create_task(self._ask(self.asked, self._chance.uniform(*PATIENCE_S))))
            await asyncio.sleep(0.05)
        await asyncio.gather(*clients)

    async def _ask(self, asked: Asked, extra_wait_s: float) -> None:
        self._number += 1
        body = {
            "model": MODEL_NAME,
            "prompt": f"The bells of {self._number}",
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        try:
            async with asyncio.timeout(extra_wait_s):
                async with self._client.post("/v1/completions", json=body) as answer:
                    await answer.read()
        except TimeoutError:
            asked.gave_up += 1
        except aiohttp.ClientError as error:
            asked.refused[type(error).__name__] += 1
        else:
            asked.answered += answer.ok
            if not answer.ok:
                asked.refused[str(answer.status)] += 1


# A process of its own: among thousands of requests this one would be late itself.
PROBE = """
import json, sys, time, httpx
url, path, period_s, timeout_s = sys.argv[1:]
with httpx.Client(base_url=url, timeout=float(timeout_s), trust_env=False) as client:
    while True:
        asked_at = time.time()
        try:
            code = client.get(path).status_code
        except httpx.HTTPError:
            code = 0
        print(json.dumps([asked_at, path, code, time.time() - asked_at]), flush=True)
        time.sleep(float(period_s))
"""


@dataclass
class Probes:
    """What liveness and readiness answered, when, and how long that took."""

    seen: list[tuple[float, str, int, float]] = field(default_factory=list)

    @contextlib.contextmanager
    def watching(self, server: Server) -> Iterator[None]:
        probing = [self._probe(server, path) for path in ("/health", "/fault_tolerance/ready")]
        try:
            yield
        finally:
            for process in probing:
                process.kill()
                said, _ = process.communicate()
                self.seen += [tuple(json.loads(line)) for line in said.splitlines() if line.endswith("]")]

    @staticmethod
    def _probe(server: Server, path: str) -> subprocess.Popen[str]:
        about = (server.url, path, str(PROBE_S), str(ANSWERED_WITHIN_S))
        return subprocess.Popen([sys.executable, "-c", PROBE, *about], stdout=subprocess.PIPE, text=True)

    def codes(self, path: str, begin: float = 0.0, end: float = float("inf")) -> Counter[int]:
        """Of the probes that began and ended between two times."""
        return Counter(code for at, p, code, took in self.seen if p == path and begin <= at and at + took <= end)

    def slowest_s(self) -> float:
        return max(took for *_, took in self.seen)


@pytest.fixture(params=[(ONE, V1_ASYNC), (TP2, V1_SYNC)], ids=lambda p: p[0].name)
def crowded(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    topology, kind = request.param
    with servers.of(topology, kind, NO_LIMITS) as server:
        yield server


@pytest.mark.matrix
@pytest.mark.timeout(SATURATION_S + 600)
def test_under_ten_times_more_requests_than_it_serves_a_server_looks_alive_until_it_hangs(crowded: Server) -> None:
    async def scenario() -> None:
        async with Control(crowded.url, timeout_s=60) as control, Crowd(crowded) as crowd:
            rate = await crowd.rate_served(30.0)
            before, probes = await control.last_sequence(), Probes()
            with probes.watching(crowded):
                coming = asyncio.create_task(crowd.come(TOO_MANY * rate, SATURATION_S + 30))
                await asyncio.sleep(SATURATION_S / 2)
                until_half = crowd.asked.answered
                await asyncio.sleep(SATURATION_S / 2)
                events, busy_until, asked = await control.events(before), time.time(), copy.deepcopy(crowd.asked)
                print(f"{rate:.1f} requests/s served, {TOO_MANY * rate:.0f} asked: {asked}")
                await control.inject(InjectionSpec(phase=Phase.FORWARD, kind=FaultKind.HANG))
                await coming
                recovered = await control.wait_recovered(before, timeout_s=60)
        print(f"slowest probe {probes.slowest_s():.2f} s")
        assert [e for e in events if e["kind"] in {FAULT, LOST}] == []
        assert set(probes.codes("/health")) == {200}
        assert set(probes.codes("/fault_tolerance/ready", end=busy_until)) == {200}
        assert asked.gave_up > asked.answered > until_half > 0, "it is busy all the while"
        assert dict(asked.refused) == {}
        found, back = (next(e for e in recovered if e["kind"] == kind)["at"] for kind in (FAULT, RECOVERED))
        hung = probes.codes("/fault_tolerance/ready", begin=found, end=back)
        assert set(hung) == {503}
        assert sum(hung.values()) > 0

    run(scenario())
