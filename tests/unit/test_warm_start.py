"""Servers that are forked: the family that an ordinary start has, with its descriptors, environment and exit codes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from holdfast.chaos.processes import session_members
from support.warm_start import SPAWN_FLAG, TESTS, Forked, WarmParent

pytestmark = pytest.mark.host  # names of processes are set with a package of the host's

END_S = 60.0
FAMILY = "support.forked_family"


@pytest.fixture(scope="module")
def parent():
    made = WarmParent({"PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"}, (FAMILY,), f"{FAMILY}:main")
    yield made
    made.close()


def family(parent: WarmParent, folder: Path, *, spawned: bool) -> tuple[dict, Forked]:
    """What the processes of one start found, and its first one."""
    flag, log = folder / "spawn", folder / "log"
    if spawned:
        flag.touch()
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}", SPAWN_FLAG: str(flag)}
    with log.open("wb") as out:
        first = Forked(parent.fork(["serve", "a model"], environment, out.fileno()))
    assert first.wait(END_S) == 3, log.read_text()
    return json.loads(log.read_text().splitlines()[-1]), first


@pytest.mark.parametrize("spawned", [False, True], ids=["forked", "spawned"])
def test_each_process_is_a_child_of_the_one_that_started_it_and_ends_with_its_own_code(parent, tmp_path, spawned):
    found, first = family(parent, tmp_path, spawned=spawned)
    core, worker = found["engine core"], found["worker"]
    assert (core["pid"], core["parent"]) == (found["child"], first.pid)
    assert (worker["pid"], worker["parent"]) == (core["child"], core["pid"])
    assert (core["code"], found["code"]) == (7, 0)


def test_a_forked_process_has_the_environment_of_its_parent_as_it_is_then(parent, tmp_path):
    found, _ = family(parent, tmp_path, spawned=False)
    assert found["worker"]["told"] == found["engine core"]["told"] == "by its parent"
    assert found["arguments"] == ["-c", "serve", "a model"]


@pytest.mark.parametrize("spawned", [False, True], ids=["forked", "spawned"])
def test_a_worker_has_nothing_of_what_its_engine_core_unpickled(parent, tmp_path, spawned):
    """Of two hooks on one function of the host the first stays: a worker attaches its own first."""
    found, _ = family(parent, tmp_path, spawned=spawned)
    assert found["engine core"]["unpickled"] == ["hooks of an engine core"]
    assert found["worker"]["unpickled"] == []


def test_a_forked_worker_has_the_descriptors_that_a_spawned_one_has(parent, tmp_path):
    (tmp_path / "forked").mkdir()
    (tmp_path / "spawned").mkdir()
    forked, _ = family(parent, tmp_path / "forked", spawned=False)
    spawned, _ = family(parent, tmp_path / "spawned", spawned=True)
    assert forked["worker"]["descriptors"] == spawned["worker"]["descriptors"]


def test_nothing_of_a_forked_family_is_left_when_it_has_ended(parent, tmp_path):
    _, first = family(parent, tmp_path, spawned=False)
    deadline = time.monotonic() + END_S
    while session_members(first.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(session_members(first.pid)) == []
