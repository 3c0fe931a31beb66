"""Processes of a running server by their role: workers and API servers."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable

import httpx
import psutil

from holdfast.chaos.control import Control, control_client
from holdfast.chaos.server import Server

BACK_WITHIN_S = 120.0
AGREED_WITHIN_S = 20.0


async def process_events_of(server: Server, after: int) -> list[str]:
    with contextlib.suppress(httpx.HTTPError):
        async with Control(server.url) as control:
            events = await control.events(after)
            return [f"{e['kind']} {e['process']}" for e in events if "process" in e]
    return []


async def wait_back(server: Server, after: int) -> None:
    async with asyncio.timeout(BACK_WITHIN_S):
        while sum("process-restarted" in one for one in await process_events_of(server, after)) == 0:
            await asyncio.sleep(0.05)


ASKS = 24  # the kernel spreads connections over the servers: so many miss one with a chance of 1 in 5000


def api_servers(server: Server) -> list[int]:
    children = psutil.Process(server.pid).children(recursive=True)
    return [p.pid for p in children if "ApiServer" in p.name() or "APIServer" in p.name()]


async def on_many_connections(server: Server, path: str) -> list[httpx.Response]:
    """Ask on enough connections that every API server is asked."""
    answers = []
    for _ in range(ASKS):
        async with control_client(server.url, timeout_s=30) as client:
            answers.append(await client.get(path))
    return answers


async def agreed_by_all(
    server: Server, path: str, wanted: Callable[[httpx.Response], bool] = lambda answer: True
) -> list[httpx.Response]:
    """Return the answers of all API servers once equal and as wanted: commands do not wait for the links."""
    async with asyncio.timeout(AGREED_WITHIN_S):
        while True:
            answers = await on_many_connections(server, path)
            if len({a.text for a in answers}) == 1 and all(map(wanted, answers)):
                return answers
            await asyncio.sleep(0.05)


def workers_of(server: Server) -> dict[tuple[int, int], int]:
    """Return the process id of every rank by engine and rank, from the names of the processes."""
    found = {}
    for process in psutil.Process(server.pid).children(recursive=True):
        if (place := _place(_name(process))) is not None:
            found[place] = process.pid
    return found


def _name(process: psutil.Process) -> str:
    """Return the name of a process; empty for an ended process, whose name is cut short."""
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else process.name()
    except psutil.NoSuchProcess:
        return ""


def _place(name: str) -> tuple[int, int] | None:
    """Return engine and rank of a worker; None for another name, or a name that is cut short."""
    if re.fullmatch(r"VLLM::Worker(_(DP|TP|PP|EP)\d+)*", name) is None:
        return None
    numbers = {kind: int(number) for kind, number in re.findall(r"_(DP|TP|PP)(\d+)", name)}
    return numbers.get("DP", 0), numbers.get("TP", numbers.get("PP", 0))
