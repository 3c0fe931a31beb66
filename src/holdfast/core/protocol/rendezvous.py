"""Where the ranks of one epoch meet to make new communicators. A value; it opens and connects nothing."""

from __future__ import annotations

import msgspec


class Rendezvous(msgspec.Struct, frozen=True):
    """The address of an epoch's store. Whoever holds one of an older epoch meets nobody.

    `extra_wait_s` is how much longer than usual somebody may take to come: a newcomer loads its weights first.
    """

    host: str
    port: int
    epoch: int
    extra_wait_s: float = 0.0
