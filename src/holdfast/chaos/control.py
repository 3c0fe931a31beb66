"""Talks to a server's control routes: arm a fault, read events and status. Loopback only, every wait bounded."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import msgspec

from holdfast.api.control_token import VARIABLE, find_token
from holdfast.core.errors import WorldError
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol.events import EventKind

RECOVERED = EventKind.ENGINE_RECOVERED
FAULT = EventKind.FAULT_REPORTED
ARMED = EventKind.FAULT_ARMED
PAUSED = EventKind.ENGINE_PAUSED
RECOVERY_STARTED = EventKind.RECOVERY_STARTED
ATTACHED = EventKind.ENGINE_ATTACHED
LOST = EventKind.ENGINE_LOST
DECIDED = EventKind.DECISION_MADE
ENDED = EventKind.REQUEST_ENDED
RESTARTED = EventKind.ENGINE_RESTARTED
STANDBYS_CHANGED = EventKind.STANDBYS_CHANGED
HEALTHY = "healthy"


# Tokens that servers of this process were started with, by port.
STATED_TOKENS: dict[int, bytes] = {}


class ControlFailed(WorldError):
    """The server refused a control call or did not answer."""


def token_headers(url: str) -> dict[bytes, bytes]:
    """Return the headers of a control call to a server of the current user; without a token none."""
    address = httpx.URL(url)
    port = address.port or 80
    token = STATED_TOKENS.get(port) or os.environb.get(VARIABLE.encode()) or find_token(address.host, port)
    return {b"Authorization": b"Bearer " + token} if token else {}


def control_client(url: str, *, timeout_s: float) -> httpx.AsyncClient:
    """Return a client that sends the control token of the server at `url`, which runs already."""
    # A proxy from the environment is never the way to this machine itself.
    return httpx.AsyncClient(base_url=url, headers=token_headers(url), timeout=timeout_s, trust_env=False)


class Control:
    """Client of a server's control routes; an async context manager. Raises `ControlFailed` and nothing else."""

    def __init__(self, url: str, *, timeout_s: float = 10.0) -> None:
        self._client = control_client(url, timeout_s=timeout_s)

    async def __aenter__(self) -> Control:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def _call(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            answer = await self._client.request(method, path, **request)
        except httpx.HTTPError as error:
            raise ControlFailed(f"{path} was not answered: {str(error) or type(error).__name__}") from None
        return answer

    async def _call_well(self, method: str, path: str, **request: Any) -> Any:
        answer = await self._call(method, path, **request)
        if not answer.is_success:
            raise ControlFailed(f"{path} answered {answer.status_code}: {answer.text[:500]}")
        return answer.json()

    async def inject(self, spec: InjectionSpec) -> None:
        """Arm a fault."""
        headers = {"content-type": "application/json"}
        await self._call_well("POST", "/fault_tolerance/inject", content=msgspec.json.encode(spec), headers=headers)

    async def events(self, after: int = 0) -> list[dict[str, Any]]:
        """Return events with a sequence number above `after`."""
        answer = await self._call_well("GET", "/fault_tolerance/events", params={"after": after})
        return [event for event in answer["events"] if event["sequence"] > after]

    async def last_sequence(self) -> int:
        return max((event["sequence"] for event in await self.events()), default=0)

    async def wait_recovered(self, after: int, *, faults: int = 1, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """Wait for `faults` recoveries since `after` and for every engine to be healthy; return the events.

        Returns the events so far when the time is over.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            events = await self.events(after)
            if is_over(events, faults) or time.monotonic() > deadline_s:
                return events
            await asyncio.sleep(0.05)

    async def await_standbys(self, timeout_s: float = 120.0) -> None:
        """Wait until every standby worker that is wanted is ready. Raises `ControlFailed` when the time is over."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            engines = (await self._call_well("GET", "/fault_tolerance/status"))["engines"]
            pools = [engine.get("standbys") for engine in engines]
            if all(pool is not None and pool["ready"] >= pool["wanted"] for pool in pools):
                return
            await asyncio.sleep(0.2)
        raise ControlFailed(f"no standby worker was ready within {timeout_s:.0f} s")

    async def unwell(self) -> str | None:
        """Return why the instance is not healthy: liveness, readiness or an engine's status; None when healthy."""
        for path in ("/health", "/fault_tolerance/ready"):
            answer = await self._call("GET", path)
            if answer.status_code != 200:
                return f"{path} answers {answer.status_code}"
        status = await self._call_well("GET", "/fault_tolerance/status")
        ill = [str(engine["id"]) for engine in status["engines"] if engine["status"] != "healthy"]
        return f"not healthy: engine {', '.join(ill)}" if ill else None


def is_over(events: Sequence[Mapping[str, Any]], faults: int = 1) -> bool:
    """Return whether `faults` recoveries are reported and every engine was healthy in its last event.

    The engines of a lockstep group recover one by one: the first recovery is not the end. A replaced engine core counts
    as recovered.
    """
    latest = {event["engine_id"]: event["state"] for event in events if "engine_id" in event}
    recoveries = sum(event["kind"] in {RECOVERED, RESTARTED} for event in events)
    return recoveries >= faults and all(state == HEALTHY for state in latest.values())


def monotonic_of(wall_s: float) -> float:
    """Convert a wall-clock time of the machine to the process's monotonic clock."""
    return wall_s - (time.time() - time.monotonic())
