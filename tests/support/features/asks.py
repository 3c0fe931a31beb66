"""Requests of a row: streams through the client that records every token, and calls to all other endpoints."""

from __future__ import annotations

import asyncio
import enum
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from holdfast.chaos.history import History
from holdfast.chaos.streams import MODEL_NAME, Load, StreamSpec, read_again

TIMEOUT_S = 240.0


class Mode(enum.StrEnum):
    """How the tokens of an answer are chosen. An answer without sampling is greedy."""

    GREEDY = "greedy"
    SEEDED = "seeded"
    UNSEEDED = "unseeded"


@dataclass(frozen=True)
class Ask:
    """A completion that streams. With `is_valid` an unseeded answer is under a grammar, and judged by that too."""

    spec: StreamSpec
    model: str = MODEL_NAME
    is_valid: Callable[[str], bool] | None = None

    @property
    def mode(self) -> Mode:
        return mode_of(self.spec.temperature, self.spec.seed)

    @property
    def names(self) -> list[str]:
        return self.spec.history_names()


@dataclass(frozen=True)
class Call:
    """A call to an endpoint; the answer is a stream of events or one document."""

    name: str
    path: str
    body: Mapping[str, Any]
    is_valid: Callable[[str], bool] | None = None

    @property
    def mode(self) -> Mode:
        return mode_of(self.body.get("temperature", 0), self.body.get("seed"))

    @property
    def names(self) -> list[str]:
        return [self.name]

    @property
    def model(self) -> str:
        return str(self.body.get("model", MODEL_NAME))


Asks = Sequence[Ask | Call]


def mode_of(temperature: float, seed: int | None) -> Mode:
    if temperature == 0:
        return Mode.GREEDY
    return Mode.UNSEEDED if seed is None else Mode.SEEDED


class Batch:
    """All requests of a row, sent at once; `histories` may be read during the run."""

    def __init__(self, url: str, asks: Asks, by_oracle: frozenset[str] = frozenset()) -> None:
        self._url, self._asks, self._by_oracle = url, asks, by_oracle
        streams: defaultdict[str, list[StreamSpec]] = defaultdict(list)
        for ask in asks:
            if isinstance(ask, Ask):
                streams[ask.model].append(ask.spec)
        self._loads = [Load(url, specs, model=model, timeout_s=TIMEOUT_S) for model, specs in streams.items()]
        self._calls = [(ask, History(ask.name, time.monotonic())) for ask in asks if isinstance(ask, Call)]

    @property
    def histories(self) -> list[History]:
        return [*(one for load in self._loads for one in load.histories), *(history for _, history in self._calls)]

    async def run(self) -> list[History]:
        """Wait until each answer has ended or timed out; read answers again that the model itself is to judge."""
        async with httpx.AsyncClient(base_url=self._url, timeout=TIMEOUT_S, trust_env=False) as client:
            calls = (_bounded(client, call, history) for call, history in self._calls)
            await asyncio.gather(*(load.run() for load in self._loads), *calls)
        await self._read_again()
        return self.histories

    async def _read_again(self) -> None:
        from openai import AsyncOpenAI

        models = {name: ask.model for ask in self._asks for name in ask.names}
        unseeded = {name for ask in self._asks if ask.mode is Mode.UNSEEDED for name in ask.names}
        left = []
        for one in self.histories:
            one.is_unseeded = one.name in unseeded | self._by_oracle
            if one.is_unseeded and one.error is None and one.read_again_logprobs is None and one.token_ids:
                left.append(one)
        async with AsyncOpenAI(base_url=f"{self._url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
            await asyncio.gather(*(read_again(client, one, models[one.name]) for one in left))


async def _bounded(client: httpx.AsyncClient, call: Call, history: History) -> None:
    """Make a call; write every failure into the history and raise nothing."""
    history.sent_s = time.monotonic()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await _make(client, call, history)
    except TimeoutError:
        history.error = f"no end within {TIMEOUT_S:.0f} s"
    except Exception as error:  # each is a lost answer here
        history.error = f"{type(error).__name__}: {error}"
    if not history.finished:
        history.error = "the stream ended without a finish reason"


async def _make(client: httpx.AsyncClient, call: Call, history: History) -> None:
    async with client.stream("POST", call.path, json=dict(call.body)) as answer:
        if not answer.is_success:
            await answer.aread()
            history.error = f"{answer.status_code}: {answer.text[:300]}"
        elif call.body.get("stream"):
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    _take_event(history, json.loads(line[6:]))
        else:
            await answer.aread()
            take_document(history, answer.json())


def _take_event(history: History, event: Mapping[str, Any]) -> None:
    """Record an event of chat completions, responses or messages."""
    now_s = time.monotonic()
    if event.get("error"):
        history.error = json.dumps(event["error"])[:300]
    history.prompt_token_ids = history.prompt_token_ids or list(event.get("prompt_token_ids") or ())
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        _add(history, "".join(_texts(delta)) or str(choice.get("text") or ""), now_s, choice.get("token_ids") or ())
        for entry in (choice.get("logprobs") or {}).get("content") or ():
            history.logprobs.append(float(entry["logprob"]))
        history.finish_reason = choice.get("finish_reason") or history.finish_reason
    kind = str(event.get("type", ""))
    if kind.endswith("_text.delta"):
        _add(history, str(event["delta"]), now_s)
    elif kind == "content_block_delta":
        _add(history, "".join(_texts(event["delta"])), now_s)
    elif kind == "message_delta":
        history.finish_reason = (event.get("delta") or {}).get("stop_reason") or history.finish_reason
    elif kind in {"response.completed", "response.incomplete"}:
        history.finish_reason = str(event["response"]["status"])


def _add(history: History, text: str, now_s: float, token_ids: Sequence[int] = ()) -> None:
    history.add(list(token_ids), text, now_s)
    if text and not token_ids:
        history.arrivals_s.append(now_s)


def _texts(delta: Mapping[str, Any]) -> Iterator[str]:
    """Yield every text of a delta: content, reasoning, arguments of tools."""
    for key in ("content", "reasoning", "reasoning_content", "text", "thinking", "partial_json"):
        if isinstance(delta.get(key), str):
            yield delta[key]
    for tool in delta.get("tool_calls") or ():
        yield json.dumps(tool.get("function"))


_OF_A_RUN = {"created", "created_at", "completed_at", "usage", "cache_salt", "metrics"}


def take_document(history: History, document: Any) -> None:
    """Record a document: words and whole numbers as text, fractions beside, since these may differ by rounding."""
    fractions: list[float] = []

    def plain(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if k not in _OF_A_RUN and not k.endswith("id")}
            return {k: plain(v, k) for k, v in sorted(kept.items())}
        if isinstance(value, list):
            return [plain(one) for one in value]
        if isinstance(value, float):
            fractions.append(value)
            return None
        return value

    history.text = json.dumps(plain(document))
    history.logprobs = fractions
    history.arrivals_s.append(time.monotonic())
    history.finish_reason = "answered"
