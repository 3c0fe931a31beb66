"""Under a supervisor: what systemd is told, of a real server that is well, stands still and goes on."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import httpx
import pytest

from holdfast.chaos.control import Control, control_client, token_headers
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.servers import Servers, run, state

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow, pytest.mark.matrix]

WATCHDOG_S = 6.0
WITHIN_S = 30.0


class Systemd:
    """The receiving end of sd_notify(3)."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._socket.settimeout(WITHIN_S)
        self.environment = {
            "NOTIFY_SOCKET": self._socket.getsockname(),
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
        }

    def await_line(self, wanted: str) -> list[str]:
        """Everything up to a line."""
        lines: list[str] = []
        deadline = time.monotonic() + WITHIN_S
        while wanted not in lines:
            assert time.monotonic() < deadline, f"{wanted} was not told: {lines}"
            lines += self._socket.recv(4096).decode().splitlines()
        return lines

    def close(self) -> None:
        self._socket.close()


async def stand_still(url: str) -> None:
    async with Control(url) as control, control_client(url, timeout_s=60) as client:
        await control.inject(InjectionSpec(phase=Phase.FORWARD, after_steps=5))
        stream = asyncio.create_task(Load(url, [StreamSpec("one", "The keeper", cache_salt=fresh_salt())]).run())
        async with asyncio.timeout(WITHIN_S):
            while await state(client) != "paused":
                await asyncio.sleep(0.02)
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)


def go_on(url: str) -> None:
    body, headers = {"fault_tolerance_instruction": "retry"}, token_headers(url)
    answer = httpx.post(f"{url}/fault_tolerance/apply", headers=headers, json=body, timeout=60)
    assert answer.status_code == 200, answer.text


def test_systemd_is_told_when_a_server_is_ready_and_that_it_lives_while_it_stands(
    servers: Servers, tmp_path: Path
) -> None:
    systemd = Systemd(tmp_path)
    arguments = ("--enable-fault-injection", "--fault-policy", "external")
    with servers.start(*arguments, **systemd.environment) as server:
        assert systemd.await_line("READY=1")[0] == "STATUS=ready"
        systemd.await_line("WATCHDOG=1")
        run(stand_still(server.url))
        systemd.await_line("STATUS=no engine makes progress: paused")
        systemd.await_line("WATCHDOG=1")
        go_on(server.url)
        systemd.await_line("STATUS=ready")
    systemd.close()
