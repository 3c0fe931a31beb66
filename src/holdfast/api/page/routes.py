"""Endpoints of the page: its files, login and logout, the session, and the stream of events.

The files hold no data and need no token. Nothing comes from another host, and no script or style is in the page itself.
"""

from __future__ import annotations

import logging
import math
import time
from functools import cache
from importlib.resources import files

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from holdfast.api import requests
from holdfast.api.access import HOW_TO_GET_A_TOKEN, Access, Caller
from holdfast.api.call import Call, Rejected, json, read_body
from holdfast.api.page import session, stream
from holdfast.api.peer import peer_of
from holdfast.core.errors import BadCommand
from holdfast.core.protocol.commands import Credential

POLICY = "; ".join(
    [
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect", "font")),
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}
_PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "txt": "text/plain"}
_INDEX = "index.html"

logger = logging.getLogger("holdfast")


class _Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: str


class SessionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Session of a page. `csrf` is empty, and `expires_at` None, where the call is admitted without a session.

    `admitted_by` is empty for a call that nothing admits: its page shows the login.
    """

    csrf: str
    expires_at: int | None
    admitted_by: str


# ---- files


async def page(call: Call) -> Response:
    """Return the page, which shows nothing before its login."""
    return _file(_INDEX)


async def page_file(call: Call) -> Response:
    """Return a script or a style of the page."""
    return _file(call.request.path_params["name"])


def _file(name: str) -> Response:
    try:
        content = _files()[name]
    except KeyError:
        raise Rejected(404, "the page has no such file") from None
    return Response(content, headers=HEADERS, media_type=_TYPES[name.rpartition(".")[2]])


@cache
def _files() -> dict[str, bytes]:
    """Return the files of the page by name, those of other projects too; all are in memory, so no path is opened."""
    static = files("holdfast.api.page").joinpath("static")
    entries = [*static.iterdir(), *static.joinpath("vendor").iterdir()]
    return {e.name: e.read_bytes() for e in entries if e.is_file() and e.name.rpartition(".")[2] in _TYPES}


# ---- the session


async def login(call: Call) -> Response:
    """Exchange the control token for the cookie of a session."""
    request, wrong = call.request, call.kept.wrong_tokens
    origin, address = request.headers.get("origin"), peer_of(request.scope).address
    if origin is not None and not session.is_origin(origin, request.headers.get("host")):
        raise Rejected(403, "a page of another server may not log in here")
    token = _parse_token(await read_body(request))
    now = time.monotonic()
    if (wait_s := wrong.wait_s(address, now)) > 0.0:
        text = f"too many wrong tokens; try again in {math.ceil(wait_s)} s"
        raise Rejected(429, text, headers={"Retry-After": str(math.ceil(wait_s))})
    if not call.access.knows(token.strip().encode(errors="surrogatepass")):
        _note_wrong_token(wrong, address, now)
        raise Rejected(403, "the token is wrong", HOW_TO_GET_A_TOKEN)
    begun = session.begin_session(call.access.session_key, time.time())
    answer = json(_describe(begun), headers=_PRIVATE)
    _set_cookie(answer, call, begun.cookie, session.LIFETIME_S)
    return answer


def _parse_token(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Login).token
    except msgspec.DecodeError:
        raise BadCommand("the body must be an object with the field 'token'") from None


def _note_wrong_token(wrong: session.WrongTokens, address: str | None, now: float) -> None:
    wrong.note(address, now)
    if (wait_s := wrong.wait_s(address, now)) > 0.0:
        where, tries = address or "an unknown address", session.MAX_WRONG_TOKENS
        logger.warning("the page refuses logins from %s for %.0f s after %d wrong tokens", where, wait_s, tries)


async def logout(call: Call) -> Response:
    """Take the cookie back."""
    answer = Response(status_code=204, headers=_PRIVATE)
    _set_cookie(answer, call, "", 0)
    return answer


async def get_session(call: Call) -> Response:
    """Return the session of the call, with the CSRF token for its commands."""
    if call.giver is None:
        return json(SessionAnswer(csrf="", expires_at=None, admitted_by=""), headers=_PRIVATE)
    caller = caller_of(call.request, call.access)
    found = _found(call, caller) if call.giver.credential is Credential.PAGE_SESSION else None
    if found is not None:
        return json(_describe(found), headers=_PRIVATE)
    admitted = SessionAnswer(csrf="", expires_at=None, admitted_by=call.giver.credential)
    return json(admitted, headers=_PRIVATE)


def _describe(found: session.Session) -> SessionAnswer:
    return SessionAnswer(csrf=found.csrf, expires_at=found.expires_at, admitted_by=Credential.PAGE_SESSION)


def _found(call: Call, caller: Caller) -> session.Session | None:
    return session.find_session(call.access.session_key, caller.page, caller.origin) if caller.page else None


def _set_cookie(answer: Response, call: Call, value: str, max_age_s: int) -> None:
    """Set the cookie for the folder of the login, as the browser sees the folder: a proxy may have moved it."""
    answer.set_cookie(
        session.cookie_name(call.access.session_key),
        value,
        max_age=max_age_s,
        path=None,
        secure=call.request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def caller_of(request: Request, access: Access) -> Caller:
    """Return the sender of a request, as far as the request and its connection tell."""
    headers = request.headers
    authorization = [value for name, value in headers.raw if name == b"authorization"]
    cookie = request.cookies.get(session.cookie_name(access.session_key)) if access.session_key else None
    return Caller(
        authorization=authorization[0] if len(authorization) == 1 else None,
        peer=peer_of(request.scope),
        origin=headers.get("origin"),
        page=session.PageCall(
            cookie=cookie,
            csrf=headers.get(session.CSRF_HEADER),
            host=headers.get("host"),
            fetch_site=headers.get("sec-fetch-site"),
            now=time.time(),
        )
        if cookie
        else None,
    )


# ---- the stream


async def events_stream(call: Call) -> Response:
    """Return the stream of server-sent events."""
    query, headers = call.request.query_params, call.request.headers
    if call.kept.streams >= stream.MAX_STREAMS:
        raise Rejected(503, f"{stream.MAX_STREAMS} pages are open already", "close some", {"Retry-After": "10"})
    place = stream.parse_event_id(headers.get("last-event-id"))
    if place[0] is None and (instance_id := requests.parse_instance_id(query.get("instance_id"))) is not None:
        place = (instance_id, requests.parse_after(query.get("after")))
    found = _found(call, caller_of(call.request, call.access))
    expires_at = math.inf if found is None else found.expires_at
    messages = stream.follow(call.control, place, expires_at, call.kept, lambda: _is_ending(call.request))
    headers_out = {**_PRIVATE, "X-Accel-Buffering": "no"}  # a proxy that collects answers would hold the stream back
    return StreamingResponse(messages, headers=headers_out, media_type="text/event-stream")


def _is_ending(request: Request) -> bool:
    """Return whether the HTTP server is about to end: it waits for open answers, and must not wait for a page."""
    return bool(getattr(getattr(request.app.state, "server", None), "should_exit", False))
