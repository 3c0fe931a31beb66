"""Keys of the wire between nodes: both pairs follow from a secret that the nodes share.

A hub proves itself by its pair, and no peer can greet a hub without the hub's public key. That key is never sent, and
follows from the secret alone: a peer without the secret gets no further than the handshake.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import zmq
from zmq.utils import z85

MIN_SECRET_BYTES = 16
_COST, _BLOCKS = 1 << 14, 8  # some 50 ms for each guess at the secret


@dataclass(frozen=True)
class CurveKeys:
    """Key pairs of hub and peers, in the encoding of ZeroMQ."""

    hub_public: bytes
    hub_secret: bytes = field(repr=False)
    peer_public: bytes
    peer_secret: bytes = field(repr=False)


def derive_keys(secret: bytes) -> CurveKeys:
    """Return the keys that follow from a secret. The secret has at least `MIN_SECRET_BYTES`."""
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes is shorter than {MIN_SECRET_BYTES}")
    hub, peer = (_secret_key(secret, role) for role in (b"holdfast hub", b"holdfast peer"))
    return CurveKeys(zmq.curve_public(hub), hub, zmq.curve_public(peer), peer)


def _secret_key(secret: bytes, role: bytes) -> bytes:
    key = hashlib.scrypt(secret, salt=role, n=_COST, r=_BLOCKS, p=1, dklen=32)
    encoded: bytes = z85.encode(key)
    return encoded
