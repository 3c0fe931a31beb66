"""Start of a spawned process, before the import of the host, which takes seconds.

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
from holdfast.hosts.vllm.process.forking import keep_fork_server
from holdfast.hosts.vllm.process.limits import raise_descriptor_limit, settle_temporary_folder


class Bootstrap:
    """Main function of a process, with the preparation before the host is imported.

    Unpickling an instance in the new process runs the preparation, before the arguments are unpickled, which imports
    the whole host. For the same reason the main function travels by name.

    Args:
        background: start at background CPU priority.
        paced: in the background, take a share of a busy processor instead of idle processors only.
        forks: keep a fork server, with the host imported and nothing made.
    """

    def __init__(
        self, main: Callable[..., None], *, background: bool, paced: bool = False, forks: bool = False
    ) -> None:
        self._main = main
        self._background = background
        self._paced = paced
        self._forks = forks

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _begin, (self._main.__module__, self._main.__qualname__, self._background, self._paced, self._forks)


@contextlib.contextmanager
def bootstrapped(context: Any, *, background: bool, forks: bool = False) -> Iterator[None]:
    """Give processes that are made from a spawning context inside a `Bootstrap`. For a single thread at a time.

    Nested blocks do nothing: the outermost block decides.

    Args:
        context: of `multiprocessing`; a context that forks stays unchanged, because a fork imports nothing.
        background: start at background CPU priority.
        forks: keep a fork server in each process.
    """
    if context.get_start_method() != "spawn" or "Process" in vars(context):
        yield
        return

    def make(**about: Any) -> Any:
        target = about["target"]
        if not isinstance(target, Bootstrap):
            target = Bootstrap(target, background=background, forks=forks)
        return type(context).Process(**{**about, "target": target})

    vars(context)["Process"] = make
    try:
        with priority.hurry_is_kept() if background else contextlib.nullcontext():
            yield
    finally:
        del vars(context)["Process"]


def _begin(module: str, name: str, background: bool, paced: bool, forks: bool) -> Callable[..., None]:
    if background:
        priority.begin(paced=paced)
    raise_descriptor_limit()
    settle_temporary_folder()
    gc.disable()
    main = pkgutil.resolve_name(f"{module}:{name}")
    if forks:  # before the arguments are unpickled, which attaches hooks
        keep_fork_server()
    return functools.partial(_run, main, background)


def _run(main: Callable[..., None], background: bool, /, *args: Any, **kwargs: Any) -> None:
    freeze_objects()
    try:
        main(*args, **kwargs)
    finally:
        if background:
            priority.end()  # the timer would kill an ending interpreter


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Exclude all objects that the block makes from garbage collection, for good.

    The host makes some hundred thousand long-lived objects. Collections in the block would take a fifth of the time,
    and every collection that the host requests while loading a model would take half a second.
    """
    gc.disable()
    try:
        yield
    finally:
        freeze_objects()


def freeze_objects() -> None:
    """Exclude all present objects from garbage collection, without a first collection, which would take time."""
    gc.freeze()
    gc.enable()
