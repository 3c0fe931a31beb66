"""A process of ours is as it should be before it imports anything heavy, and looks through none of that for garbage."""

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

from holdfast.hosts.vllm.process.bootstrap import Bootstrap, importing

WAIT_S = 30.0


class Witness:
    """Unpickled it tells what was so at that moment, as what imports the host would find it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _what_is_so, ()


def _what_is_so() -> dict[str, bool]:
    return {
        "collects": gc.isenabled(),
        "is gentle": callable(signal.getsignal(signal.SIGPROF)),
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
def test_nothing_is_collected_before_the_main_function_runs_and_what_is_there_then_stays(background: bool) -> None:
    assert what_a_process_tells(background=background) == {
        "collects": False,
        "is gentle": background,
        "collects later": True,
        "keeps for good": True,
    }


def test_the_main_function_is_imported_only_after_the_process_has_become_gentle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_what_is_made_while_importing_is_never_looked_through_and_what_comes_later_is(tmp_path: Path) -> None:
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
