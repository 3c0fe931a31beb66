"""Where the ranks of one epoch meet to make new communicators. A value; it opens and connects nothing."""

from __future__ import annotations

import msgspec


class Rendezvous(msgspec.Struct, frozen=True):
    """Address of the store of an epoch. The store of an older epoch has no members.

    `extra_wait_s` is how much longer than usual somebody may take to come: a newcomer loads its weights first.
    """

    host: str
    port: int
    epoch: int
    extra_wait_s: float = 0.0
