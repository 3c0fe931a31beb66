"""Who may call the control endpoints: one pure decision.

A call needs the control token, from anywhere, or the cookie of a page whose user has given the token. Without either
only two peers are admitted, and only by what the transport itself says of them: a process of the same user on a unix
socket, and any process of this machine when the operator has opened control. What is not known is never permission, and
no header says where a call comes from.

Owns the token's digest, never the token.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from holdfast.api.page.session import PageCall, find_session
from holdfast.core.protocol.commands import Credential

HOW_TO_GET_A_TOKEN = (
    "send 'Authorization: Bearer TOKEN'; `holdfast token` prints the token for the user of the server, and "
    "HOLDFAST_API_KEY or --control-token-file sets the token at the start of the server"
)
UNKNOWN_USER = 65534  # the kernel's name for a user of another namespace, whoever that is
_BLANK = b" \t"


class Purpose(enum.Enum):
    """Purpose of a call, which decides the callers that are admitted."""

    PROBE = "probe"  # readiness, for load balancers
    READ = "read"  # status and events
    COMMAND = "command"  # changes something


@dataclass(frozen=True)
class Peer:
    """Process at the other end of a connection, as the transport describes the process.

    `uid` is the user at the other end of a unix socket; `address` that of a TCP connection. Both are None when the
    transport does not know, for instance because the peer has left.
    """

    uid: int | None = None
    address: str | None = None


@dataclass(frozen=True)
class Caller:
    """Sender of a request: the peer, the `Authorization` header, and the page that a browser sent the request from.

    `page` is None for a call without the page's cookie.
    """

    authorization: bytes | None = None
    peer: Peer = Peer()
    origin: str | None = None
    page: PageCall | None = None


@dataclass(frozen=True)
class Refusal:
    """Reason to refuse a call; `challenge` asks for a token in `WWW-Authenticate`."""

    status: int
    message: str
    hint: str
    challenge: bool = False


@dataclass(frozen=True, repr=False)
class Access:
    """Rule of a server: the digest of the token, the server's own user, and whether control is open to this machine.

    `source` says where the server has the token from. `session_key` signs the page's cookies; empty: no page.
    """

    digest: bytes
    uid: int | None = None
    is_open: bool = False
    source: Credential = Credential.TOKEN_MADE_AT_START
    session_key: bytes = b""

    @classmethod
    def by_token(
        cls,
        token: bytes,
        *,
        uid: int | None = None,
        is_open: bool = False,
        source: Credential = Credential.TOKEN_MADE_AT_START,
        session_key: bytes = b"",
    ) -> Access:
        """Return the access by `token`, which is not blank."""
        return cls(_digest(token), uid, is_open, source, session_key)

    def knows(self, token: bytes) -> bool:
        """Return whether a token is the right one, in a time that does not depend on the bytes that differ."""
        return hmac.compare_digest(_digest(token), self.digest)


def decide_access(purpose: Purpose, caller: Caller, access: Access) -> Refusal | None:
    """Return the reason to refuse a call, None for an admitted call."""
    if purpose is Purpose.PROBE:
        return None
    credential = find_credential(caller, access)
    if credential is Credential.PAGE_SESSION and purpose is Purpose.COMMAND and not _has_csrf_token(caller, access):
        return Refusal(403, "a command of the page needs the page's CSRF token", "reload the page, and try again")
    if credential is not None:
        return None
    if _bearer_token(caller.authorization) is not None:
        return Refusal(403, "the token is wrong", HOW_TO_GET_A_TOKEN)
    if caller.page is not None:
        return Refusal(401, "the page's session has ended", "log in again", challenge=True)
    return Refusal(401, "a token is needed", HOW_TO_GET_A_TOKEN, challenge=True)


def find_credential(caller: Caller, access: Access) -> Credential | None:
    """Return what admits a caller to more than probes, None for a caller that nothing admits."""
    token = _bearer_token(caller.authorization)
    if token is not None:
        return access.source if access.knows(token) else None
    if _is_same_user(caller.peer, access):
        return Credential.SAME_USER
    if access.is_open and _is_of_this_machine(caller):
        return Credential.OPEN_TO_THIS_MACHINE
    if caller.page is not None and find_session(access.session_key, caller.page, caller.origin) is not None:
        return Credential.PAGE_SESSION
    return None


def _has_csrf_token(caller: Caller, access: Access) -> bool:
    session = find_session(access.session_key, caller.page, caller.origin) if caller.page is not None else None
    sent = caller.page.csrf if caller.page is not None else None
    return session is not None and sent is not None and hmac.compare_digest(session.csrf.encode(), sent.encode())


def _is_same_user(peer: Peer, access: Access) -> bool:
    return peer.uid is not None and peer.uid == access.uid and peer.uid != UNKNOWN_USER


def _is_of_this_machine(caller: Caller) -> bool:
    """Return whether a call comes from this machine, and not from a page that a browser loaded elsewhere."""
    is_near = caller.peer.uid is not None or is_loopback(caller.peer.address)
    return is_near and (caller.origin is None or _is_local_origin(caller.origin))


def is_loopback(host: str | None) -> bool:
    """Return whether an address is this machine's loopback; an unknown address is not."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _is_local_origin(origin: str) -> bool:
    try:
        name = urlsplit(origin).hostname
    except ValueError:
        return False
    return name is not None and (name == "localhost" or is_loopback(name))


def _bearer_token(authorization: bytes | None) -> bytes | None:
    """Return the bytes after the scheme: a token may be of any bytes, and ends with any byte but a blank."""
    scheme, _, token = (authorization or b"").strip(_BLANK).partition(b" ")
    if scheme.lower() != b"bearer" or not token.strip(_BLANK):
        return None
    return token.strip(_BLANK)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
