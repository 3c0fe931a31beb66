"""State that callers set at run time comes back in every new process, before it serves."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from holdfast.bench.topologies import DP2, ONE
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import Control
from holdfast.chaos.history import History
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.model import make_dense_model
from holdfast.chaos.recipes import DenseRecipe
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load
from integration.helpers.engines import engines_of
from integration.helpers.processes import workers_of
from integration.helpers.servers import Servers, run, well

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow]

TOKENS = 40
DEV_MODE = {"VLLM_SERVER_DEV_MODE": "1"}  # the host's own endpoints that set state
STANDBY = ("--standby-workers", "1", "--standby-preload")


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dense_model(tmp_path_factory.mktemp("other"), DenseRecipe(seed=DenseRecipe().seed + 1))


@pytest.fixture
def server(servers: Servers, request: pytest.FixtureRequest) -> Iterator[Server]:
    with servers.of(request.param, arguments=STANDBY if request.param is ONE else (), **DEV_MODE) as started:
        yield started


def answers(server: Server, engine: int | None = None) -> list[History]:
    asked = [replace(spec, data_parallel_rank=engine) for spec in every_feature(fresh_salt(), TOKENS)]
    return run(Load(server.url, asked).run())


def reload(server: Server, weights: Path) -> None:
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(weights)}}
    httpx.post(f"{server.url}/collective_rpc", json=body, timeout=120).raise_for_status()
    httpx.post(f"{server.url}/reset_prefix_cache", timeout=60).raise_for_status()


async def killed_and_replaced(server: Server, pid: int) -> None:
    async with Control(server.url) as control:
        before = await control.last_sequence()
        os.kill(pid, signal.SIGKILL)
        await control.wait_recovered(before, timeout_s=120)


async def served_again(server: Server) -> None:
    async with asyncio.timeout(180):
        while (why := await well(server)) is not None:
            assert server.exit_code is None, why
            await asyncio.sleep(0.2)


async def _engine_core(server: Server) -> int:
    return int((await engines_of(server))[0]["pid"])


async def _standbys_are_ready(server: Server) -> None:
    async with Control(server.url) as control:
        await control.await_standbys()


@pytest.mark.parametrize("server", [ONE], indirect=True, ids=["one"])
def test_reloaded_weights_are_in_the_process_that_replaces_a_worker_and_an_engine_core(
    server: Server, other_weights: Path
) -> None:
    of_the_start = answers(server)
    reload(server, other_weights)
    expected = answers(server)
    assert not compare_runs(of_the_start, expected).exact, "the other weights answer otherwise"
    run(_standbys_are_ready(server))
    run(killed_and_replaced(server, workers_of(server)[0, 0]))  # a preloaded standby, with the weights of the start
    assert compare_runs(expected, answers(server)).reasons == ()
    os.kill(run(_engine_core(server)), signal.SIGKILL)
    assert compare_runs(expected, answers(server)).reasons == ()


@pytest.mark.matrix
@pytest.mark.parametrize("server", [DP2], indirect=True, ids=["dp2"])
def test_weights_that_are_reloaded_while_an_engine_core_is_replaced_reach_the_replacement(
    server: Server, other_weights: Path
) -> None:
    os.kill(run(_engine_core(server)), signal.SIGKILL)
    reload(server, other_weights)
    run(served_again(server))
    expected, found = (answers(server, engine) for engine in (1, 0))
    assert compare_runs(expected, found).reasons == ()
