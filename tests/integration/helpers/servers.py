"""Real servers: kinds, starts, shared servers of a session, and the check that an ended one left nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from holdfast.bench.instrument import precise_client
from holdfast.bench.loads import SERVER_ARGUMENTS
from holdfast.bench.topologies import Topology
from holdfast.chaos.control import FAULT, LOST, RECOVERED, RESTARTED, Control
from holdfast.chaos.history import History
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.model import make_moe_model
from holdfast.chaos.server import Server, ServerSpec
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.errors import HoldfastError
from support.event_tally import EventTally
from support.warm_start import WarmParent, WarmServer

CPU_BENCH = Path(__file__).parents[2] / "support" / "cpu_bench"
# A fault per test adds up: the limits are what other tests are about.
MANY_RETRIES = ("--max-retries", "100000")
NO_LIMITS = (*MANY_RETRIES, "--max-worker-restarts", "100000", "--max-engine-restarts", "100000")
USABLE_WITHIN_S = 20.0  # what a test has left under way may come to its end
TOLD_LINES = 50
UNTOLD = ("INFO:", " - ", "nanobind:")


@dataclass(frozen=True)
class Kind:
    """Model runner and scheduling of the host."""

    name: str
    runner: str = "v1"
    asynchronous: bool = False

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(CPU_BENCH), *filter(None, [os.environ.get("PYTHONPATH")])])
        flags = {"HOLDFAST_BENCH_ASYNC": self.asynchronous, "HOLDFAST_BENCH_V2": self.runner == "v2"}
        return {"PYTHONPATH": path, **{name: "1" for name, on in flags.items() if on}}


V1_SYNC = Kind("v1-sync")
V1_ASYNC = Kind("v1-async", asynchronous=True)
V2_SYNC = Kind("v2-sync", runner="v2")
V2_ASYNC = Kind("v2-async", runner="v2", asynchronous=True)


def in_matrix(*values: object) -> object:
    """Leave a parameter to `make nightly`: the same code in one more combination."""
    return pytest.param(*values, marks=pytest.mark.matrix)


def in_matrix_but(wanted: object, values: Iterable[object]) -> list[object]:
    """Leave all parameters but `wanted` to `make nightly`."""
    return [value if value == wanted else in_matrix(value) for value in values]


COLD_SHARED = {"pp2-v1-sync", "moe-ep-v2-async"}  # of topologies of which `make test` has no other protected server


Figures = dict[str, float]


@dataclass(frozen=True)
class Start:
    """Way and duration of a server's start."""

    warm: bool
    took_s: float


Asks = Callable[[str], list[StreamSpec]]  # what a load asks for, given a salt of its own


class Servers:
    """Servers of a session: starts them and ends them all.

    Tests share servers: one for each kind of one rank, and the last one of many ranks. A shared server is healthy when
    a test gets it: one that a test has damaged is replaced for the next.

    One server of each topology is started as in production: those in `COLD_SHARED`, and those that tests start `cold`.
    The others are forked from a process that has imported the host (`support.warm_start`).
    """

    latest: ClassVar[Server | None] = None  # whose log is told when a test fails
    spawns_replacements: ClassVar[bool] = False  # of the test that runs: its mark `spawned`

    def __init__(self, model: Path, folder: Path) -> None:
        self._model, self._folder = model, folder
        self.tally = EventTally()
        self.starts: list[Start] = []
        self._parents: dict[str, WarmParent] = {}
        self._kept: dict[str, Server] = {}
        self._of_many: tuple[str, Server] | None = None
        self._references: dict[tuple[str, Asks], list[History]] = {}
        self._numbers = itertools.count(1)  # of logs; tests may start servers from several threads

    def spec(self, *arguments: str, kind: Kind = V1_SYNC, holdfast: bool = True, **environment: str) -> ServerSpec:
        ports = ("--external-fault-notify-port", "0") if holdfast else ()
        return ServerSpec(
            model=self._model,
            log=self._folder / f"{next(self._numbers)}-{kind.name}.log",
            arguments=(*SERVER_ARGUMENTS, *ports, *arguments),
            environment={**kind.environment, **environment},
            holdfast=holdfast,
        )

    def start(self, *arguments: str, kind: Kind = V1_SYNC, cold: bool = False, **environment: str) -> Server:
        """Start a server for the caller alone; a context manager."""
        return self._start(self.spec(*arguments, kind=kind, **environment), kind, cold)

    def of(
        self,
        topology: Topology,
        kind: Kind = V1_SYNC,
        arguments: Sequence[str] = (),
        cold: bool = False,
        **environment: str,
    ) -> Server:
        """Start a server of a topology for the caller alone, with fault injection; a context manager."""
        arguments = (*topology.arguments, "--enable-fault-injection", *MANY_RETRIES, *arguments)
        spec = self.spec(*arguments, kind=kind, **environment)
        return self._start(replace(spec, model=self._model_for(topology)), kind, cold)

    def of_model(self, model: Path, *arguments: str, kind: Kind = V1_SYNC) -> Server:
        """Start a server of another model for the caller alone; a context manager."""
        return self._start(replace(self.spec(*arguments, kind=kind), model=model), kind, cold=False)

    def _start(self, spec: ServerSpec, kind: Kind, cold: bool) -> Server:
        server = self.unstarted(spec, kind, cold=cold)
        Servers.latest = server
        server.start()
        if isinstance(server, WarmServer):
            server.spawn_replacements(self.spawns_replacements)
        self.starts.append(Start(isinstance(server, WarmServer), server.start_s))
        self.tally.listen_to(server)
        return server

    def unstarted(self, spec: ServerSpec, kind: Kind = V1_SYNC, *, cold: bool = False) -> Server:
        """Return a server that is not started yet; forked where possible, unless `cold`."""
        parent = None if cold or not spec.holdfast else self._warm_parent(spec, kind)
        return Server(spec) if parent is None else WarmServer(spec, parent)

    def _warm_parent(self, spec: ServerSpec, kind: Kind) -> WarmParent | None:
        """Return the process that forks servers of a kind; None when the environment would import another host."""
        if any(spec.environment.get(name) != value for name, value in kind.environment.items()):
            return None
        if kind.name not in self._parents:
            self._parents[kind.name] = WarmParent(kind.environment)
        return self._parents[kind.name]

    def _model_for(self, topology: Topology) -> Path:
        return self._model if topology.model == "dense" else make_moe_model(self._folder / "moe")

    def shared(self, kind: Kind) -> Server:
        """Return the session's server of a kind, with fault injection."""
        if kind.name not in self._kept or not is_usable(self._kept[kind.name]):
            self._end(self._kept.pop(kind.name, None))
            self._kept[kind.name] = self.start("--enable-fault-injection", *NO_LIMITS, kind=kind)
        Servers.latest = self._kept[kind.name]
        return self._kept[kind.name]

    def shared_of(self, topology: Topology, kind: Kind = V1_SYNC) -> Server:
        """Return the session's server of a topology, with fault injection; only the last topology is kept."""
        if topology.ranks == 1:
            return self.shared(kind)
        name = served_name((topology, kind))
        if self._of_many is None or self._of_many[0] != name or not is_usable(self._of_many[1]):
            ended, self._of_many = self._of_many, None
            self._end(ended[1] if ended else None)
            self._of_many = name, self.of(topology, kind, NO_LIMITS, cold=name in COLD_SHARED)
        Servers.latest = self._of_many[1]
        return self._of_many[1]

    def reference(self, topology: Topology, kind: Kind, asks: Asks) -> list[History]:
        """Return the fault-free run of a load on a shared server, made once."""
        name = served_name((topology, kind)), asks
        if name not in self._references:
            self._references[name] = run(Load(self.shared_of(topology, kind).url, asks(fresh_salt())).run())
        return self._references[name]

    @staticmethod
    def _end(server: Server | None) -> None:
        if server is not None:
            was_alive = server.exit_code is None
            assert server.stop() == 0 or not was_alive, "SIGTERM ends a server with success"
            assert left_behind(server) == []

    def close(self) -> None:
        for server in (*self._kept.values(), *([self._of_many[1]] if self._of_many else [])):
            self._end(server)
        for parent in self._parents.values():
            parent.close()
        self.tally.close()

    def figures(self) -> Figures:
        """Return counts of starts and events of the worker's servers."""
        # Plain texts as keys: xdist sends nothing else.
        figures: Figures = {str(kind): self.tally.by_kind[kind] for kind in (FAULT, LOST, RECOVERED, RESTARTED)}
        for start in self.starts:
            name = "forked" if start.warm else "new interpreters"
            figures[f"{name}, starts"] = figures.get(f"{name}, starts", 0) + 1
            figures[f"{name}, seconds"] = figures.get(f"{name}, seconds", 0) + start.took_s
        return figures


def summary(of_workers: Iterable[Figures]) -> list[str]:
    """Return the sum of all workers' figures, in lines."""
    total: Counter[str] = Counter()
    for figures in of_workers:
        total.update(figures)  # type: ignore[arg-type]
    return [f"{name}: {value:.0f}" for name, value in total.items()]


def is_usable(server: Server) -> bool:
    """Return whether a server serves with every engine healthy, within `USABLE_WITHIN_S`."""
    deadline = time.monotonic() + USABLE_WITHIN_S
    while server.exit_code is None:
        with contextlib.suppress(httpx.HTTPError, HoldfastError):
            if run(well(server)) is None:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return False


def told_last(log: Path) -> str:
    """Return the last lines of a log, without accesses and without the words of an unloaded library."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join([line[:240] for line in lines if not line.startswith(UNTOLD)][-TOLD_LINES:])


def served_name(served: tuple[Topology, Kind]) -> str:
    """Return the id of a fixture's parameter."""
    return f"{served[0].name}-{served[1].name}"


_SERVED = re.compile(r"\b(?:one|tp2|pp2|dp2|moe-ep|moe)-v[12]-a?sync\b")
_KIND = re.compile(r"\bv[12]-a?sync\b")


def group_of(nodeid: str) -> str:
    """Return the group of a test, which one worker runs: a shared server of a topology, or a module and kind."""
    path, _, parameters = nodeid.partition("[")
    if served := _SERVED.search(parameters):
        return served[0]
    kind = _KIND.search(parameters)
    module = path.partition("::")[0]
    return f"{module} {kind[0]}" if kind else module


# Modules whose servers have a single rank each, and whose tests measure no time; further tests by their parameters.
BESIDE = (
    "e2e/test_release",
    "integration/test_bad_input",
    "integration/test_configure",
    "integration/test_container",
    "integration/test_endings",
    "integration/test_engine_death_alone",
    "integration/test_exceptions",
    "integration/test_features",
    "integration/test_ladder",
    "integration/test_metrics",
    "integration/test_numerical",
    "integration/test_pictures",
    "integration/test_prefix_cache_trap",
    "integration/test_runtime_state",
    "integration/test_scarcity",
    "integration/test_soak",
    "integration/test_supervision",
    "integration/test_systemd",
    "integration/test_temporary_files",
    "integration/test_unread_log",
)


def lane_of(nodeid: str) -> str:
    """Return the lane of a test, of two that run side by side on two processors: a server of many ranks fills both."""
    path, _, parameters = nodeid.partition("[")
    if served := _SERVED.search(parameters):
        return "beside" if served[0].startswith("one") else "main"
    return "beside" if any(f"{module}.py" in path for module in BESIDE) else "main"


def run(coroutine):  # type: ignore[no-untyped-def]
    """Run one asynchronous scenario to its end.

    Scheduled at once where the system allows it: servers whose processes spin keep an ordinary client from its
    processor for seconds, and what it was to do in the middle of a stream comes after the stream's end.
    """
    with precise_client():
        return asyncio.run(coroutine)


async def well(server: Server) -> str | None:
    async with Control(server.url) as control:
        return await control.unwell()


async def state(client: httpx.AsyncClient) -> str:
    """Return the precise state of the first engine."""
    engines = (await client.get("/fault_tolerance/status")).json()["engines"]
    return str(engines[0]["state"])


def left_behind(server: Server, within_s: float = 10.0) -> list[int]:
    """Return the processes that outlive an ended server by more than `within_s`."""
    deadline = time.monotonic() + within_s
    while (orphans := server.orphans()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return orphans
