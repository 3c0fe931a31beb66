"""What one touchpoint is: a place of the host that Holdfast relies on. The places themselves stand in the register."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["wrap", "call", "attribute", "class"]


@dataclass(frozen=True)
class Touchpoint:
    """One place of the host that Holdfast relies on.

    `name` is a dotted name in `module`; `parameters` the leading parameter names of a function without
    `self` (none: not checked); `until` says what would let the touchpoint go.
    """

    module: str
    name: str
    kind: Kind
    parameters: tuple[str, ...] | None
    why: str
    until: str = "the host offers a documented hook for it"
    reads: tuple[str, ...] = ()  # locals of the function that are read from a frame an exception left
    since: str | None = None  # the first series of the host that has it, "0.32"; none: as far back as is supported

    @property
    def label(self) -> str:
        return f"{self.module}:{self.name}"

    def stands_in(self, version: str) -> bool:
        """Whether a release of the host is one that has it."""
        return self.since is None or _series(version) >= _series(self.since)


def _series(version: str) -> tuple[int, ...]:
    """The two leading numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def wrap(module: str, name: str, parameters: tuple[str, ...], why: str, *, since: str | None = None) -> Touchpoint:
    return Touchpoint(module, name, "wrap", parameters, why, since=since)


def call(module: str, name: str, parameters: tuple[str, ...] | None, why: str, *reads: str) -> Touchpoint:
    return Touchpoint(module, name, "call", parameters, why, reads=reads)


def attributes(module: str, cls: str, names: str, why: str) -> tuple[Touchpoint, ...]:
    return tuple(Touchpoint(module, f"{cls}.{n}", "attribute", None, why) for n in names.split())
