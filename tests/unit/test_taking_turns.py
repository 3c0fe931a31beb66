"""Tests that must be alone are; the others run beside each other; nobody waits for ever."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from integration.helpers.servers import group_of, lane_of
from support.taking_turns import turn

WITHIN_S = 10.0
NOT_YET_S = 0.2


class Worker:
    """A worker that begins a test and ends it when it is told to."""

    def __init__(self, locks: Path, *, alone: bool):
        self.began, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(locks, alone), daemon=True)
        self._thread.start()

    def _run(self, locks, alone):
        with turn(locks, alone=alone):
            self.began.set()
            self._end.wait(WITHIN_S)

    def end(self):
        self._end.set()
        self._thread.join(WITHIN_S)
        assert not self._thread.is_alive()


def test_two_ordinary_tests_run_beside_each_other(tmp_path):
    first, second = Worker(tmp_path, alone=False), Worker(tmp_path, alone=False)
    assert first.began.wait(WITHIN_S)
    assert second.began.wait(WITHIN_S)
    first.end()
    second.end()


@pytest.mark.parametrize(("first_alone", "second_alone"), [(True, False), (False, True), (True, True)])
def test_a_timed_test_is_alone(tmp_path, first_alone, second_alone):
    first = Worker(tmp_path, alone=first_alone)
    assert first.began.wait(WITHIN_S)
    second = Worker(tmp_path, alone=second_alone)
    assert not second.began.wait(NOT_YET_S)
    first.end()
    assert second.began.wait(WITHIN_S)
    second.end()


def test_a_timed_test_that_waits_comes_before_ordinary_ones_that_come_later(tmp_path):
    ordinary = Worker(tmp_path, alone=False)
    assert ordinary.began.wait(WITHIN_S)
    timed = Worker(tmp_path, alone=True)
    assert not timed.began.wait(NOT_YET_S)
    late = Worker(tmp_path, alone=False)
    assert not late.began.wait(NOT_YET_S)
    ordinary.end()
    assert timed.began.wait(WITHIN_S)
    assert not late.began.is_set()
    timed.end()
    assert late.began.wait(WITHIN_S)
    late.end()


def test_one_process_that_runs_all_tests_waits_for_nobody():
    with turn(None, alone=True), turn(None, alone=True):
        pass


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/integration/test_pauses.py::test_a[moe-ep-v1-sync-soft]", "moe-ep-v1-sync"),
        ("tests/integration/test_many_ranks.py::test_b[tp2-v1-async-0]", "tp2-v1-async"),
        (
            "tests/integration/test_exceptions.py::test_c[forward-v1-sync]",
            "tests/integration/test_exceptions.py v1-sync",
        ),
        ("tests/integration/test_ladder.py::test_d", "tests/integration/test_ladder.py"),
    ],
)
def test_tests_on_one_shared_server_are_one_group(nodeid, group):
    assert group_of(nodeid) == group


@pytest.mark.parametrize(
    ("nodeid", "lane"),
    [
        ("tests/integration/test_bad_input.py::test_a_server_port_in_use_is_named", "beside"),
        ("tests/integration/test_temporary_files.py::test_a_defeated_instance_leaves_nothing[one]", "beside"),
        ("tests/integration/test_worker_death.py::test_a_killed_worker[one-v1-async-0]", "beside"),
        ("tests/integration/test_numerical.py::test_a_step[tp2-v1-async]", "main"),
    ],
)
def test_only_servers_of_one_rank_run_beside_another_lane(nodeid: str, lane: str) -> None:
    assert lane_of(nodeid) == lane
