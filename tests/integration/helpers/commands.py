"""Commands of an operator over HTTP, and the states that a server reports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import httpx

from holdfast.chaos.control import Control, token_headers
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


@contextlib.contextmanager
def configured(server: Server, **settings: object) -> Iterator[None]:
    """Run the block under changed settings of a running server; the old settings are restored."""
    with httpx.Client(base_url=server.url, headers=token_headers(server.url), timeout=60, trust_env=False) as client:
        before = client.get("/fault_tolerance/status").json()["settings"]
        _configure(client, settings)
        try:
            yield
        finally:
            if server.exit_code is None:
                _configure(client, {name: before[name] for name in settings})


def _configure(client: httpx.Client, settings: dict[str, object]) -> None:
    body = {"fault_tolerance_instruction": "configure", "fault_tolerance_params": settings}
    answer = client.post("/fault_tolerance/apply", json=body)
    assert answer.status_code == 200, answer.text
