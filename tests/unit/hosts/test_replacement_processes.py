"""Ranks get standbys where there are any, and where one of those fails a process that starts anew."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.engine.worker_pool import replacement_processes as module
from holdfast.hosts.vllm.engine.worker_pool.replacement_processes import ReplacementProcesses

DEADLINE = 5.0


class Newcomer:
    """A process on its way: it is `gone` before it is told its rank, or `fails` afterwards."""

    def __init__(self, pid: int, *, rank: int | None = None, standby: bool = False, fault: str = "") -> None:
        self.pid, self.rank, self.was_standby, self._fault = pid, rank, standby, fault
        self.process, self.killed = self, False

    def take_over(self, rank: int, *, is_driver: bool, queue: Any) -> None:
        self.rank = rank
        if self._fault == "gone":
            raise RecoveryFailed("it is gone")

    def await_ready(self, deadline: float) -> str:
        if self._fault == "fails":
            raise RecoveryFailed("it did not start")
        return f"handle of {self.pid}"

    def kill(self) -> None:
        self.killed = True


class Executor:
    """Has these standbys, and starts anew; is its own pool."""

    seed = None

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *standbys: Newcomer, anew: str = "") -> None:
        self.standbys, self._ready, self._anew = self, list(standbys), anew
        self.started: list[Newcomer] = []
        self.told: list[str] = []
        monkeypatch.setattr(module, "start_replacement", self._start)

    def _is_driver_worker(self, rank: int) -> bool:
        return rank == 0

    def take(self, rank: int) -> Newcomer | None:
        return self._ready.pop(0) if self._ready else None

    def disappointed(self, why: str) -> None:
        self.told.append(why)

    def _start(self, seed: Any, rank: int, *, is_driver: bool, queue: Any) -> Newcomer:
        self.started.append(Newcomer(100 + rank, rank=rank, fault=self._anew))
        return self.started[-1]


def of(executor: Executor, *ranks: int) -> ReplacementProcesses:
    made = ReplacementProcesses(executor, ranks, "queue")  # type: ignore[arg-type]
    made.start()
    return made


def test_a_rank_gets_the_standby_there_is_and_the_next_one_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    newcomers = of(Executor(monkeypatch, Newcomer(7, standby=True)), 0, 1)
    assert newcomers.await_ready(DEADLINE) == ["handle of 7", "handle of 101"]
    assert (newcomers.pids, newcomers.standbys_used) == ({0: 7, 1: 101}, 1)


@pytest.mark.parametrize(("fault", "why"), [("gone", "it is gone"), ("fails", "it did not start")])
def test_a_standby_that_comes_to_nothing_costs_no_more_than_a_start(
    monkeypatch: pytest.MonkeyPatch, fault: str, why: str
) -> None:
    """The pool hears of it: the next one may come to nothing, too."""
    broken = Newcomer(7, standby=True, fault=fault)
    executor = Executor(monkeypatch, broken)
    newcomers = of(executor, 1)
    assert newcomers.await_ready(DEADLINE) == ["handle of 101"]
    assert (newcomers.pids, newcomers.standbys_used) == ({1: 101}, 0)
    assert broken.killed
    assert executor.told == [why]


def test_one_that_starts_anew_and_fails_is_the_end_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Executor(monkeypatch, Newcomer(7, standby=True, fault="fails"), anew="fails")
    newcomers = of(executor, 0)
    with pytest.raises(RecoveryFailed, match="did not start"):
        newcomers.await_ready(DEADLINE)
    newcomers.kill()
    assert [one.killed for one in executor.started] == [True]
