"""Who may call the control endpoints: one pure decision.

Owns the tokens' digests, never the tokens. Fails closed: what cannot be shown to be local or to carry
the token is refused.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

API_KEY_VARIABLE = "HOLDFAST_API_KEY"


class Purpose(enum.Enum):
    """Purpose of a call, which decides the callers that are admitted."""

    PROBE = "probe"  # readiness, for load balancers
    READ = "read"  # status and events
    COMMAND = "command"  # changes something


@dataclass(frozen=True)
class Caller:
    """Sender of a request, as the request describes the sender.

    `host` is the peer's address, none for a unix socket. `forwarded` is true when a proxy says that it
    sent the request on. `origin` is the page a browser sent it from.
    """

    authorization: str | None = None
    host: str | None = None
    forwarded: bool = False
    origin: str | None = None


@dataclass(frozen=True)
class Refusal:
    """Reason to refuse a call; `challenge` asks for a token in `WWW-Authenticate`."""

    status: int
    message: str
    hint: str
    challenge: bool = False


@dataclass(frozen=True, repr=False)
class Access:
    """Digests of the tokens that open the control endpoints; without digests, commands come from this machine only."""

    digests: tuple[bytes, ...] = ()

    @classmethod
    def from_tokens(cls, tokens: Iterable[str]) -> Access:
        """Return the access by any of `tokens`; a blank token counts as not set."""
        return cls(tuple(_digest(t.strip().encode()) for t in tokens if t.strip()))

    @classmethod
    def from_settings(cls, api_keys: Iterable[str], environ: Mapping[str, str]) -> Access:
        """Return the access by the token in HOLDFAST_API_KEY, else by the server's own API keys."""
        own = cls.from_tokens([environ.get(API_KEY_VARIABLE, "")])
        return own if own.digests else cls.from_tokens(api_keys)

    def knows(self, token: bytes) -> bool:
        """Return whether a token is known, in a time that does not depend on the bytes that differ."""
        digest = _digest(token)
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        return any(matches)


def decide_access(purpose: Purpose, caller: Caller, access: Access) -> Refusal | None:
    """Return the reason to refuse a call, None for an admitted call."""
    if purpose is Purpose.PROBE:
        return None
    if access.digests:
        return _decide_by_token(caller, access)
    if purpose is Purpose.READ:
        return None
    return _decide_by_place(caller)


def _decide_by_token(caller: Caller, access: Access) -> Refusal | None:
    hint = f"send 'Authorization: Bearer <token>' with the server's {API_KEY_VARIABLE} or --api-key"
    token = _bearer_token(caller.authorization)
    if token is None:
        return Refusal(401, "a token is needed", hint, challenge=True)
    if not access.knows(token):
        return Refusal(403, "the token is wrong", hint)
    return None


def _decide_by_place(caller: Caller) -> Refusal | None:
    hint = f"set {API_KEY_VARIABLE} on the server and send it as a bearer token"
    if not is_local_host(caller.host) or caller.forwarded:
        return Refusal(403, "without a token, commands are taken from this machine only", hint)
    # A browser on this machine sends what a foreign page tells it to.
    if caller.origin is not None and not _is_local_origin(caller.origin):
        return Refusal(403, "without a token, commands are not taken from a foreign web page", hint)
    return None


def is_local_host(host: str | None) -> bool:
    """Return whether an address is this machine's loopback; None stands for a unix socket, which is local."""
    if host is None:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _is_local_origin(origin: str) -> bool:
    try:
        name = urlsplit(origin).hostname
    except ValueError:
        return False
    return name is not None and (name == "localhost" or is_local_host(name))


def _bearer_token(authorization: str | None) -> bytes | None:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        return None
    # Servers hand headers over as latin-1: this gives back the bytes that were sent.
    return token.strip().encode("latin-1", "replace")


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
