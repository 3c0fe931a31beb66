"""Calls of the control endpoints: what is sent, how an answer is read, and how each failure is told. No I/O."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import httpx
import msgspec

from holdfast.api.access import is_loopback
from holdfast.api.control_token import VARIABLE, find_token
from holdfast.api.formats import Problem, ProblemBody

REFUSED, UNREACHABLE = 1, 2
DEFAULT_TIMEOUT_S = 10.0
MAX_TRIES = 3  # of a command with an idempotency key, while the server cannot be reached
_PORTS = {"http": 80, "https": 443}

T = TypeVar("T")


class ClientFailure(Exception):
    """A failed call: a line for people, the exit code of a command, and whether a retry may help.

    `exit_code` is `REFUSED` when the server refused or failed, `UNREACHABLE` when it was not reached or not understood.
    """

    def __init__(self, message: str, exit_code: int, *, passing: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.passing = passing


class Call(NamedTuple):
    """One call, as `httpx` takes it."""

    method: str
    url: str
    headers: dict[bytes, bytes]
    timeout_s: float
    arguments: dict[str, Any]


class Target:
    """A server at a URL, and the token for it."""

    def __init__(self, url: str, api_key: str = "") -> None:
        self.url = url.rstrip("/")
        self._host, self._port = _address_of(url)
        self._stated = os.fsencode(api_key).strip()

    @property
    def token(self) -> bytes | None:
        """The token to send: the stated one, else that of the current user's server at the address; None without."""
        return self._stated or find_token(self._host, self._port)

    @property
    def trust_env(self) -> bool:
        """Whether a proxy from the environment may be used: never on the way to this machine itself."""
        return not (self._host == "localhost" or is_loopback(self._host))

    def reading(self, path: str, **params: int | str) -> Call:
        """Return a call that reads."""
        return self._call("GET", path, DEFAULT_TIMEOUT_S, {}, {"params": params})

    def command(self, path: str, body: msgspec.Struct, timeout_s: float, idempotency_key: str = "") -> Call:
        """Return a call that sends `body`. However often it is repeated, the command is carried out once."""
        key = {b"Idempotency-Key": (idempotency_key or uuid.uuid4().hex).encode()}
        return self._call("POST", path, timeout_s, key, {"content": msgspec.json.encode(body)})

    def content(self, answer: httpx.Response) -> bytes:
        """Return the content of an answer. Raises `ClientFailure` for a refusal."""
        if not answer.is_success:
            raise _failure_of(answer, self.url)
        return answer.content

    def decode(self, content: bytes, kind: type[T]) -> T:
        """Return an answer as a type. Raises `ClientFailure`."""
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ClientFailure(f"{self.url} does not answer like a holdfast server", UNREACHABLE) from None

    def _call(
        self, method: str, path: str, timeout_s: float, extra: dict[bytes, bytes], arguments: dict[str, Any]
    ) -> Call:
        headers = {b"Content-Type": b"application/json", **extra}
        if (token := self.token) is not None:
            headers[b"Authorization"] = b"Bearer " + token
        return Call(method, f"{self.url}/fault_tolerance/{path}", headers, timeout_s, arguments)


def _address_of(url: str) -> tuple[str, int]:
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        parts = httpx.URL()
    if parts.scheme not in _PORTS or not parts.host:
        raise ClientFailure(f"{url!r} is not a URL like http://127.0.0.1:8000", UNREACHABLE)
    return parts.host, parts.port or _PORTS[parts.scheme]


@contextmanager
def translated(url: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException:
        raise ClientFailure(f"{url} did not answer within {timeout_s:g} s", UNREACHABLE, passing=True) from None
    except (httpx.HTTPError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise ClientFailure(f"cannot reach {url}: {reason}", UNREACHABLE, passing=True) from None


def _failure_of(answer: httpx.Response, url: str) -> ClientFailure:
    try:
        problem = msgspec.json.decode(answer.content, type=ProblemBody).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _foreign_failure(answer, url)
    match answer.status_code:
        case 401:
            return ClientFailure(
                f"the server needs its control token: run `holdfast token` as the server's user and set {VARIABLE}",
                REFUSED,
            )
        case 400:
            return ClientFailure(_in_words(problem), UNREACHABLE)
    return ClientFailure(_in_words(problem), REFUSED)


def _foreign_failure(answer: httpx.Response, url: str) -> ClientFailure:
    if answer.status_code == 404:
        return ClientFailure(f"{url} has no control endpoints: was it started with holdfast?", UNREACHABLE)
    passing = answer.status_code >= 500
    return ClientFailure(f"{url} answered {answer.status_code} {answer.reason_phrase}", REFUSED, passing=passing)


def _in_words(problem: Problem) -> str:
    text = problem.message
    if problem.detail:
        text += f" {problem.detail}"
    return f"{text} ({problem.hint})" if problem.hint else text
