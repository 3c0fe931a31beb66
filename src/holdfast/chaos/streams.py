"""Plays clients: many concurrent streaming requests through the `openai` client, every token recorded on arrival.

Every wait is bounded, and nothing is retried: a request that the server loses must show as lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.chaos.history import History
from holdfast.core.errors import WorldError

MODEL_NAME = "holdfast-small"
RANK_HEADER = "X-data-parallel-rank"  # read by the host


@dataclass(frozen=True)
class StreamSpec:
    """Specification of a request. `cache_salt` separates prefix-cache entries of different runs.

    `data_parallel_rank` pins the request to an engine; without it the host balances. `request_id` becomes part of the
    server's id of the request.
    """

    name: str
    prompt: str
    max_tokens: int = 200
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    n: int = 1
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: Mapping[str, Any] | None = None
    ignore_eos: bool = True
    cache_salt: str | None = None
    data_parallel_rank: int | None = None
    request_id: str | None = None  # the host derives its own id from it
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of the host

    def request(self, model: str) -> dict[str, Any]:
        """Return the arguments for the client's `completions.create`."""
        return {
            "model": model,
            "prompt": self.prompt,
            "stream": True,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "n": self.n,
            "logprobs": self.logprobs,
            "stop": list(self.stop) or None,
            "extra_body": self._host_fields(),
            "extra_headers": {} if self.data_parallel_rank is None else {RANK_HEADER: str(self.data_parallel_rank)},
        }

    def _host_fields(self) -> dict[str, Any]:
        """Return the fields that the host accepts beside OpenAI's."""
        fields: dict[str, Any] = {
            "return_token_ids": True,
            "ignore_eos": self.ignore_eos,
            "min_tokens": self.min_tokens,
            "repetition_penalty": self.repetition_penalty,
        }
        if self.request_id is not None:
            fields["request_id"] = self.request_id
        if self.cache_salt:
            fields["cache_salt"] = self.cache_salt
        if self.json_schema is not None:
            schema = {"name": "answer", "schema": dict(self.json_schema)}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        return {**fields, **self.extra}

    @property
    def is_unseeded(self) -> bool:
        """Tell whether the answer differs from run to run, and is judged by its logprobs."""
        return self.temperature > 0 and self.seed is None and self.logprobs is not None

    def history_names(self) -> list[str]:
        return [self.name] if self.n == 1 else [f"{self.name}#{index}" for index in range(self.n)]


LAG_PROBE_S = 0.005


class Load:
    """A batch of concurrent streams; `histories` may be read during the run.

    `lags` holds when the client itself was late, and by how much: that part of a wait is not the server's.
    """

    def __init__(
        self, url: str, specs: Sequence[StreamSpec], *, model: str = MODEL_NAME, timeout_s: float = 180.0
    ) -> None:
        self._url, self._model, self._timeout_s = url, model, timeout_s
        self._specs = tuple(specs)
        self.lags: list[tuple[float, float]] = []
        now_s = time.monotonic()
        self._by_spec = [_histories_of(spec, now_s) for spec in self._specs]

    @property
    def tokens(self) -> int:
        """Return the largest number of tokens of an answer."""
        return max(spec.max_tokens for spec in self._specs)

    def named(self, request_id: str) -> frozenset[str]:
        """Return the names of the answers to requests with a request id; empty without an id."""
        specs = [spec for spec in self._specs if request_id and spec.request_id == request_id]
        return frozenset(name for spec in specs for name in spec.history_names())

    @property
    def histories(self) -> list[History]:
        return [history for group in self._by_spec for history in group]

    async def run(self) -> list[History]:
        """Send everything at once, wait until each answer has ended or timed out, and read unseeded answers again."""
        from openai import AsyncOpenAI

        async with AsyncOpenAI(
            base_url=f"{self._url}/v1", api_key="unused", max_retries=0, timeout=self._timeout_s
        ) as client:
            probe = asyncio.create_task(self._watch_lag())
            pairs = zip(self._specs, self._by_spec, strict=True)
            await asyncio.gather(*(self._bounded(client, spec, group) for spec, group in pairs))
            probe.cancel()
            unseeded = [one for one in self.histories if one.is_unseeded and one.error is None]
            await asyncio.gather(*(read_again(client, one, self._model) for one in unseeded))
        return self.histories

    async def _watch_lag(self) -> None:
        while True:
            slept_s = time.monotonic()
            await asyncio.sleep(LAG_PROBE_S)
            self.lags.append((slept_s, time.monotonic() - slept_s - LAG_PROBE_S))

    def longest_lag_s(self, begin_s: float, end_s: float) -> float:
        """Return the longest lateness of the client that touches a window."""
        return max((lag for at, lag in self.lags if at <= end_s and at + LAG_PROBE_S + lag >= begin_s), default=0.0)

    async def _bounded(self, client: Any, spec: StreamSpec, group: list[History]) -> None:
        """Run a request; write every failure into its histories and raise nothing."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._stream(client, spec, group)
        except TimeoutError:
            _fail(group, f"no end within {self._timeout_s:.0f} s")
        except Exception as error:  # the client's errors are many; each is a lost answer here
            _fail(group, f"{type(error).__name__}: {error}")
        else:
            _fail(group, "the stream ended without a finish reason")

    async def _stream(self, client: Any, spec: StreamSpec, group: list[History]) -> None:
        for history in group:
            history.sent_s = time.monotonic()
        answer = await client.completions.with_raw_response.create(**spec.request(self._model))
        for history in group:
            history.port = _port_of(answer.http_response)
        async for chunk in answer.parse():
            now_s = time.monotonic()
            for choice in chunk.choices:
                _record(group[choice.index], choice, now_s)


async def read_again(client: Any, history: History, model: str = MODEL_NAME) -> None:
    """Record the logprobs of an answer's tokens when the model reads prompt and answer as one prompt."""
    try:
        answer = await client.completions.create(
            model=model,
            prompt=history.prompt_token_ids + history.token_ids,
            max_tokens=1,
            temperature=0.0,
            extra_body={"prompt_logprobs": 1},
        )
        read = answer.choices[0].prompt_logprobs[len(history.prompt_token_ids) :]
        pairs = zip(history.token_ids, read, strict=True)
        entries = [(found[str(token)], found.values()) for token, found in pairs]
        history.read_again_logprobs = [float(own["logprob"]) for own, _ in entries]
        history.read_again_best = [max(float(one["logprob"]) for one in every) for _, every in entries]
    except Exception as error:  # the client's errors are many; each leaves the answer without a judgement
        history.read_again_error = f"{type(error).__name__}: {error}"


def _port_of(response: Any) -> int | None:
    """Return the client's port of the connection of a response."""
    connection = response.extensions.get("network_stream")
    address = connection.get_extra_info("client_addr") if connection is not None else None
    return int(address[1]) if address else None


def _histories_of(spec: StreamSpec, now_s: float) -> list[History]:
    return [
        History(name, now_s, engine_id=spec.data_parallel_rank, is_unseeded=spec.is_unseeded)
        for name in spec.history_names()
    ]


def _record(history: History, choice: Any, now_s: float) -> None:
    history.prompt_token_ids = history.prompt_token_ids or list(getattr(choice, "prompt_token_ids", None) or ())
    history.add(list(getattr(choice, "token_ids", None) or ()), choice.text, now_s)
    if choice.logprobs is not None:
        history.logprobs.extend(value for value in choice.logprobs.token_logprobs or () if value is not None)
    if choice.finish_reason is not None:
        history.finish_reason = choice.finish_reason


def _fail(group: Iterable[History], error: str) -> None:
    for history in group:
        if not history.finished:
            history.error = error


async def first_token_s(url: str, *, model: str = MODEL_NAME, timeout_s: float = 60.0) -> float:
    """Send a request and return the arrival of the first token (monotonic seconds).

    Raises `WorldError` without a token.
    """
    spec = StreamSpec("first-token", "The first word", max_tokens=1)
    [history] = await Load(url, [spec], model=model, timeout_s=timeout_s).run()
    if not history.arrivals_s:
        raise WorldError(f"the server returned no token: {history.error}")
    return history.arrivals_s[0]
