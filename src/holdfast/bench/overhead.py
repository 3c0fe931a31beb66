"""Measures what Holdfast costs while nothing fails: the same load on a plain host and on a protected one.

Both servers run for the whole measurement, one idle while the other works, and bursts alternate as A B B A. Other
influences of the machine (tenants, clock speed, temperature) then affect both alike, and pairs are compared one by one.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from holdfast.bench.instrument import precise_client
from holdfast.bench.loads import SERVER_ARGUMENTS, LoadKind, make_load
from holdfast.bench.machine import Machine, describe_machine
from holdfast.chaos.checker import RunComparison, compare_runs, percentile, spread_of
from holdfast.chaos.history import History
from holdfast.chaos.processes import session_usage
from holdfast.chaos.server import Server, ServerSpec
from holdfast.chaos.streams import Load

PROTECTION_ARGUMENTS = ("--external-fault-notify-port", "0")
WARM_UP_BURSTS = 3
METRICS = ("tokens_per_s", "inter_token_p50_ms", "inter_token_p99_ms", "server_cpu_ms_per_token")


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a load on a single server. The processor time is that of all the server's processes."""

    tokens_per_s: float
    inter_token_p50_ms: float
    inter_token_p99_ms: float
    server_cpu_ms_per_token: float


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Two bursts, neighbouring in time."""

    first: str
    off: Burst
    on: Burst


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """On divided by off, over the pairs. The interval is the 95 % confidence interval of the median."""

    metric: str
    median: float
    minimum: float
    maximum: float
    quartile_low: float
    quartile_high: float
    interval_low: float
    interval_high: float
    off_median: float
    on_median: float


class AddedTime(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds that Holdfast adds to a step: the median over the pairs, with the median's 95 % interval.

    A step yields one token for each running stream, so a step's time is the median gap between a stream's tokens.
    """

    median_us: float
    interval_low_us: float
    interval_high_us: float


class OverheadDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `bench overhead --json`."""

    benchmark: str
    version: int
    machine: Machine
    streams: int
    tokens_per_stream: int
    server_arguments: tuple[str, ...]
    client_scheduled_at_once: bool
    pairs: tuple[Pair, ...]
    ratios: tuple[Ratio, ...]
    added_per_step: AddedTime
    problems: tuple[str, ...]


@dataclass(frozen=True)
class OverheadSettings:
    """Settings of a run. `say` receives progress in words."""

    model: Path
    logs: Path
    pairs: int = 15
    streams: int = 8
    tokens: int = 400
    say: Callable[[str], None] = print


def measure_overhead(settings: OverheadSettings) -> OverheadDocument:
    """Start both servers, alternate bursts between them, and compare pair by pair."""
    machine = describe_machine()
    with ExitStack() as running:
        off, on = (running.enter_context(_start(settings, holdfast)) for holdfast in (False, True))
        with precise_client() as prompt:
            pairs, comparison = asyncio.run(_run_pairs(off, on, settings))
    return OverheadDocument(
        benchmark="overhead",
        version=1,
        machine=machine,
        streams=settings.streams,
        tokens_per_stream=settings.tokens,
        server_arguments=SERVER_ARGUMENTS,
        client_scheduled_at_once=prompt,
        pairs=tuple(pairs),
        ratios=tuple(ratio_of(metric, pairs) for metric in METRICS),
        added_per_step=added_per_step(pairs),
        problems=comparison.reasons,
    )


def _start(settings: OverheadSettings, holdfast: bool) -> Server:
    settings.say(f"starting the {'protected' if holdfast else 'plain'} server")
    return Server(_spec(settings, holdfast=holdfast)).start()


def _spec(settings: OverheadSettings, *, holdfast: bool) -> ServerSpec:
    arguments = (*SERVER_ARGUMENTS, *PROTECTION_ARGUMENTS) if holdfast else SERVER_ARGUMENTS
    log = settings.logs / ("overhead-on.log" if holdfast else "overhead-off.log")
    return ServerSpec(model=settings.model, log=log, holdfast=holdfast, arguments=arguments)


async def _run_pairs(off: Server, on: Server, settings: OverheadSettings) -> tuple[list[Pair], RunComparison]:
    """Run all pairs, and compare the answers of the protected server with the plain server's."""
    for _ in range(WARM_UP_BURSTS):
        plain = await _load(off, settings).run()
        protected = await _load(on, settings).run()
    comparison = compare_runs(plain, protected)
    pairs = []
    for number in range(settings.pairs):
        pairs.append(await _run_pair(off, on, settings, on_first=number % 2 == 1))
        ratio = pairs[-1].on.tokens_per_s / pairs[-1].off.tokens_per_s
        settings.say(f"pair {number + 1} of {settings.pairs}: {ratio:.3f} of the plain server's tokens/s")
    return pairs, comparison


async def _run_pair(off: Server, on: Server, settings: OverheadSettings, *, on_first: bool) -> Pair:
    if on_first:
        protected = await _run_burst(on, settings)
        return Pair(first="on", off=await _run_burst(off, settings), on=protected)
    plain = await _run_burst(off, settings)
    return Pair(first="off", off=plain, on=await _run_burst(on, settings))


def _load(server: Server, settings: OverheadSettings) -> Load:
    return Load(server.url, make_load(LoadKind.SHORT_PROMPTS, streams=settings.streams, tokens=settings.tokens))


async def _run_burst(server: Server, settings: OverheadSettings) -> Burst:
    before = session_usage(server.pid)
    histories = await _load(server, settings).run()
    after = session_usage(server.pid)
    for history in histories:
        if history.error is not None:
            raise server.failure(f"{history.name} failed without a fault: {history.error}")
    return burst_of(histories, cpu_s=after.cpu_s - before.cpu_s)


def burst_of(histories: Sequence[History], *, cpu_s: float) -> Burst:
    """Compute the figures of a finished load."""
    tokens = sum(len(history.token_ids) for history in histories)
    begin_s = min(history.sent_s for history in histories)
    end_s = max(history.arrivals_s[-1] for history in histories)
    gaps_ms = sorted(1000 * gap for history in histories for gap in history.gaps_s())
    return Burst(
        tokens_per_s=tokens / (end_s - begin_s),
        inter_token_p50_ms=percentile(gaps_ms, 0.50),
        inter_token_p99_ms=percentile(gaps_ms, 0.99),
        server_cpu_ms_per_token=1000 * cpu_s / tokens,
    )


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the median, by ranks, for any distribution."""
    ordered, count = sorted(values), len(values)
    outside = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
    return ordered[outside], ordered[count - 1 - outside]


def ratio_of(metric: str, pairs: Sequence[Pair]) -> Ratio:
    """Divide on by off for a metric, pair by pair."""
    off = [float(getattr(pair.off, metric)) for pair in pairs]
    on = [float(getattr(pair.on, metric)) for pair in pairs]
    ratios = [later / earlier if earlier else float("nan") for later, earlier in zip(on, off, strict=True)]
    spread, (low, high) = spread_of(ratios), interval_of_median(ratios)
    return Ratio(
        metric=metric,
        median=spread.median,
        minimum=spread.minimum,
        maximum=spread.maximum,
        quartile_low=spread.quartile_low,
        quartile_high=spread.quartile_high,
        interval_low=low,
        interval_high=high,
        off_median=statistics.median(off),
        on_median=statistics.median(on),
    )


def added_per_step(pairs: Sequence[Pair]) -> AddedTime:
    """Compare the median gaps between tokens, pair by pair."""
    differences_us = [1000 * (pair.on.inter_token_p50_ms - pair.off.inter_token_p50_ms) for pair in pairs]
    low, high = interval_of_median(differences_us)
    return AddedTime(median_us=statistics.median(differences_us), interval_low_us=low, interval_high_us=high)
