"""In a container: under each of its restrictions, and under all of them, a server starts and survives faults."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.bench.loads import SERVER_ARGUMENTS
from holdfast.chaos.history import History
from holdfast.chaos.loads import few_tokens, fresh_salt
from holdfast.chaos.model import make_dense_model
from holdfast.chaos.server import Server, ServerSpec, free_port
from holdfast.chaos.streams import Load
from holdfast.chaos.victims import ProcessKind, find_victims, kill
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.progress.identity import Identity
from holdfast.progress.places import MEMORY, PREFIX
from holdfast.progress.records import read_record
from integration.helpers.engines import RESTART_S
from integration.helpers.servers import NO_LIMITS, Servers, left_behind, run, well
from integration.helpers.streams import assert_exact, begun, faulted
from support.confinement import INSIDE, Restriction, confined, why_not

pytestmark = [pytest.mark.host, pytest.mark.skipif(bool(why_not()), reason=why_not() or "restrictions can be made")]

R = Restriction
TOKENS = 30
ALONE = [
    (R.STRANGER,),
    (R.READ_ONLY,),
    (R.FEW_FILES,),
    (R.STRANGER, R.FEW_THREADS),
    (R.NO_COUNTS,),
    (R.NO_PTRACE,),
    (R.STRANGER, R.HIDDEN_PROC),
    (R.SMALL_SHARED,),
]
TOGETHER = tuple(one for one in R if one not in (R.SMALL_SHARED, R.FULL_DISK))
TOKEN = "token"


@dataclass(frozen=True)
class ConfinedSpec(ServerSpec):
    """Server under restrictions."""

    restrictions: tuple[Restriction, ...] = ()

    def command(self, port: int) -> list[str]:
        return confined(super().command(port), self.log.parent, self.restrictions)


def specified(folder: Path, restrictions: Sequence[Restriction]) -> ConfinedSpec:
    make_dense_model(folder / "model")
    arguments = (*SERVER_ARGUMENTS, "--external-fault-notify-port", "0", "--enable-fault-injection", *NO_LIMITS)
    return ConfinedSpec(
        model=INSIDE / "model",
        log=folder / "server.log",
        arguments=arguments,
        environment={"HOLDFAST_API_KEY": TOKEN},
        restrictions=tuple(restrictions),
    )


async def with_a_killed_worker(server: Server) -> list[History]:
    """Kill the worker in the middle of a load, and wait until all is well again."""
    running = Load(server.url, few_tokens(fresh_salt(), TOKENS))
    streams = asyncio.create_task(running.run())
    await begun(running)
    [worker] = [one for one in find_victims(server.pid) if one.kind is ProcessKind.WORKER]
    kill(worker)
    histories = await streams
    async with asyncio.timeout(RESTART_S):
        while await well(server) is not None:
            await asyncio.sleep(0.1)
    return histories


def assert_survives(server: Server) -> None:
    """A raise and a killed worker change no token, and the end leaves nothing behind."""
    expected = run(Load(server.url, few_tokens(fresh_salt(), TOKENS)).run())
    injection = InjectionSpec(phase=Phase.FORWARD, after_steps=9)
    raised, _ = run(faulted(server, few_tokens(fresh_salt(), TOKENS), injection))
    assert_exact(expected, raised)
    began = time.monotonic()
    assert_exact(expected, run(with_a_killed_worker(server)))
    print(f"well {time.monotonic() - began:.1f} s after the load with the killed worker began")
    os.kill(server.pid, signal.SIGTERM)
    assert left_behind(server) == []
    owners = [read_record(folder / "owner", Identity) for folder in MEMORY.glob(f"{PREFIX}*")]
    assert server.pid not in [owner.pid for owner in owners if owner is not None], "its folder in memory is left"


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize(
    "restrictions",
    [*(pytest.param(each, marks=pytest.mark.matrix) for each in ALONE), TOGETHER],
    ids=lambda each: "together" if each == TOGETHER else each[-1].name.lower(),
)
def test_a_server_starts_and_survives_faults(tmp_path: Path, restrictions: Sequence[Restriction]) -> None:
    server = Servers.latest = Server(specified(tmp_path, restrictions))
    with server:
        assert_survives(server)


def test_on_a_full_disk_a_start_is_refused_in_one_line(tmp_path: Path) -> None:
    spec = ConfinedSpec(INSIDE / "model", tmp_path / "server.log", restrictions=(R.FULL_DISK,))
    command = spec.command(free_port())
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("holdfast: cannot start: no temporary folder can be written")
