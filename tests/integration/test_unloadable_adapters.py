"""An adapter whose files are gone ends its requests alone, once a new worker needs the files."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import Control
from holdfast.chaos.history import History
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.streams import Load, StreamSpec
from integration.helpers.processes import workers_of
from integration.helpers.servers import NO_LIMITS, Servers, run
from integration.helpers.streams import begun
from support.features import models

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow, pytest.mark.matrix]

REPETITIONS = 20
DEV_MODE = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def base(salt: str) -> list[StreamSpec]:
    return [StreamSpec(f"s{i}", f"The keeper of boat {i} ", max_tokens=200, cache_salt=salt) for i in range(4)]


def asked(model: str) -> StreamSpec:
    return StreamSpec(model, "Of an adapter ", max_tokens=8, cache_salt=fresh_salt())


async def answer(url: str, model: str) -> History:
    return (await Load(url, [asked(model)], model=model, timeout_s=120).run())[0]


def test_an_adapter_whose_files_are_gone_costs_one_fault_however_often_it_is_asked_for(
    servers: Servers, tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("gone", "good")}
    for number, (name, folder) in enumerate(folders.items(), 1):
        shutil.copytree(models.adapter(name, number), folder)
    adapters = [f"{name}={folder}" for name, folder in folders.items()]
    arguments = ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--lora-modules", *adapters)

    async def scenario(url: str, worker: int) -> tuple[list[History], list[History], list[dict[str, Any]]]:
        async with Control(url) as control:
            before = await control.last_sequence()
            load = Load(url, base(fresh_salt()), timeout_s=120)
            others = asyncio.create_task(load.run())
            await begun(load)
            os.kill(worker, signal.SIGKILL)
            refused = [await answer(url, "gone") for _ in range(REPETITIONS)]
            return refused, await others, await control.events(before)

    with servers.start(*NO_LIMITS, *arguments, **DEV_MODE) as server:
        expected = run(Load(server.url, base(fresh_salt())).run())
        good = run(answer(server.url, "good"))
        assert run(answer(server.url, "gone")).error is None
        shutil.move(folders["gone"], tmp_path / "elsewhere")
        refused, others, events = run(scenario(server.url, workers_of(server)[0, 0]))
        assert compare_runs(expected, others).reasons == ()
        assert len({history.error for history in refused}) == 1
        assert "the adapter of this request cannot be loaded" in str(refused[0].error)
        actions = [e["decision"]["action"] for e in events if e["kind"] == "decision-made"]
        assert sorted(actions) == ["restart-workers", "retry"]
        assert run(answer(server.url, "good")).token_ids == good.token_ids
        shutil.move(tmp_path / "elsewhere", folders["gone"])
        assert run(answer(server.url, "gone")).error is None, "the files are back"
        assert httpx.get(f"{server.url}/health").status_code == 200
