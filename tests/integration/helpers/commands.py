"""Commands of an operator over HTTP, and the states that a server reports."""

from __future__ import annotations

import httpx

from holdfast.chaos.control import Control
from holdfast.chaos.server import Server


async def last_sequence(server: Server) -> int:
    async with Control(server.url) as control:
        return await control.last_sequence()


async def apply(client: httpx.AsyncClient, instruction: str, **params: object) -> httpx.Response:
    body = {"fault_tolerance_instruction": instruction, "fault_tolerance_params": params}
    return await client.post("/fault_tolerance/apply", json=body)


async def told(client: httpx.AsyncClient, instruction: str, **params: object) -> None:
    answer = await apply(client, instruction, **params)
    assert answer.status_code == 200, answer.text


async def states(client: httpx.AsyncClient) -> list[str]:
    return [e["state"] for e in (await client.get("/fault_tolerance/status")).json()["engines"]]
