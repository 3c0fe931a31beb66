"""What one touchpoint is: a place of the host that Holdfast relies on. The places themselves stand in the register."""

from __future__ import annotations

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

    @property
    def label(self) -> str:
        return f"{self.module}:{self.name}"


def wrap(module: str, name: str, parameters: tuple[str, ...], why: str) -> Touchpoint:
    return Touchpoint(module, name, "wrap", parameters, why)


def call(module: str, name: str, parameters: tuple[str, ...] | None, why: str, *reads: str) -> Touchpoint:
    return Touchpoint(module, name, "call", parameters, why, reads=reads)


def attributes(module: str, cls: str, names: str, why: str) -> tuple[Touchpoint, ...]:
    return tuple(Touchpoint(module, f"{cls}.{n}", "attribute", None, why) for n in names.split())
