"""A pytest plugin that runs mutants in one session: tests are collected once, and each mutant gets a forked process.

`scripts/mutate` starts the plugin in the folder `mutants` with a plan, the JSON document at the environment's
`HOLDFAST_MUTANTS`: `{"hits": PATH}` records which test calls which function and how long each test takes;
`{"marks": {NAME: MARK}, "tests": {PATH: DIGEST}, "hits": PATH, "verdicts": PATH, "processes": N, "bound_s": S}` runs
mutants, and appends one line of JSON to `verdicts` for each: name, mark, exit code, the test that failed, and the
digest of that test's module, or of all tests (path "") where none failed.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import Phase, settings
from mutmut.mutation import trampoline
from mutmut.utils.format_utils import mangled_name_from_mutant_name

PLAN = json.loads(Path(os.environ["HOLDFAST_MUTANTS"]).read_text())

SURVIVED, KILLED, NO_TESTS, TIMEOUT = 0, 1, 33, 36
# Of tests for a mutant, those first that are short and call few functions: a mutant that only longer tests notice
# counts as a survivor, because the behaviour has no test of its own.
TESTS_S = 1.0
OVERHEAD_S = 0.005  # of every test, about
CPU_TIMES, CPU_AT_LEAST_S, WALL_S = 20, 4.0, 60.0  # a test that takes longer than so many times its time has failed


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make generated examples equal for every mutant, and skip the search for smaller examples."""
    for item in items:
        function = getattr(item, "obj", None)
        function = getattr(function, "__func__", function)
        known = getattr(function, "_hypothesis_internal_use_settings", None)
        if known is not None:
            phases = (Phase.explicit, Phase.generate)
            function._hypothesis_internal_use_settings = settings(known, phases=phases, database=None, derandomize=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """Carry out the plan, in place of running the tests in order."""
    if session.testsfailed:
        raise session.Interrupted(f"{session.testsfailed} errors during collection")
    if "marks" in PLAN:
        run_mutants(session.items)
    else:
        record_hits(session)
    return True


def put_under_test(name: str) -> None:
    """Put a mutant in place of the function, without reading the environment on each call."""
    trampoline.get_mutant_under_test = lambda: name


# ---- which test calls which function


def record_hits(session: pytest.Session) -> None:
    """Run every test once without a mutant; write the seconds of each test and the called functions."""
    called: set[str] = set()
    trampoline.record_trampoline_hit = lambda name, caller=None: called.add(name)
    put_under_test("stats")
    hits: dict[str, list[str]] = defaultdict(list)
    seconds = {}
    for item, following in zip(session.items, [*session.items[1:], None], strict=True):
        called.clear()
        began = time.process_time()
        reports = runtestprotocol(item, nextitem=following, log=False)
        seconds[item.nodeid] = time.process_time() - began
        for report in reports:
            if report.failed:
                raise session.Failed(f"{item.nodeid} fails without a mutant:\n{report.longreprtext}")
        for function in called:
            hits[function].append(item.nodeid)
    Path(PLAN["hits"]).write_text(json.dumps({"hits": hits, "seconds": seconds}))


# ---- mutants


@dataclass
class Running:
    """Forked process that runs the tests of a mutant."""

    name: str
    pid: int
    killer: int  # descriptor on which the child writes the test that failed


def run_mutants(items: list[pytest.Item]) -> None:
    """Run the mutants of the plan, a few at a time, until all have a verdict or the time is over."""
    known = json.loads(Path(PLAN["hits"]).read_text())
    breadth = Counter(test for tests in known["hits"].values() for test in tests)  # how many functions a test calls
    by_id = {item.nodeid: item for item in items}
    likely: dict[str, list[str]] = defaultdict(list)  # tests that killed a mutant of the function, the latest first
    end = time.monotonic() + PLAN["bound_s"]
    names: Iterator[str] = iter(PLAN["marks"])
    running: dict[int, Running] = {}
    gc.freeze()
    with Path(PLAN["verdicts"]).open("a") as verdicts:
        while True:
            while len(running) < PLAN["processes"] and time.monotonic() < end and (name := next(names, None)):
                function = mangled_name_from_mutant_name(name)
                tests = [test for test in known["hits"].get(function, ()) if test in by_id]
                tests = most_specific(tests, known["seconds"], breadth)
                tests = list(dict.fromkeys([*(t for t in likely[function] if t in tests), *tests]))
                started = start(name, [(by_id[test], known["seconds"][test]) for test in tests])
                running[started.pid] = started
            if not running:
                return
            pid, status = os.wait()
            ended = running.pop(pid)
            with os.fdopen(ended.killer) as said:
                killer = said.read()
            if killer:
                earlier = likely[mangled_name_from_mutant_name(ended.name)]
                if killer in earlier:
                    earlier.remove(killer)
                earlier.insert(0, killer)
            code = os.waitstatus_to_exitcode(status)
            verdict = {"name": ended.name, "mark": PLAN["marks"][ended.name], "code": code, "killer": killer}
            verdict["tests"] = PLAN["tests"][killer.partition("::")[0]]
            verdicts.write(json.dumps(verdict) + "\n")
            verdicts.flush()


def most_specific(tests: list[str], seconds: dict[str, float], breadth: Counter[str]) -> list[str]:
    """Return tests that take `TESTS_S` seconds together, at least one test; short tests of few functions come first."""
    left_s, chosen = TESTS_S, []
    for test in sorted(tests, key=lambda test: breadth[test] * (seconds[test] + OVERHEAD_S)):
        left_s -= seconds[test]
        if chosen and left_s < 0:
            break
        chosen.append(test)
    return chosen


def start(name: str, tests: list[tuple[pytest.Item, float]]) -> Running:
    """Fork a process that runs tests until the first failure. `tests`: with the usual seconds of each test."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return Running(name, pid, read)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    code = NO_TESTS if not tests else SURVIVED
    try:
        put_under_test(name)
        for (item, usual_s), following in zip(tests, [*(item for item, _ in tests[1:]), None], strict=True):
            if not passes_in_time(item, usual_s, following, write):
                code = KILLED
                os.write(write, item.nodeid.encode())
                break
    except BaseException:
        code = KILLED
    os._exit(code)


def passes_in_time(item: pytest.Item, usual_s: float, following: pytest.Item | None, write: int) -> bool:
    """Return True when a test passes. End the process with `TIMEOUT` when the test takes much longer than usual."""

    def give_up(*_: object) -> None:
        os.write(write, item.nodeid.encode())
        os._exit(TIMEOUT)

    signal.signal(signal.SIGPROF, give_up)
    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_PROF, max(CPU_AT_LEAST_S, CPU_TIMES * usual_s))
    signal.setitimer(signal.ITIMER_REAL, WALL_S + CPU_TIMES * usual_s)
    return passes(item, following)


def passes(item: pytest.Item, following: pytest.Item | None) -> bool:
    """Return True when a test passes, without a report of a failure, which takes longer than the test."""
    try:
        item.ihook.pytest_runtest_setup(item=item)
        item.ihook.pytest_runtest_call(item=item)
        item.ihook.pytest_runtest_teardown(item=item, nextitem=following)
    except pytest.skip.Exception:
        item.ihook.pytest_runtest_teardown(item=item, nextitem=following)
    except BaseException:
        return False
    return True
