"""One call of a control endpoint: what a handler gets, how it refuses, how its body is read and its answer made."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from holdfast.api import formats, requests
from holdfast.api.access import Access
from holdfast.api.page.session import WrongTokens
from holdfast.api.standby_wait import StandbyWait
from holdfast.core.ports import ControlPlane
from holdfast.core.protocol.commands import Giver

_BODY_TIMEOUT_S = 30.0


class Kept:
    """What the endpoints remember in a process: wrong tokens, open streams of pages, the wait for standbys."""

    def __init__(self) -> None:
        self.wrong_tokens = WrongTokens()
        self.streams = 0
        self.standby_wait = StandbyWait()


@dataclass(frozen=True)
class Call:
    """Admitted call; `giver` is None for a probe that nothing else admits."""

    request: Request
    control: ControlPlane
    giver: Giver | None
    access: Access
    kept: Kept


Handler = Callable[[Call], Awaitable[Response]]


class Rejected(Exception):
    """A request that is answered with an error before the control plane is involved."""

    def __init__(self, status: int, message: str, hint: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.response = problem(status, formats.Problem(message=message, hint=hint), headers)


async def read_body(request: Request) -> bytes:
    """Return the body of a request. Raises `Rejected` for another type than JSON, a large body, or a late one."""
    if not requests.is_json(request.headers.get("content-type")):
        raise Rejected(415, "the body must be JSON", "send 'Content-Type: application/json'")
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            return await _read_bounded(request)
    except TimeoutError:
        raise Rejected(408, f"the body did not arrive within {_BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise Rejected(400, "the client left before its body arrived") from None


async def _read_bounded(request: Request) -> bytes:
    announced = request.headers.get("content-length", "")
    body = bytearray()
    too_large = announced.isdigit() and int(announced[:20]) > requests.MAX_BODY_BYTES
    if not too_large:
        # Counted as it arrives: a chunked body announces nothing, and an announced size may be a lie.
        async for chunk in request.stream():
            body += chunk
            if too_large := len(body) > requests.MAX_BODY_BYTES:
                break
    if too_large:
        raise Rejected(413, f"the body is larger than {requests.MAX_BODY_BYTES} bytes")
    return bytes(body)


def problem(status: int, described: formats.Problem, headers: dict[str, str] | None = None) -> Response:
    """Return the answer that describes an error."""
    return json(formats.ProblemBody(error=described), status, headers)


def json(content: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an answer in JSON."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")
