"""In a container: under each of its restrictions, and under all of them, a server starts and survives faults."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.bench.loads import SERVER_ARGUMENTS
from holdfast.chaos.history import History
from holdfast.chaos.loads import few_tokens, fresh_salt
from holdfast.chaos.model import make_dense_model
from holdfast.chaos.server import Server, ServerFailed, ServerSpec
from holdfast.chaos.streams import Load
from holdfast.chaos.victims import ProcessKind, find_victims, kill
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.engines import RESTART_S
from integration.helpers.servers import NO_LIMITS, Servers, left_behind, run, well
from integration.helpers.streams import assert_exact, begun, faulted
from support.confinement import INSIDE, Restriction, confined, why_not

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow]

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
]
MAY_REFUSE = [(R.SMALL_SHARED,), (R.FULL_DISK,)]
TOGETHER = tuple(one for one in R if (one,) not in MAY_REFUSE)
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


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "restrictions can be set up")
@pytest.mark.parametrize(
    "restrictions",
    [*(pytest.param(each, marks=pytest.mark.matrix) for each in ALONE), TOGETHER],
    ids=lambda each: "all" if each == TOGETHER else each[-1].name.lower(),
)
def test_a_server_starts_and_survives_faults(tmp_path: Path, restrictions: Sequence[Restriction]) -> None:
    server = Servers.latest = Server(specified(tmp_path, restrictions))
    with server:
        assert_survives(server)


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "restrictions can be set up")
@pytest.mark.matrix
@pytest.mark.parametrize("restrictions", MAY_REFUSE, ids=lambda each: each[-1].name.lower())
def test_a_server_survives_faults_or_says_in_one_line_why_it_does_not_start(
    tmp_path: Path, restrictions: Sequence[Restriction]
) -> None:
    server = Servers.latest = Server(specified(tmp_path, restrictions))
    try:
        server.start()
    except ServerFailed:
        said = server.spec.log.read_text(errors="replace")
        assert "Traceback" not in said, said
        assert said.splitlines()[-1].startswith("holdfast"), said
        print(said.splitlines()[-1])
        return
    with server:
        assert_survives(server)
