"""Output that nobody reads: real processes, pipes, terminals and full devices; no model."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from holdfast.hosts.vllm.process.log_drain import PIECE_BYTES, Waiting
from holdfast.hosts.vllm.process.members import end_remains

WITHIN_S = 30.0
NOTICE = re.compile(rb"holdfast: (\d+) log lines dropped: nobody read the log\n")

# Answers each line of its input, so that a test knows how far it is.
PROGRAM = """
import os, signal, subprocess, sys
from holdfast.hosts.vllm.process.output import await_output, never_block_output
answers = os.fdopen(int(sys.argv[1]), "w", buffering=1)
never_block_output()
never_block_output()
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=2)  # writes past Python, and inherits
for line in sys.stdin:
    command, _, rest = line.rstrip("\\n").partition(" ")
    if command == "write":
        os.write(2, rest.encode() + b"\\n")
    elif command == "child":
        child.stdin.write(rest.encode() + b"\\n")
        child.stdin.flush()
    elif command == "lines":
        for n in range(int(rest)):
            os.write(2, b"line %08d " % n + b"-" * 480 + b"\\n")
    elif command == "isatty":
        answers.write(str(os.isatty(2)) + " ")
    elif command == "await":
        answers.write(str(await_output()) + " ")
    elif command == "exit":
        print("the last line", file=sys.stderr)
        sys.exit(int(rest))
    answers.write(command + "\\n")
"""


class Program:
    """A process with protected output; `stderr` is its original."""

    def __init__(self, stderr: int) -> None:
        read, write = os.pipe()
        self._answers = os.fdopen(read)
        command = [sys.executable, "-c", PROGRAM, str(write)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr, text=True, pass_fds=[write]
        )
        os.close(write)
        assert self.do("start") == "start"

    def do(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        assert select.select([self._answers], [], [], WITHIN_S)[0], "it blocks"
        return self._answers.readline().strip()

    def drain(self) -> psutil.Process:
        [drain] = [p for p in psutil.Process(self.process.pid).children() if "log_drain" in " ".join(p.cmdline())]
        return drain

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._answers.close()


@pytest.fixture
def program(pipe: tuple[int, int]) -> Iterator[Program]:
    made = Program(pipe[1])
    os.close(pipe[1])
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)


def filled(write: int) -> None:
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"." * 4095 + b"\n")
    os.set_blocking(write, True)


def read_until(descriptor: int, wanted: bytes) -> bytes:
    read, until_s = b"", time.monotonic() + WITHIN_S
    while wanted not in read:
        assert select.select([descriptor], [], [], until_s - time.monotonic())[0], read[-500:]
        more = os.read(descriptor, 65536)
        assert more, read[-500:]
        read += more
    return read


def rest_of(descriptor: int) -> bytes:
    read, until_s = b"", time.monotonic() + WITHIN_S
    while select.select([descriptor], [], [], max(0.0, until_s - time.monotonic()))[0]:
        more = os.read(descriptor, 65536)
        if not more:
            return read
        read += more
    raise AssertionError("the output has no end")


def test_without_a_reader_every_write_goes_on_and_the_reader_learns_what_is_missing(
    pipe: tuple[int, int],
) -> None:
    filled(pipe[1])
    program = Program(pipe[1])
    os.close(pipe[1])
    try:
        lines = 20_000  # of 495 bytes
        assert program.do(f"lines {lines}") == "lines"
        assert program.do("child from another process") == "child"
        read = read_until(pipe[0], b"from another process\n")
    finally:
        program.close()
    [dropped] = map(int, NOTICE.findall(read))
    numbers = [int(n) for n in re.findall(rb"^line (\d+) -{480}$", read, re.MULTILINE)]
    assert numbers == sorted(numbers)
    assert numbers[-1] == lines - 1
    assert dropped + len(numbers) == lines
    assert 2 * 2**20 < len(numbers) * 495 < 5 * 2**20


def test_an_end_that_nobody_reads_is_bounded_and_leaves_no_drain(pipe: tuple[int, int]) -> None:
    filled(pipe[1])
    program = Program(pipe[1])
    os.close(pipe[1])
    drain = program.drain()
    program.do("lines 100")
    began_s = time.monotonic()
    program.do("exit 70")
    assert program.process.wait(WITHIN_S) == 70
    drain.wait(WITHIN_S)
    assert time.monotonic() - began_s < 10.0
    program.close()


def test_the_last_line_is_the_last_one_and_the_exit_code_stays(program: Program, pipe: tuple[int, int]) -> None:
    program.do("lines 2000")
    program.do("exit 70")
    read = rest_of(pipe[0])
    assert read.count(b"\n") == 2001
    assert read.endswith(b"the last line\n")
    assert program.process.wait(WITHIN_S) == 70


def test_at_the_exit_all_output_is_in_the_file(tmp_path: Path) -> None:
    """Who waits for the exit reads the file at once."""
    path = tmp_path / "log"
    with path.open("ab") as log:
        program = Program(log.fileno())
    program.do("lines 2000")
    program.do("exit 0")
    assert program.process.wait(WITHIN_S) == 0
    assert path.read_bytes().endswith(b"the last line\n")
    program.close()


def test_what_a_killed_process_has_written_still_arrives(program: Program, pipe: tuple[int, int]) -> None:
    drain = program.drain()
    program.do("lines 2000")
    program.process.kill()
    assert rest_of(pipe[0]).count(b"\n") == 2000
    drain.wait(WITHIN_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda s: s.name)
def test_a_signal_to_everybody_ends_no_drain(program: Program, pipe: tuple[int, int], number: signal.Signals) -> None:
    program.do("write one")
    program.drain().send_signal(number)
    program.do("write two")
    read_until(pipe[0], b"one\ntwo\n")


def test_a_killed_drain_is_replaced_and_no_write_fails(program: Program, pipe: tuple[int, int]) -> None:
    program.do("write one")
    read_until(pipe[0], b"one\n")
    first = program.drain()
    first.kill()
    assert program.do("write two") == "write"
    assert program.do("child three") == "child"
    read_until(pipe[0], b"two\n")
    assert program.do("await") == "True await"
    assert program.drain().pid != first.pid


def test_a_drain_that_cannot_stay_costs_the_lines_and_nothing_else(program: Program, pipe: tuple[int, int]) -> None:
    """Every drain is stopped as soon as seen: more output than the pipe holds still never blocks for long."""
    until_s = time.monotonic() + 1.5
    while time.monotonic() < until_s:
        with contextlib.suppress(ValueError, psutil.Error):
            program.drain().kill()
        assert program.do("lines 2000") == "lines"


def test_a_drain_that_hangs_is_replaced_before_long(program: Program, pipe: tuple[int, int]) -> None:
    hung = program.drain()
    hung.suspend()
    assert program.do("lines 4000") == "lines"  # twice as much as waits for it
    assert program.do("write and on") == "write"
    read_until(pipe[0], b"and on\n")
    hung.wait(WITHIN_S)


def test_the_end_of_the_instance_leaves_the_drain_for_the_last_lines(program: Program, pipe: tuple[int, int]) -> None:
    drain = program.drain()
    known = {drain.pid: int(drain.create_time())}
    assert end_remains("/nowhere/holdfast-none", {**known}) == 0
    program.do("write still here")
    read_until(pipe[0], b"still here\n")


def test_a_full_disk_costs_the_lines_only() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        program = Program(full.fileno())
    assert program.do("lines 10000") == "lines"
    assert program.do("await") == "True await"
    program.do("exit 3")
    assert program.process.wait(WITHIN_S) == 3
    program.close()


def test_a_reader_that_has_gone_costs_the_lines_only(program: Program, pipe: tuple[int, int]) -> None:
    read = os.dup(pipe[0])
    os.close(read)
    os.dup2(os.open(os.devnull, os.O_RDONLY), pipe[0])
    assert program.do("lines 10000") == "lines"
    assert program.do("child more") == "child"
    program.do("exit 3")
    assert program.process.wait(WITHIN_S) == 3


def test_a_stopped_terminal_stops_nothing_and_stays_a_terminal() -> None:
    ours, terminal = os.openpty()
    termios.tcflow(terminal, termios.TCOOFF)
    program = Program(terminal)
    try:
        assert program.do("isatty") == "True isatty"
        assert program.do("lines 4000") == "lines"
        assert program.do("write and on") == "write"
        termios.tcflow(terminal, termios.TCOON)
        read = read_until(ours, b"and on\r\n")
        assert re.search(rb"line 00003999 -{480}\r\n", read)
    finally:
        program.close()
        os.close(ours)
        os.close(terminal)


def test_output_to_nowhere_needs_no_drain() -> None:
    program = Program(subprocess.DEVNULL)
    program.do("write anything")
    assert psutil.Process(program.process.pid).children()[0].name() == "cat"
    assert len(psutil.Process(program.process.pid).children()) == 1
    program.close()


# ---- what waits


def all_of(waiting: Waiting) -> bytes:
    taken = b""
    while len(waiting):
        taken += waiting.take().data
    return taken


def test_output_within_the_bound_stays_as_it_is() -> None:
    waiting = Waiting(limit=10_000)
    written = b"".join(b"%d\n" % n for n in range(1000)) + b"50%|#####     |\r60%"
    waiting.add(written)
    assert all_of(waiting) == written


def test_a_piece_ends_with_a_line_where_it_can() -> None:
    waiting = Waiting()
    waiting.add(b"x" * 3000 + b"\n" + b"y" * 9000 + b"\nz\n")
    sizes = []
    while len(waiting):
        sizes.append(len(waiting.take().data))
    assert sizes == [3001, PIECE_BYTES, PIECE_BYTES, 9003 - 2 * PIECE_BYTES]


def test_beyond_the_bound_the_oldest_lines_go_and_the_gap_is_told_in_its_place() -> None:
    waiting = Waiting(limit=8192)
    waiting.add(b"begun, " * 1000)
    waiting.take()
    for n in range(1000):
        waiting.add(b"line %04d\n" % n)
    rest = all_of(waiting)
    [notice] = NOTICE.finditer(rest)
    assert notice.start() == 1
    assert rest.startswith(b"\n"), "the line that was begun is closed"
    lines = rest[notice.end() :].splitlines()
    assert lines[-1] == b"line 0999"
    assert int(notice[1]) + len(lines) in (1000, 1001), "with or without the line that was begun"


def test_lines_that_could_not_be_written_are_told_once_writing_works_again() -> None:
    waiting = Waiting()
    waiting.add(b"one\ntwo\n")
    waiting.lose(waiting.take())
    assert len(waiting) == 0
    waiting.add(b"three\n")
    waiting.lose(waiting.take())
    waiting.add(b"four\n")
    assert all_of(waiting) == b"holdfast: 3 log lines dropped: nobody read the log\nfour\n"
