"""Talks to a server's control routes: arm a fault, read events and status. Loopback only, every wait bounded."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import msgspec

from holdfast.core.injection import InjectionSpec

RECOVERED = "engine-recovered"
FAULT = "fault-reported"


class Control:
    """Control routes of one server; use it as an async context manager."""

    def __init__(self, url: str, *, timeout_s: float = 10.0) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=timeout_s, trust_env=False)

    async def __aenter__(self) -> Control:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def inject(self, spec: InjectionSpec) -> None:
        """Arm a fault; raises `httpx.HTTPStatusError` when the server refuses."""
        body = msgspec.json.encode(spec)
        headers = {"content-type": "application/json"}
        answer = await self._client.post("/fault_tolerance/inject", content=body, headers=headers)
        if answer.is_error:
            text = answer.text[:500]
            raise httpx.HTTPStatusError(f"{answer.status_code}: {text}", request=answer.request, response=answer)

    async def events(self, after: int = 0) -> list[dict[str, Any]]:
        """Events with a sequence number above `after`."""
        answer = await self._client.get("/fault_tolerance/events", params={"after": after})
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["events"]
        return [event for event in found if event["sequence"] > after]

    async def last_sequence(self) -> int:
        return max((event["sequence"] for event in await self.events()), default=0)

    async def wait_recovered(self, after: int, *, faults: int = 1, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """Events since `after`, once `faults` recoveries are among them or the time is over."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            events = await self.events(after)
            done = sum(event["kind"] == RECOVERED for event in events) >= faults
            if done or time.monotonic() > deadline_s:
                return events
            await asyncio.sleep(0.05)

    async def unwell(self) -> str | None:
        """Why the instance is not well now: liveness, readiness or an engine's status; None when all is well."""
        for path in ("/health", "/fault_tolerance/ready"):
            answer = await self._client.get(path)
            if answer.status_code != 200:
                return f"{path} answers {answer.status_code}"
        status = (await self._client.get("/fault_tolerance/status")).json()
        ill = [str(engine["id"]) for engine in status["engines"] if engine["status"] != "healthy"]
        return f"not healthy: engine {', '.join(ill)}" if ill else None


def monotonic_of(wall_s: float) -> float:
    """A wall-clock time of this machine on this process's monotonic clock."""
    return wall_s - (time.time() - time.monotonic())
