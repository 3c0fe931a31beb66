"""The client over HTTP, for threads and for asyncio. Every wait is bounded."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx
import msgspec

from holdfast.api.formats import EventsPage, Executed, Readiness, Status
from holdfast.api.requests import AwaitedRequest, Changes, CommandName, Params, PauseMode
from holdfast.client.calls import DEFAULT_TIMEOUT_S, MAX_TRIES, Call, ClientFailure, Target, translated
from holdfast.client.following import Follower, Place, follow_events
from holdfast.core.config import SettingValue
from holdfast.core.protocol.events import Event
from holdfast.core.protocol.incidents import TAR_SUFFIX, IncidentsPage, StoredIncident

DEFAULT_URL = "http://127.0.0.1:8000"
ANSWER_MARGIN_S = 5.0  # the server ends the wait; the client only gives its answer time to arrive
RETRY_PAUSE_S = 0.5

T = TypeVar("T")
_FROM_THE_FIRST = Place()


class Client:
    """Client that waits. Raises `ClientFailure` and nothing else.

    Without `api_key`, the token of the current user's server at the address is found by itself.
    """

    def __init__(self, url: str = DEFAULT_URL, api_key: str = "") -> None:
        self._target = Target(url, api_key)

    @property
    def token(self) -> bytes | None:
        """The token that is sent; None without."""
        return self._target.token

    def get(self, path: str, kind: type[T], **params: int | str) -> T:
        """Return the answer of an endpoint, decoded as `kind`."""
        return self._target.decode(self._send(self._target.reading(path, **params)), kind)

    def fetch(self, path: str) -> bytes:
        """Return the answer of an endpoint as it is."""
        return self._send(self._target.reading(path))

    def post(self, path: str, body: msgspec.Struct, kind: type[T], timeout_s: float = DEFAULT_TIMEOUT_S) -> T:
        """Send `body` to an endpoint and return the answer, decoded as `kind`; wait up to `timeout_s`."""
        return self._target.decode(self._send(self._target.command(path, body, timeout_s)), kind)

    def status(self) -> Status:
        """Return the state of every engine."""
        return self.get("status", Status)

    def events(self, place: Place = _FROM_THE_FIRST) -> EventsPage:
        """Return the events after a place, as far as they are kept."""
        return self.get("events", EventsPage, **place.query)

    def follow(
        self,
        place: Place = _FROM_THE_FIRST,
        say_lost: Callable[[ClientFailure], None] = lambda failure: None,
    ) -> Iterator[Event]:
        """Yield every event after a place, as it happens: over lost connections and restarts of the server."""
        return follow_events(self.events, place, time.sleep, say_lost)

    def apply(
        self,
        command: CommandName | str,
        *,
        engines: Sequence[int] = (),
        ranks: Sequence[int] = (),
        soft: bool = False,
        settings: dict[str, SettingValue] | None = None,
        timeout_s: float | None = None,
        idempotency_key: str = "",
    ) -> Executed:
        """Run a command and wait for its end. Repeated while the server cannot be reached, and carried out once."""
        body, wait_s = _instruction(command, engines, ranks, soft, settings, timeout_s)
        call = self._target.command("apply", body, wait_s + ANSWER_MARGIN_S, idempotency_key)
        for tries in range(1, MAX_TRIES + 1):
            try:
                return self._target.decode(self._send(call), Executed)
            except ClientFailure as failure:
                if not failure.passing or tries == MAX_TRIES:
                    raise
                time.sleep(RETRY_PAUSE_S)
        raise AssertionError("unreachable")

    def incidents(self) -> IncidentsPage:
        """Return the incidents that are kept, newest first."""
        return self.get("incidents", IncidentsPage)

    def incident(self, incident_id: str) -> StoredIncident:
        """Return one incident."""
        return self.get(f"incidents/{incident_id}", StoredIncident)

    def incident_tar(self, incident_id: str) -> bytes:
        """Return the files of an incident as a tar."""
        return self.fetch(f"incidents/{incident_id}{TAR_SUFFIX}")

    def _send(self, call: Call) -> bytes:
        target = self._target
        http = httpx.Client(timeout=call.timeout_s, trust_env=target.trust_env)
        with translated(target.url, call.timeout_s), http:
            answer = http.request(call.method, call.url, headers=call.headers, **call.arguments)
        return target.content(answer)


class AsyncClient:
    """Client for asyncio; an async context manager. Raises `ClientFailure` and nothing else. As `Client`."""

    def __init__(self, url: str = DEFAULT_URL, api_key: str = "") -> None:
        self._target = Target(url, api_key)
        self._http = httpx.AsyncClient(trust_env=self._target.trust_env)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def get(self, path: str, kind: type[T], **params: int | str) -> T:
        """Return the answer of an endpoint, decoded as `kind`."""
        return self._target.decode(await self._send(self._target.reading(path, **params)), kind)

    async def status(self) -> Status:
        """Return the state of every engine."""
        return await self.get("status", Status)

    async def is_ready(self) -> bool:
        """Return whether the instance makes progress; False also when the server cannot be reached."""
        try:
            return (await self.get("ready", Readiness)).ready
        except ClientFailure:
            return False

    async def events(self, place: Place = _FROM_THE_FIRST) -> EventsPage:
        """Return the events after a place, as far as they are kept."""
        return await self.get("events", EventsPage, **place.query)

    async def follow(
        self,
        place: Place = _FROM_THE_FIRST,
        say_lost: Callable[[ClientFailure], None] = lambda failure: None,
    ) -> AsyncIterator[Event]:
        """Yield every event after a place, as it happens: over lost connections and restarts of the server."""
        follower = Follower(place)
        for event in follower.take(await self.events(place)):
            yield event
        while True:
            await asyncio.sleep(follower.pause_s)
            try:
                page = await self.events(follower.place)
            except ClientFailure as failure:
                if follower.fail(failure):
                    say_lost(failure)
                continue
            for event in follower.take(page):
                yield event

    async def apply(
        self,
        command: CommandName | str,
        *,
        engines: Sequence[int] = (),
        ranks: Sequence[int] = (),
        soft: bool = False,
        settings: dict[str, SettingValue] | None = None,
        timeout_s: float | None = None,
        idempotency_key: str = "",
    ) -> Executed:
        """Run a command and wait for its end. Repeated while the server cannot be reached, and carried out once."""
        body, wait_s = _instruction(command, engines, ranks, soft, settings, timeout_s)
        call = self._target.command("apply", body, wait_s + ANSWER_MARGIN_S, idempotency_key or uuid.uuid4().hex)
        for tries in range(1, MAX_TRIES + 1):
            try:
                return self._target.decode(await self._send(call), Executed)
            except ClientFailure as failure:
                if not failure.passing or tries == MAX_TRIES:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)
        raise AssertionError("unreachable")

    async def incidents(self) -> IncidentsPage:
        """Return the incidents that are kept, newest first."""
        return await self.get("incidents", IncidentsPage)

    async def incident(self, incident_id: str) -> StoredIncident:
        """Return one incident."""
        return await self.get(f"incidents/{incident_id}", StoredIncident)

    async def _send(self, call: Call) -> bytes:
        target = self._target
        with translated(target.url, call.timeout_s):
            about: dict[str, Any] = {"headers": call.headers, "timeout": call.timeout_s, **call.arguments}
            answer = await self._http.request(call.method, call.url, **about)
        return target.content(answer)


def _instruction(
    command: CommandName | str,
    engines: Sequence[int],
    ranks: Sequence[int],
    soft: bool,
    settings: dict[str, SettingValue] | None,
    timeout_s: float | None,
) -> tuple[AwaitedRequest[Params | Changes], float]:
    """Return the body of a command, and for how long its end is waited."""
    name = CommandName(command)
    wait_s = name.wait_s if timeout_s is None else timeout_s
    params = Params(
        engine_ids=tuple(engines) or None, mode=PauseMode.SOFT if soft else None, ranks=tuple(ranks) or None
    )
    body = AwaitedRequest[Params | Changes](
        fault_tolerance_instruction=name, fault_tolerance_timeout=wait_s, fault_tolerance_params=settings or params
    )
    return body, wait_s
