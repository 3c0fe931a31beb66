"""A tiny client of the control endpoints; the only place that knows how HTTP fails.

Exit codes: 1 when the server refused or failed, 2 when the server was not reached or the usage was wrong.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeVar

import httpx
import msgspec
import typer

from holdfast.api.access import is_loopback
from holdfast.api.control_token import VARIABLE, find_token
from holdfast.api.formats import Problem, ProblemBody

REFUSED, UNREACHABLE = 1, 2
_PORTS = {"http": 80, "https": 443}
DEFAULT_TIMEOUT_S = 10.0

T = TypeVar("T")


class ClientFailure(Exception):
    """A failed call: a line for people, the exit code, and whether a retry may help."""

    def __init__(self, message: str, exit_code: int, *, passing: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.passing = passing


class ControlClient:
    """Client of a server's control endpoints. Raises `ClientFailure` and nothing else."""

    def __init__(self, url: str, api_key: str = "") -> None:
        self._url = url.rstrip("/")
        self._host, self._port = _address_of(url)
        self._stated = os.fsencode(api_key).strip()

    @property
    def token(self) -> bytes | None:
        """The token to send: the stated one, else that of the current user's server at the address; None without."""
        return self._stated or find_token(self._host, self._port)

    def get(self, path: str, kind: type[T], **params: int | str) -> T:
        """Return the answer of an endpoint, decoded as `kind`."""
        return self._call("GET", path, kind, DEFAULT_TIMEOUT_S, params=params)

    def fetch(self, path: str) -> bytes:
        """Return the answer of an endpoint as it is."""
        return self._request("GET", path, DEFAULT_TIMEOUT_S)

    def post(self, path: str, body: msgspec.Struct, kind: type[T], timeout_s: float = DEFAULT_TIMEOUT_S) -> T:
        """Send `body` to an endpoint and return the answer, decoded as `kind`; wait up to `timeout_s`."""
        # One call is one command, however often what lies between repeats the call.
        headers = {b"Idempotency-Key": uuid.uuid4().hex.encode()}
        return self._call("POST", path, kind, timeout_s, content=msgspec.json.encode(body), extra_headers=headers)

    def _call(
        self,
        method: str,
        path: str,
        kind: type[T],
        timeout_s: float,
        extra_headers: Mapping[bytes, bytes] = MappingProxyType({}),
        **request: Any,
    ) -> T:
        content = self._request(method, path, timeout_s, extra_headers, **request)
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ClientFailure(f"{self._url} does not answer like a holdfast server", UNREACHABLE) from None

    def _request(
        self,
        method: str,
        path: str,
        timeout_s: float,
        extra_headers: Mapping[bytes, bytes] = MappingProxyType({}),
        **request: Any,
    ) -> bytes:
        # A proxy from the environment is never the way to this machine itself.
        trust_env = not (self._host == "localhost" or is_loopback(self._host))
        headers = {**self._headers(), **extra_headers}
        with _translated(self._url, timeout_s), httpx.Client(timeout=timeout_s, trust_env=trust_env) as http:
            answer = http.request(method, f"{self._url}/fault_tolerance/{path}", headers=headers, **request)
        if not answer.is_success:
            raise _failure_of(answer, self._url)
        return answer.content

    def _headers(self) -> dict[bytes, bytes]:
        headers = {b"Content-Type": b"application/json"}
        if (token := self.token) is not None:
            headers[b"Authorization"] = b"Bearer " + token
        return headers


@contextmanager
def reporting() -> Iterator[None]:
    """Turn a `ClientFailure` into a line on stderr and an exit code."""
    try:
        yield
    except ClientFailure as failure:
        typer.echo(f"holdfast: {printable(str(failure))}", err=True)
        raise typer.Exit(failure.exit_code) from None


def printable(text: str) -> str:
    """Return text from a server without characters that control a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _address_of(url: str) -> tuple[str, int]:
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        parts = httpx.URL()
    if parts.scheme not in _PORTS or not parts.host:
        raise ClientFailure(f"{url!r} is not a URL like http://127.0.0.1:8000", UNREACHABLE)
    return parts.host, parts.port or _PORTS[parts.scheme]


@contextmanager
def _translated(url: str, timeout_s: float) -> Iterator[None]:
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
