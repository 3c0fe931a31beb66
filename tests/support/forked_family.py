"""A command for the tests of `support.warm_start`: an engine core by name, its worker, and what each finds."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from typing import Any

_SPAWN = multiprocessing.get_context("spawn")
_unpickled: list[str] = []


class Hooks:
    """An argument whose unpickling changes the process, as the executor class of an engine core does."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, ()


def _attach() -> Hooks:
    _unpickled.append("hooks of an engine core")
    return Hooks()


def descriptors() -> int:
    """Return the number of open descriptors beside the standard ones."""
    return sum(int(one) > 2 for one in os.listdir("/proc/self/fd")) - 1  # of the listing itself


def tell(pipe: Any, **about: Any) -> None:
    found = {"pid": os.getpid(), "parent": os.getppid(), "told": os.environ.get("TOLD")}
    pipe.send({**found, **about})


def worker(pipe: Any) -> None:
    tell(pipe, name="worker", unpickled=_unpickled, descriptors=descriptors())
    os._exit(7)


def engine_core(pipe: Any, hooks: Hooks) -> None:
    child = _SPAWN.Process(target=worker, args=(pipe,), name="VllmWorker-0")
    child.start()
    child.join(30)
    tell(pipe, name="engine core", child=child.pid, code=child.exitcode, unpickled=_unpickled)


def main() -> None:
    """Start an engine core, print what each process found as one JSON line, and end with code 3."""
    os.environ["TOLD"] = "by its parent"
    receiving, sending = _SPAWN.Pipe(duplex=False)
    child = _SPAWN.Process(target=engine_core, args=(sending, Hooks()), name="EngineCore_DP0")
    child.start()
    found = {one["name"]: one for one in (receiving.recv(), receiving.recv())}
    child.join(30)
    print(json.dumps({**found, "child": child.pid, "code": child.exitcode, "arguments": sys.argv}), flush=True)
    sys.exit(3)
