"""Requests of the simulated clients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """A request. Only engines with the same number of ranks give the same answer."""

    name: str
    prompt: tuple[int, ...]
    max_tokens: int
    ranks: int
