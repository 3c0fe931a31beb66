"""How a spawned process begins: what is so before it imports the host, which takes seconds.

Never imports the host itself.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

from holdfast.hosts.vllm.process import priority


class Bootstrap:
    """The main function of a process, with what comes before it.

    Pickled, it is a call: it is made in the new process before what the function is given is unpickled, which
    imports the whole host. For the same reason the function travels by its name.
    """

    def __init__(self, main: Callable[..., None], *, background: bool) -> None:
        self._main = main
        self._background = background

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _begin, (self._main.__module__, self._main.__qualname__, self._background)


def _begin(module: str, name: str, background: bool) -> Callable[..., None]:
    if background:
        priority.begin()
    gc.disable()
    return functools.partial(_run, pkgutil.resolve_name(f"{module}:{name}"), background)


def _run(main: Callable[..., None], background: bool, /, *args: Any, **kwargs: Any) -> None:
    freeze_objects()
    try:
        main(*args, **kwargs)
    finally:
        if background:
            priority.end()  # its timer would kill an interpreter that ends


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """What is made inside stays as long as the process: it is not looked through for garbage, now or ever.

    The host has some hundred thousand such objects. Collections while they are made take a fifth of the time, and
    each of those that the host orders while it loads a model would take half a second.
    """
    gc.disable()
    try:
        yield
    finally:
        freeze_objects()


def freeze_objects() -> None:
    """Everything that there is now. Nothing is collected first: that costs more time than the garbage costs memory."""
    gc.freeze()
    gc.enable()
