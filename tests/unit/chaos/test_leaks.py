"""What a server holds more of afterwards is a leak, beyond what comes and goes by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.chaos.leaks import leaks
from holdfast.chaos.processes import SessionUsage

MIB = 2**20


def usage(**more: int) -> SessionUsage:
    held = {"resident_bytes": 1000 * MIB, "files": 100, "threads": 50, "shared_segments": 4, **more}
    return SessionUsage(cpu_s=1.0, **held)


def test_a_little_more_is_no_leak() -> None:
    """Connections and threads come and go."""
    assert leaks({1: usage()}, {1: usage(files=105, threads=52, resident_bytes=1090 * MIB)}) == []


@pytest.mark.parametrize(
    "more",
    [{"files": 120}, {"threads": 60}, {"resident_bytes": 1200 * MIB}, {"shared_segments": 5}],
    ids=lambda more: next(iter(more)),
)
def test_a_process_that_holds_more_than_before_leaks(more: dict[str, int]) -> None:
    """It lived through everything, and is compared with itself."""
    assert any(f"process 1: {next(iter(more))} grew" in found for found in leaks({1: usage()}, {1: usage(**more)}))


def test_a_replacement_is_compared_as_part_of_all() -> None:
    """It is not its predecessor."""
    assert leaks({1: usage(), 2: usage()}, {1: usage(), 3: usage(files=115)}) == []
    [found] = leaks({1: usage(), 2: usage()}, {1: usage(), 3: usage(files=150)})
    assert found == "all processes: files grew from 200 to 250"


def test_a_standby_that_became_a_worker_is_compared_as_part_of_all() -> None:
    """The role costs files and threads that a waiting process has no use for."""
    standby, worker = replace(usage(files=10), title="VLLM::Standby"), replace(usage(), title="VLLM::Worker")
    assert leaks({1: worker, 2: standby}, {2: worker, 3: standby}) == []
    assert leaks({2: standby}, {2: replace(usage(files=40), title="VLLM::Standby")}) != []


def test_a_process_too_many_is_told() -> None:
    """A process was started and never ended."""
    assert "1 processes before, 2 after" in leaks({1: usage()}, {1: usage(), 2: usage(files=0, threads=0)})
