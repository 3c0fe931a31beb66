"""Real servers for the integration tests: one per kind and session, started when first asked for."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from holdfast.bench.loads import SERVER_ARGUMENTS
from holdfast.bench.topologies import Topology
from holdfast.chaos.control import Control
from holdfast.chaos.model import make_dense_model, make_moe_model
from holdfast.chaos.server import Server, ServerSpec

CPU_BENCH = Path(__file__).parents[1] / "support" / "cpu_bench"

# A fault per test adds up: the limit on retries is what other tests are about.
MANY_RETRIES = ("--max-retries", "100000")


@dataclass(frozen=True)
class Kind:
    """One way the host may run: which model runner, which scheduling."""

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
    """A parameter whose case `make test` leaves to `make test-matrix`: the same code in one more combination."""
    return pytest.param(*values, marks=pytest.mark.matrix)


class Servers:
    """Starts servers and ends them all."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._kept: dict[str, Server] = {}
        self._count = 0

    def spec(self, *arguments: str, kind: Kind = V1_SYNC, holdfast: bool = True, **environment: str) -> ServerSpec:
        self._count += 1
        ports = ("--external-fault-notify-port", "0") if holdfast else ()
        return ServerSpec(
            model=self._model,
            log=self._folder / f"{self._count}-{kind.name}.log",
            arguments=(*SERVER_ARGUMENTS, *ports, *arguments),
            environment={**kind.environment, **environment},
            holdfast=holdfast,
        )

    def start(self, *arguments: str, kind: Kind = V1_SYNC, **environment: str) -> Server:
        """A server of the caller's own; use it as a context manager."""
        return Server(self.spec(*arguments, kind=kind, **environment)).start()

    def of(self, topology: Topology, kind: Kind = V1_SYNC, arguments: Sequence[str] = ()) -> Server:
        """A server of a topology, with fault injection; use it as a context manager."""
        spec = self.spec(*topology.arguments, "--enable-fault-injection", *MANY_RETRIES, *arguments, kind=kind)
        return Server(replace(spec, model=self._model_for(topology))).start()

    def _model_for(self, topology: Topology) -> Path:
        return self._model if topology.model == "dense" else make_moe_model(self._folder / "moe")

    def shared(self, kind: Kind) -> Server:
        """The session's server of a kind, with fault injection."""
        if kind.name not in self._kept:
            self._kept[kind.name] = self.start("--enable-fault-injection", *MANY_RETRIES, kind=kind)
        return self._kept[kind.name]

    def close(self) -> None:
        for server in self._kept.values():
            server.stop()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    made = Servers(make_dense_model(tmp_path_factory.mktemp("model")), tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


def run(coroutine):  # type: ignore[no-untyped-def]
    """Run one asynchronous scenario to its end."""
    return asyncio.run(coroutine)


async def well(server: Server) -> str | None:
    async with Control(server.url) as control:
        return await control.unwell()


async def state(client: httpx.AsyncClient) -> str:
    """The precise state of the first engine."""
    engines = (await client.get("/fault_tolerance/status")).json()["engines"]
    return str(engines[0]["state"])


def left_behind(server: Server, within_s: float = 10.0) -> list[int]:
    """Processes of a server that has ended which are still there when their time to follow it is over."""
    deadline = time.monotonic() + within_s
    while (orphans := server.orphans()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return orphans
