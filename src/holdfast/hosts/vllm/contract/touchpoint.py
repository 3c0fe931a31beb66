"""The record of one touchpoint: a place of the host that Holdfast relies on. The registry lists all touchpoints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["wrap", "call", "attribute", "class", "name", "module", "text"]


@dataclass(frozen=True)
class Touchpoint:
    """A place of the host that Holdfast relies on.

    Attributes:
        name: a dotted name in `module`; for a `text` a part of a string constant of the module; empty for a `module`.
        parameters: leading parameter names of a function, without `self`; None: not checked.
        why: the reason for the touchpoint.
        until: the change of the host that would let the touchpoint go.
        reads: locals of the function that are read from a frame in which an exception was raised.
        releases: the supported releases that have the touchpoint; empty: all of them.
    """

    module: str
    name: str
    kind: Kind
    parameters: tuple[str, ...] | None
    why: str
    until: str = "the host offers a documented hook for it"
    reads: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Module and name, by which reports and tests call the touchpoint."""
        return f"{self.module}:{self.name}" if self.name else self.module


def only(release: str, touchpoint: Touchpoint) -> Touchpoint:
    """Describe a touchpoint that a single supported release has."""
    return replace(touchpoint, releases=(release,))


def wrap(module: str, name: str, parameters: tuple[str, ...], why: str) -> Touchpoint:
    """Describe a function that is wrapped."""
    return Touchpoint(module, name, "wrap", parameters, why)


def call(module: str, name: str, parameters: tuple[str, ...] | None, why: str, *reads: str) -> Touchpoint:
    """Describe a function that is called, or the frames of which are read."""
    return Touchpoint(module, name, "call", parameters, why, reads=reads)


def attributes(module: str, cls: str, names: str, why: str) -> tuple[Touchpoint, ...]:
    """Describe attributes of the instances of a class; `names` are separated by spaces."""
    return tuple(Touchpoint(module, f"{cls}.{n}", "attribute", None, why) for n in names.split())


def text(module: str, part: str, why: str) -> Touchpoint:
    """Describe a sentence or a name that stands in a string constant of a module."""
    return Touchpoint(module, part, "text", None, why)


def variables(names: str, why: str) -> tuple[Touchpoint, ...]:
    """Describe environment variables of the host; `names` are separated by spaces."""
    return tuple(text("vllm.envs", name, why) for name in names.split())


def module(name: str, why: str) -> Touchpoint:
    """Describe a module that is named in a string."""
    return Touchpoint(name, "", "module", None, why)
