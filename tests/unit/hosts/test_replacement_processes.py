"""Ranks get standbys as far as there are any; a standby that fails is replaced by a new process."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.engine.worker_pool.replacement_processes import ReplacementProcesses

DEADLINE = 5.0


class Process:
    """A process of a replacement, which is `gone` before a rank is assigned, or `fails` afterwards."""

    def __init__(self, pid: int, *, rank: int | None = None, standby: bool = False, fault: str = "") -> None:
        self.pid, self.rank, self.was_standby, self._fault = pid, rank, standby, fault
        self.process, self.killed = self, False

    def assign(self, rank: int) -> None:
        self.rank = rank
        if self._fault == "gone":
            raise RecoveryFailed("it is gone")

    def await_ready(self, deadline: float) -> str:
        if self._fault == "fails":
            raise RecoveryFailed("it did not start")
        return f"handle of {self.pid}"

    def kill(self) -> None:
        self.killed = True


class Pool:
    """A pool of the given standbys, and the start of further processes with the fault `anew`."""

    def __init__(self, *standbys: Process, anew: str = "") -> None:
        self._ready, self._anew = list(standbys), anew
        self.started: list[Process] = []
        self.told: list[str] = []

    def take(self, rank: int) -> Process | None:
        return self._ready.pop(0) if self._ready else None

    def report_failure(self, why: str) -> None:
        self.told.append(why)

    def start(self, rank: int) -> Process:
        self.started.append(Process(100 + rank, rank=rank, fault=self._anew))
        return self.started[-1]


def replacing(pool: Pool, *ranks: int) -> ReplacementProcesses:
    made = ReplacementProcesses(ranks, pool, pool.start, Process.assign)  # type: ignore[arg-type]
    made.start()
    return made


def test_the_first_rank_gets_the_standby_and_the_second_a_new_process() -> None:
    processes = replacing(Pool(Process(7, standby=True)), 0, 1)
    assert processes.await_ready(DEADLINE) == ["handle of 7", "handle of 101"]
    assert (processes.pids, processes.standbys_used) == ({0: 7, 1: 101}, 1)


@pytest.mark.parametrize(("fault", "why"), [("gone", "it is gone"), ("fails", "it did not start")])
def test_a_standby_that_fails_costs_no_more_than_a_start(fault: str, why: str) -> None:
    """The failure is reported to the pool: the next standby may fail too."""
    broken = Process(7, standby=True, fault=fault)
    pool = Pool(broken)
    processes = replacing(pool, 1)
    assert processes.await_ready(DEADLINE) == ["handle of 101"]
    assert (processes.pids, processes.standbys_used) == ({1: 101}, 0)
    assert broken.killed
    assert pool.told == [why]


def test_a_new_process_that_fails_fails_the_replacement() -> None:
    pool = Pool(Process(7, standby=True, fault="fails"), anew="fails")
    processes = replacing(pool, 0)
    with pytest.raises(RecoveryFailed, match="did not start"):
        processes.await_ready(DEADLINE)
    processes.kill()
    assert [one.killed for one in pool.started] == [True]
