"""Start of a spawned process: prepared before heavy imports, with imported objects excluded from garbage collection."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from holdfast.hosts.vllm.process.bootstrap import Bootstrap, bootstrapped, importing

WAIT_S = 30.0


class Witness:
    """Object that records the state of the process when unpickled, as an import of the host would find the state."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _what_is_so, ()


def _what_is_so() -> dict[str, bool]:
    return {
        "collects": gc.isenabled(),
        "is in background": callable(signal.getsignal(signal.SIGPROF)),
    }


def tell(pipe: Connection, unpickled: dict[str, bool]) -> None:
    pipe.send({**unpickled, "collects later": gc.isenabled(), "keeps for good": gc.get_freeze_count() > 0})


def what_a_process_tells(*, background: bool) -> dict[str, bool]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=Bootstrap(tell, background=background), args=(theirs, Witness()))  # type: ignore[arg-type]
    process.start()
    assert ours.poll(WAIT_S)
    told: dict[str, bool] = ours.recv()
    process.join(WAIT_S)
    assert process.exitcode == 0
    return told


@pytest.mark.parametrize("background", [False, True])
def test_objects_made_before_the_main_function_are_never_collected(background: bool) -> None:
    assert what_a_process_tells(background=background) == {
        "collects": False,
        "is in background": background,
        "collects later": True,
        "keeps for good": True,
    }


def say(value: Any, inherited: int = 0) -> None:
    value.value = int(gc.get_freeze_count() > inherited)


@pytest.mark.parametrize(("method", "excluded"), [("spawn", 1), ("fork", 0)])
def test_a_context_gives_spawned_processes_a_bootstrap_and_leaves_forked_ones_alone(method: str, excluded: int) -> None:
    """A fork imports nothing, and could not call what is callable once it is unpickled."""
    context = multiprocessing.get_context(method)
    told = context.Value("i", -1)
    inherited = gc.get_freeze_count() if method == "fork" else 0
    with bootstrapped(context, background=False):
        process = context.Process(target=say, args=(told, inherited))
        process.start()
    process.join(WAIT_S)
    assert (process.exitcode, told.value) == (0, excluded)
    assert "Process" not in vars(context), "the context is as it was"


def test_of_nested_blocks_the_outermost_decides() -> None:
    context = multiprocessing.get_context("spawn")
    with bootstrapped(context, background=True):
        with bootstrapped(context, background=False):
            process = context.Process(target=say)
        assert process._target._background  # type: ignore[attr-defined]
    assert "Process" not in vars(context)


def test_a_context_keeps_a_bootstrap_that_a_process_has() -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Value("i", -1)
    with bootstrapped(context, background=True):
        process = context.Process(target=Bootstrap(say, background=False), args=(told,))  # type: ignore[arg-type]
        process.start()
    process.join(WAIT_S)
    assert (process.exitcode, told.value) == (0, 1)


def test_the_main_function_is_imported_at_background_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "told"
    source = (
        "import pathlib, signal\n"
        f"pathlib.Path({str(told)!r}).write_text(str(callable(signal.getsignal(signal.SIGPROF))))\n"
        "def main():\n    pass\n"
    )
    (tmp_path / "heavy_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import heavy_module  # type: ignore[import-not-found]

    assert told.read_text() == "False"
    process = multiprocessing.get_context("spawn").Process(target=Bootstrap(heavy_module.main, background=True))  # type: ignore[arg-type]
    process.start()
    process.join(WAIT_S)
    assert process.exitcode == 0
    assert told.read_text() == "True"
    del sys.modules["heavy_module"]


def test_imported_objects_are_excluded_from_collection_and_later_objects_are_not(tmp_path: Path) -> None:
    read, write = os.pipe()
    if os.fork() == 0:  # what is frozen stays so: not in the process of the other tests
        with importing():
            made = [[] for _ in range(1000)]
        later: list[Any] = [[]]
        looked_through = {id(one) for one in gc.get_objects()}
        found = (id(made[0]) in looked_through, id(later[0]) in looked_through, gc.isenabled())
        os.write(write, repr(found).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        assert said.read() == "(False, True, True)"
    os.wait()
