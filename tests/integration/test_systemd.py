"""Under a real systemd: the unit of the reference starts, keeps, restarts and ends a real server."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from holdfast.bench.loads import SERVER_ARGUMENTS
from holdfast.chaos.model import make_dense_model
from holdfast.chaos.server import CPU_ENVIRONMENT, ServerSpec, free_port
from holdfast.chaos.streams import MODEL_NAME
from holdfast.chaos.victims import ProcessKind, kind_of
from integration.helpers.servers import V1_SYNC
from support.systemd import INSIDE, Systemd, await_true, why_not

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(600)]

UNIT = "vllm.service"
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "supervision.md"
WATCHDOG_S = 12
START_S = 240.0
BODY = {"model": MODEL_NAME, "prompt": "The keeper", "max_tokens": 20, "temperature": 0}


def unit(port: int, environment: dict[str, str], *more: str) -> str:
    """The one that users are shown, with this server's command and environment, and shorter times."""
    [shown] = re.findall(r"```ini\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
    spec = ServerSpec(INSIDE / "model", Path(), arguments=(*SERVER_ARGUMENTS, *more))
    words = " ".join(f'"{word}"' for word in spec.command(port))
    variables = "".join(f'Environment="{name}={value}"\n' for name, value in environment.items())
    text = re.sub("ExecStart=.*", lambda _: f"ExecStart={words}\nStandardError=append:{INSIDE}/server.log", shown)
    text = re.sub("WatchdogSec=.*", f"WatchdogSec={WATCHDOG_S}", text)
    text = re.sub("RestartSec=.*", f"RestartSec=1\n{variables}", text)
    text = re.sub("Environment=XDG_STATE_HOME=.*", f"Environment=XDG_STATE_HOME={INSIDE}/state", text)
    return text.replace("After=network-online.target", "DefaultDependencies=no")


class Bench:
    def __init__(self, systemd: Systemd, url: str) -> None:
        self.systemd, self.url = systemd, url

    def start(self, unit: str = UNIT) -> int:
        """The exit code of `systemctl start`, which returns when the server has said that it is ready."""
        return self.systemd.systemctl("start", unit, within_s=START_S).returncode

    def restarts(self) -> int:
        return int(self.systemd.show(UNIT, "NRestarts"))

    def serves(self) -> bool:
        try:
            return httpx.post(f"{self.url}/v1/completions", json=BODY, timeout=30, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def worker(self) -> psutil.Process:
        return next(p for p in self.systemd.processes() if kind_of(p.name()) is ProcessKind.WORKER)

    def main(self) -> psutil.Process:
        """The server's first process: the parent of its engine core."""
        core = next(p for p in self.systemd.processes() if kind_of(p.name()) is ProcessKind.ENGINE_CORE)
        parent = core.parent()
        assert parent is not None
        return parent


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    if why := why_not():
        pytest.skip(why)
    make_dense_model(tmp_path / "model")
    port = free_port()
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment = {**kept, **CPU_ENVIRONMENT, **V1_SYNC.environment}
    units = {
        UNIT: unit(port, environment, "--external-fault-notify-port", "0"),
        "wrong.service": unit(port, environment, "--max-retries", "many"),
    }
    with Systemd(tmp_path, units) as systemd:
        yield Bench(systemd, f"http://127.0.0.1:{port}")


def test_a_server_is_started_kept_through_a_fault_restarted_when_it_is_stuck_and_ended(bench: Bench) -> None:
    assert bench.start() == 0
    assert bench.serves(), "start returned when it was ready"

    began, killed = time.monotonic(), bench.worker()
    killed.kill()
    assert bench.serves(), "it waited for the new worker"
    print(f"served {time.monotonic() - began:.1f} s after its worker was killed")
    assert bench.restarts() == 0
    assert bench.systemd.show(UNIT, "ActiveState") == "active"

    stuck = bench.main()
    began = time.monotonic()
    stuck.send_signal(signal.SIGSTOP)
    await_true(lambda: bench.restarts() == 1, "the watchdog did not restart it", 6 * WATCHDOG_S)
    print(f"restarted {time.monotonic() - began:.1f} s after it was stopped")
    await_true(bench.serves, "the restarted server does not serve", START_S)
    await_true(lambda: bench.systemd.show(UNIT, "StatusText") == "ready", "it does not say that it is ready")

    assert bench.systemd.systemctl("stop", UNIT, within_s=90).returncode == 0
    assert bench.systemd.show(UNIT, "Result") == "success"
    assert bench.systemd.show(UNIT, "ExecMainStatus") == "0"


def test_a_server_that_was_asked_wrongly_is_not_started_again(bench: Bench) -> None:
    assert bench.start("wrong.service") != 0
    decided = {"failed", "auto-restart"}  # as soon as it has ended systemd says what comes next
    await_true(lambda: bench.systemd.show("wrong.service", "SubState") in decided, "it has not ended")
    assert bench.systemd.show("wrong.service", "SubState") == "failed"
    assert bench.systemd.show("wrong.service", "ExecMainStatus") == "2"
    assert bench.systemd.show("wrong.service", "NRestarts") == "0"
