"""The page's session: a signed cookie that stands for the control token for an hour, and a limit on wrong tokens.

Pure: keys, bytes and time in, decisions out. A session is kept nowhere, so that every API server of the instance takes
the session of another one. The key is drawn at the start of the instance: a stolen cookie tells nothing of the token.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import urlsplit

LIFETIME_S = 3600
KEY_BYTES = 32
CSRF_HEADER = "X-Holdfast-CSRF"
MAX_WRONG_TOKENS = 10  # of an address, within the window
WINDOW_S = 60.0
MAX_ADDRESSES = 1024

_COOKIE = re.compile(r"([0-9]{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")
_OF_THE_PAGE = (None, "same-origin", "none")


@dataclass(frozen=True)
class Session:
    """Session of a page. `cookie` is its value, `csrf` what commands send in a header; ends at `expires_at`."""

    cookie: str
    csrf: str
    expires_at: int


@dataclass(frozen=True)
class PageCall:
    """What a browser says of a call with a cookie. `host` and `fetch_site` are headers of that name."""

    cookie: str
    csrf: str | None = None
    host: str | None = None
    fetch_site: str | None = None
    now: float = 0.0


def cookie_name(key: bytes) -> str:
    """Return the cookie's name: a browser shares cookies between the ports of a machine, and servers have one each."""
    return f"holdfast-session-{hashlib.sha256(b'name' + key).hexdigest()[:8]}"


def begin_session(key: bytes, now: float) -> Session:
    """Return a new session."""
    return _session(key, int(now) + LIFETIME_S, secrets.token_hex(16))


def find_session(key: bytes, call: PageCall, origin: str | None) -> Session | None:
    """Return the session of a call; None for an ended or forged one, and for a call that another page sent.

    `origin` is the header of that name.
    """
    found = _COOKIE.fullmatch(call.cookie)
    if not key or found is None or not _is_of_the_page(call, origin):
        return None
    session = _session(key, int(found[1]), found[2])
    is_genuine = hmac.compare_digest(session.cookie, call.cookie)
    return session if is_genuine and call.now < session.expires_at else None


def _is_of_the_page(call: PageCall, origin: str | None) -> bool:
    """Return whether a call comes from a page of this server: a page of another port may share the cookie."""
    if call.fetch_site not in _OF_THE_PAGE:
        return False
    return origin is None or is_origin(origin, call.host)


def is_origin(origin: str, host: str | None) -> bool:
    """Return whether an origin is that of a server; the scheme does not count, for a proxy may have changed it."""
    try:
        return bool(host) and urlsplit(origin).netloc == host
    except ValueError:
        return False


def _session(key: bytes, expires_at: int, nonce: str) -> Session:
    stem = f"{expires_at}.{nonce}"
    return Session(f"{stem}.{_sign(key, 'session', stem)}", _sign(key, "csrf", stem), expires_at)


def _sign(key: bytes, purpose: str, stem: str) -> str:
    return hmac.new(key, f"{purpose}:{stem}".encode(), hashlib.sha256).hexdigest()


class WrongTokens:
    """Wrong tokens by address, within a window. An address with too many has to wait, whatever it sends."""

    def __init__(self) -> None:
        self._tried_at: OrderedDict[str, list[float]] = OrderedDict()  # the oldest address first

    def wait_s(self, address: str | None, now: float) -> float:
        """Return the seconds for which an address may not try again, 0 for an address that may."""
        tries = self._recent(_network(address), now)
        return 0.0 if len(tries) < MAX_WRONG_TOKENS else tries[-MAX_WRONG_TOKENS] + WINDOW_S - now

    def note(self, address: str | None, now: float) -> None:
        """Count a wrong token."""
        network = _network(address)
        tries = [*self._recent(network, now), now][-MAX_WRONG_TOKENS:]
        self._tried_at[network] = tries
        self._tried_at.move_to_end(network)
        if len(self._tried_at) > MAX_ADDRESSES:
            self._tried_at.popitem(last=False)

    def _recent(self, network: str, now: float) -> list[float]:
        return [at for at in self._tried_at.get(network, ()) if now - at < WINDOW_S]


def _network(address: str | None) -> str:
    """Return what is counted as one address: the 64 bits of an IPv6 network belong to one customer."""
    try:
        found = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
