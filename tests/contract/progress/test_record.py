"""One process writes, another one reads: what is read was written at one moment, or is not read at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.faults.faults import Phase
from holdfast.core.stalls.steps import BatchShape
from holdfast.progress import Lane, ProgressReader, ProgressWriter, publish_progress
from holdfast.progress.record import HEADER, RECORD_BYTES, RING_SLOTS, header_at


def test_a_call_runs_from_its_begin_to_its_end() -> None:
    memory = bytearray(RECORD_BYTES)
    writer, reader = ProgressWriter(memory), ProgressReader(memory)
    assert reader.look().running == ()
    writer.begin(Phase.FORWARD, 7, tokens=12, requests=3)
    [running] = reader.look().running
    assert (running.phase, running.step, running.shape) == (Phase.FORWARD, 7, BatchShape(12, 3))
    assert running.is_first and 0 <= time.monotonic() - running.began_at < 5
    writer.end()
    seen = reader.look()
    assert seen.running == ()
    assert [(e.phase, e.shape, e.is_typical) for e in seen.ended] == [(Phase.FORWARD, BatchShape(12, 3), False)]
    assert reader.look().ended == (), "each once"


def test_lanes_do_not_disturb_each_other() -> None:
    memory = bytearray(RECORD_BYTES)
    steps, outputs = ProgressWriter(memory), ProgressWriter(memory, Lane.OUTPUTS)
    steps.begin(Phase.FORWARD, 1)
    outputs.begin(Phase.SAMPLE_END, 1)
    steps.end()
    assert [r.lane for r in ProgressReader(memory).look().running] == [Lane.OUTPUTS]


@given(st.integers(1, 4 * RING_SLOTS))
def test_who_looks_rarely_misses_the_oldest_calls_and_nothing_else(calls: int) -> None:
    memory = bytearray(RECORD_BYTES)
    writer, reader = ProgressWriter(memory), ProgressReader(memory)
    for step in range(calls):
        writer.begin(Phase.FORWARD, step)
        writer.end()
    assert len(reader.look().ended) == min(calls, RING_SLOTS)


@given(cut=st.integers(1, HEADER.size - 1), before=st.booleans())
def test_a_header_that_is_half_written_is_not_read(cut: int, before: bool) -> None:
    """Fields are stored one by one, first to last; a store of eight bytes is whole."""
    memory, newer = bytearray(RECORD_BYTES), bytearray(RECORD_BYTES)
    at, cut = header_at(Lane.MAIN), cut // 8 * 8 or 8
    HEADER.pack_into(memory, at, 2**40, 1, 10, 1, 1, 1, 0, 2**40)
    HEADER.pack_into(newer, at, 2**40 + 1, 2, 20, 2, 2, 2, 1, 2**40 + 1)
    memory[at : at + cut] = newer[at : at + cut]
    assert ProgressReader(memory).look().running == ()


WRITER = """
import sys
from holdfast.core.faults.faults import Phase
from holdfast.progress import ProgressWriter, publish_progress
writer = ProgressWriter(publish_progress(sys.argv[1]))
step = 1
writer.begin(Phase.FORWARD, step, step, step)
print("begun", flush=True)
while True:
    step += 1
    writer.begin(Phase.FORWARD, step, step, step)
    writer.end()
"""


def test_a_reader_beside_a_writer_that_never_rests_sees_no_mixture(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"begun\n"
            reader = ProgressReader.of(str(tmp_path), process.pid)
            until, seen = time.monotonic() + 1.0, 0
            while time.monotonic() < until:
                for running in reader.look().running:
                    seen += 1
                    assert running.shape == BatchShape(running.step, running.step)
                    assert running.step == running.call
            assert seen
        finally:
            process.kill()


def test_a_record_is_found_by_its_process_and_is_no_file(tmp_path: Path) -> None:
    memory = publish_progress(str(tmp_path))
    ProgressWriter(memory).begin(Phase.FORWARD, 3)
    assert [r.step for r in ProgressReader.of(str(tmp_path), os.getpid()).look().running] == [3]
    assert [path.is_symlink() for path in tmp_path.iterdir()] == [True]
