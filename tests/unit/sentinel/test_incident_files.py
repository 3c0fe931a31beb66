"""The evidence of a stall, of processes that really hang or are really stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from holdfast.core.faults.faults import Phase
from holdfast.core.stalls.stalls import Stall
from holdfast.core.stalls.step_deadlines import Deadline
from holdfast.core.stalls.steps import BatchShape, Running
from holdfast.progress.places import is_private_folder
from holdfast.sentinel.incident_files import MAX_STALLS, MAX_WRITERS, StallFiles, default_folder

HANGS = """
import sys, threading
from holdfast.progress.stacks import answer_for_stacks
answer_for_stacks(sys.argv[1])
def waits_for_what_never_comes(secret="a prompt"):
    print("waits", flush=True)
    threading.Event().wait(60)
waits_for_what_never_comes()
"""


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", HANGS, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"waits\n"
        deadline = time.monotonic() + 10.0
        while psutil.Process(process.pid).status() != psutil.STATUS_SLEEPING and time.monotonic() < deadline:
            time.sleep(0.01)  # it says that it waits before it does
        yield process
        process.kill()


def a_stall(pid: int, rank: int = 1) -> Stall:
    call = Running(0, 40, 20, Phase.FORWARD, BatchShape(8, 8), 0.0)
    return Stall(rank, pid, False, "no progress", call, 1.2, Deadline(1.0, "the least for a decode"))


def kept(tmp_path: Path, stall: Stall, **pids: int) -> Path:
    folder = StallFiles(str(tmp_path / "incidents"), str(tmp_path), 0).keep(stall, {1: stall.pid})
    assert folder is not None
    return folder


def test_a_hanging_process_says_where_and_no_value(tmp_path: Path, hanging: subprocess.Popen[bytes]) -> None:
    folder = kept(tmp_path, a_stall(hanging.pid))
    stacks = (folder / f"stacks-1-{hanging.pid}.txt").read_text()
    assert "waits_for_what_never_comes" in stacks
    assert "a prompt" not in stacks
    summary = json.loads((folder / "stall.json").read_text())
    assert (summary["rank"], summary["phase"], summary["step"], summary["tokens"]) == (1, "forward", 20, 8)
    assert (summary["deadline_s"], summary["age_s"]) == (1.0, 1.2)
    assert summary["processes"]["1"]["threads"][0]["state"].startswith("S")
    assert hanging.poll() is None, "asking ends nobody"


def test_a_stopped_process_is_described_from_outside(tmp_path: Path, hanging: subprocess.Popen[bytes]) -> None:
    os.kill(hanging.pid, signal.SIGSTOP)
    os.waitpid(hanging.pid, os.WUNTRACED)
    folder = kept(tmp_path, a_stall(hanging.pid))
    assert "no answer" in (folder / f"stacks-1-{hanging.pid}.txt").read_text()
    summary = json.loads((folder / "stall.json").read_text())
    assert summary["processes"]["1"]["State"].startswith("T")


def test_a_process_that_does_not_answer_for_stacks_is_not_asked(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        folder = kept(tmp_path, a_stall(process.pid))
        assert process.poll() is None, "the signal would end it"
        process.kill()
    assert "not asked" in (folder / f"stacks-1-{process.pid}.txt").read_text()


def test_the_oldest_stalls_go_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "incidents" / "mine").mkdir(parents=True)
    files = StallFiles(str(tmp_path / "incidents"), str(tmp_path), 0)
    for pid in range(2**22 + 1, 2**22 + MAX_STALLS + 4):  # above every process id
        assert files.keep(a_stall(pid), {}) is not None
    assert (tmp_path / "incidents" / "mine").is_dir()
    assert len(list((tmp_path / "incidents" / "evidence").iterdir())) == MAX_STALLS


def test_the_oldest_stall_goes_and_the_newest_stays(tmp_path: Path) -> None:
    stalls = tmp_path / "incidents" / "evidence"
    old = [stalls / f"some-engine0-20200101T0000{second:02}-1" for second in range(MAX_STALLS)]
    for second, folder in enumerate(old):
        folder.mkdir(parents=True)
        (folder / "stall.json").write_text("{}")
        os.utime(folder, (second, second))
    newest = kept(tmp_path, a_stall(2**22 + 1))
    assert set(stalls.iterdir()) == {*old[1:], newest}


def test_where_nothing_can_be_written_the_repair_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert StallFiles(str(tmp_path / "file"), str(tmp_path), 0).keep(a_stall(2**22 + 1), {}) is None


def test_a_clock_that_was_set_back_makes_new_evidence_no_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    incidents = tmp_path / "incidents"
    files = StallFiles(str(incidents), str(tmp_path), 0)
    for pid in range(2**22 + 1, 2**22 + MAX_STALLS + 1):
        assert files.keep(a_stall(pid), {}) is not None
        os.utime(next((incidents / "evidence").glob(f"*-{pid}")), (4e9, 4e9))
    newest = files.keep(a_stall(2**22 + 99), {})
    assert newest is not None and newest.is_dir()
    assert len(list((incidents / "evidence").iterdir())) == MAX_STALLS


# ---- evidence is best effort: what follows from a stall follows in any case


def proceeded(files: StallFiles, bound_s: float) -> tuple[bool, list[float]]:
    """Whether what follows came within five seconds, and how long it took."""
    came, began, times = threading.Event(), time.monotonic(), []

    def then() -> None:
        times.append(time.monotonic() - began)
        came.set()

    files.keep_within(a_stall(2**22 + 1), {}, then, bound_s)
    return came.wait(5.0), times


def test_evidence_comes_before_what_follows(tmp_path: Path) -> None:
    files = StallFiles(str(tmp_path / "incidents"), str(tmp_path), 0)
    came, times = proceeded(files, bound_s=60.0)
    assert came and len(times) == 1
    assert len(list((tmp_path / "incidents").glob("evidence/*/stall.json"))) == 1


def test_a_folder_that_hangs_delays_what_follows_by_the_bound_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network file system whose server is gone; the fifth stall finds all writers hanging and does not wait."""
    hangs = threading.Event()
    files = StallFiles(str(tmp_path / "incidents"), str(tmp_path), 0)
    monkeypatch.setattr(files, "_keep", lambda stall, pids: hangs.wait(60))
    for _ in range(MAX_WRITERS):
        came, times = proceeded(files, bound_s=0.1)
        assert came and 0.1 <= times[0] < 3.0
    came, times = proceeded(files, bound_s=60.0)
    assert came and times[0] < 3.0
    hangs.set()


def test_without_a_thread_what_follows_comes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    files = StallFiles(str(tmp_path / "incidents"), str(tmp_path), 0)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    came, times = proceeded(files, bound_s=60.0)
    assert came and len(times) == 1


def test_evidence_that_fails_in_any_way_costs_the_evidence_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = StallFiles(str(tmp_path / "incidents"), str(tmp_path), 0)

    def fail(*_: object) -> Path:
        raise ValueError("not a number")

    monkeypatch.setattr(files, "_keep", fail)
    assert files.keep(a_stall(2**22 + 1), {}) is None


def test_a_user_without_a_home_keeps_evidence_below_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_home(tmp_path, monkeypatch)
    assert str(os.getuid()) in str(default_folder())


def test_two_stalls_of_one_second_are_two_folders(tmp_path: Path) -> None:
    """Instances of several containers may share the folder and have the same process ids."""
    stall = a_stall(2**22 + 1)
    instances = [StallFiles(str(tmp_path / "incidents"), str(tmp_path / name), 0) for name in ("one", "two")]
    kept_in = [files.keep(stall, {}) for files in instances]
    told = [json.loads((folder / "stall.json").read_text())["instance"] for folder in kept_in if folder is not None]
    assert len(set(kept_in)) == 2
    assert told == ["one", "two"]


@pytest.mark.parametrize("harm", ["readable by others", "link"])
def test_a_folder_below_the_temporary_folder_that_others_have_prepared_gets_no_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    prepared = tmp_path / f"holdfast-{os.getuid()}"
    if harm == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        prepared.symlink_to(tmp_path / "theirs")
    else:
        prepared.mkdir(mode=0o755)
    without_home(tmp_path, monkeypatch)
    assert StallFiles("", str(tmp_path), 0).keep(a_stall(2**22 + 1), {}) is None
    assert list(tmp_path.rglob("stall.json")) == []


def test_evidence_below_the_temporary_folder_leaves_room_for_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_home(tmp_path, monkeypatch)
    assert StallFiles("", str(tmp_path), 0).keep(a_stall(2**22 + 1), {}) is not None
    assert is_private_folder(tmp_path / f"holdfast-{os.getuid()}")


def without_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
