"""Clients record exactly what came, and a lost answer is never retried behind the checker's back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from holdfast.chaos.streams import Load, StreamSpec

pytest.importorskip("openai")


def chunk(index: int = 0, *, tokens: Sequence[int] = (), text: str = "", finish: str | None = None) -> dict[str, Any]:
    choice = {"index": index, "text": text, "token_ids": list(tokens), "finish_reason": finish, "logprobs": None}
    return {"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}


class PretendServer:
    """Answers every completion with the same chunks; `cut` ends the connection without an end."""

    def __init__(self, chunks: Sequence[dict[str, Any]], *, cut: bool = False, status: str = "200 OK") -> None:
        self.chunks, self.cut, self.status, self.requests = chunks, cut, status, 0

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.requests += 1
        head = f"HTTP/1.1 {self.status}\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        writer.write(head.encode())
        for one in self.chunks:
            writer.write(f"data: {json.dumps(one)}\n\n".encode())
        if not self.cut:
            writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()


def run(server: PretendServer, *specs: StreamSpec) -> Load:
    async def go() -> Load:
        async with server.listen() as url:
            load = Load(url, specs, timeout_s=10)
            await load.run()
            return load

    return asyncio.run(go())


def test_tokens_text_and_ending_are_recorded() -> None:
    """Every token has an arrival, and the ending is kept."""
    server = PretendServer([chunk(tokens=[1, 2], text="a b"), chunk(tokens=[3], text=" c", finish="length")])
    [history] = run(server, StreamSpec("one", "say")).histories
    assert (history.token_ids, history.text, history.finish_reason) == ([1, 2, 3], "a b c", "length")
    assert len(history.arrivals_s) == 3
    assert history.error is None


def test_choices_are_histories_of_their_own() -> None:
    """With n above one each choice is told apart by its index."""
    server = PretendServer([chunk(1, tokens=[9], finish="length"), chunk(0, tokens=[8], finish="length")])
    load = run(server, StreamSpec("pair", "say", n=2))
    assert {one.name: one.token_ids for one in load.histories} == {"pair#0": [8], "pair#1": [9]}


def test_a_stream_without_an_end_is_an_error() -> None:
    """A stream that stops without a finish reason was lost."""
    [history] = run(PretendServer([chunk(tokens=[1])], cut=True), StreamSpec("one", "say")).histories
    assert history.error is not None


def test_a_refused_request_is_sent_once() -> None:
    """Nothing is retried: what the server lost is to be seen as lost."""
    server = PretendServer([], status="500 Internal Server Error")
    [history] = run(server, StreamSpec("one", "say")).histories
    assert server.requests == 1
    assert "InternalServerError" in (history.error or "")


def test_a_silent_server_ends_in_an_error() -> None:
    """Every wait is bounded."""

    async def never(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        writer.close()

    async def go() -> Load:
        async with await asyncio.start_server(never, "127.0.0.1", 0) as server:
            load = Load(
                f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", [StreamSpec("one", "say")], timeout_s=0.2
            )
            await load.run()
            return load

    assert asyncio.run(go()).histories[0].error is not None


def test_a_request_carries_its_options() -> None:
    """Options of the host travel beside OpenAI's own."""
    spec = StreamSpec("one", "say", seed=3, stop=("x",), min_tokens=4, json_schema={"type": "object"}, cache_salt="s")
    request = spec.request("m")
    assert (request["seed"], request["stop"], request["stream"]) == (3, ["x"], True)
    extra = request["extra_body"]
    assert (extra["min_tokens"], extra["cache_salt"], extra["return_token_ids"]) == (4, "s", True)
    assert extra["response_format"]["json_schema"]["schema"] == {"type": "object"}
