"""Attachment of hooks to the host; records which hooks this process has attached."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from holdfast.core.errors import HookNotAttached
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint
from holdfast.hosts.vllm.contract.versions import host_version, supported_release

Wrapper = Callable[..., Any]
_attached: dict[str, Touchpoint] = {}


def attach(touchpoint: Touchpoint, around: Callable[..., Any]) -> None:
    """Replace a target of the host by `around(original, *args, **kwargs)`. Idempotent: the first to attach stays.

    Does nothing where the touchpoint is not of the installed release.

    Raises:
        HookNotAttached: the target is missing, has another signature, or is already wrapped by a second copy of
            this hook.
    """
    if touchpoint.label in _attached or not is_present(touchpoint):
        return
    owner, attribute = _resolve(touchpoint)
    original = inspect.getattr_static(owner, attribute)
    _check_signature(touchpoint, original)
    if hasattr(original, "__holdfast__"):
        raise HookNotAttached(f"{touchpoint.label} is wrapped already, by another copy of Holdfast")
    setattr(owner, attribute, _wrapper(original, around, touchpoint))
    _attached[touchpoint.label] = touchpoint


def is_present(touchpoint: Touchpoint) -> bool:
    """Return whether the installed release has a touchpoint, by the registry."""
    return not touchpoint.releases or supported_release(host_version()) in touchpoint.releases


def look_up(*touchpoints: Touchpoint) -> Any:
    """Return the object of the first touchpoint that the installed release has."""
    owner, attribute = _resolve(next(filter(is_present, touchpoints)))
    return getattr(owner, attribute)


def attached() -> tuple[str, ...]:
    """Return the labels of all hooks that the process has attached."""
    return tuple(sorted(_attached))


def missing(expected: Iterable[Touchpoint], reported: Iterable[str]) -> list[str]:
    """Return the labels of the expected hooks that a process has not reported."""
    there = set(reported)
    return [t.label for t in expected if t.label not in there]


def _resolve(touchpoint: Touchpoint) -> tuple[Any, str]:
    try:
        owner: Any = importlib.import_module(touchpoint.module)
        *path, attribute = touchpoint.name.split(".")
        for part in path:
            owner = getattr(owner, part)
        inspect.getattr_static(owner, attribute)
    except (ImportError, AttributeError) as error:
        raise HookNotAttached(f"{touchpoint.label} is not in this host: {error}") from error
    return owner, attribute


def _check_signature(touchpoint: Touchpoint, original: Any) -> None:
    expected = touchpoint.parameters or ()
    found = [p for p in inspect.signature(original).parameters if p != "self"]
    if tuple(found[: len(expected)]) != expected:
        raise HookNotAttached(f"{touchpoint.label} takes {found}, expected {list(expected)} first")


def _wrapper(original: Any, around: Callable[..., Any], touchpoint: Touchpoint) -> Wrapper:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    call.__holdfast__ = touchpoint.label  # type: ignore[attr-defined]
    return call
