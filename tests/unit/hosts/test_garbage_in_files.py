"""Whatever stands in the files, pipes and shared memory of an instance: nothing ends, nothing foreign is removed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm")

from holdfast.api import control_token
from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Phase
from holdfast.core.stalls.stalls import Stall
from holdfast.core.stalls.step_deadlines import Limits
from holdfast.hosts.vllm import protocol
from holdfast.hosts.vllm.process import members, shared_memory
from holdfast.hosts.vllm.process.log_drain import Waiting
from holdfast.hosts.vllm.worker import restore
from holdfast.progress import ProgressReader, ProgressWriter
from holdfast.progress.identity import Identity
from holdfast.progress.record import HEADER, RECORD_BYTES, Lane, header_at, slot_at
from holdfast.progress.records import MAX_RECORD_BYTES, read_record
from holdfast.sentinel.incident_files import StallFiles
from holdfast.sentinel.incident_store import IncidentStore, IncidentWriter
from holdfast.sentinel.stall_watch import ProgressWatch
from support.control_plane import MemoryControl

FEW = settings(max_examples=15, deadline=None)
DEAD = 2**22 + 1  # no process has a larger id than 2**22

ME = msgspec.json.encode(Identity.of(os.getpid()))
JSON = st.one_of(
    st.binary(max_size=60),
    st.integers(0, len(ME) - 1).map(lambda at: ME[:at]),
    st.tuples(st.integers(0, len(ME) - 1), st.integers(1, 255)).map(
        lambda c: ME[: c[0]] + bytes([ME[c[0]] ^ c[1]]) + ME[c[0] + 1 :]
    ),
    st.sampled_from(
        [
            b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
            b'["/dev/shm/\\u0000", "\\ud800", "", "/"]',
            b'{"pid":1e400,"start_ticks":0,"pid_namespace":0,"boot":""}',
            b'{"pid":-1,"start_ticks":0,"pid_namespace":0,"boot":""}',
            b" " * (MAX_RECORD_BYTES + 1),
        ]
    ),
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="holdfast-") as made:
        yield Path(made)


# ---- records of processes, keys


@FEW
@given(member=JSON, sockets=JSON)
def test_whatever_stands_in_the_records_of_a_dead_instance_nothing_foreign_ends(member: bytes, sockets: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:
        folder = Path(name)
        bystander = folder.parent / f"{folder.name}.bystander"
        bystander.touch()
        for file, content in (("member-1", member), ("owner", member), ("sockets", sockets)):
            (folder / file).write_bytes(content)
        members.touch_files(name)
        living = set(members._living(name, {}))
        assert not living or read_record(folder / "member-1", Identity) == Identity.of(os.getpid())
        for path in members._recorded_sockets(name):
            assert isinstance(path, str)
        bystander.unlink()


@FEW
@given(record=JSON, token=st.binary(max_size=60) | st.just(b"x" * 10_000))
def test_no_key_file_ends_a_command_or_a_start(folder: Path, record: bytes, token: bytes) -> None:
    (folder / "1-1.json").write_bytes(record)
    assert [found for _, found in control_token._records(folder)] == [None]
    (folder / "token").write_bytes(token)
    try:
        read = control_token.configured_token(str(folder / "token"), {})
    except control_token.BadConfiguration:
        return
    assert read is not None and read == token.strip(b" \t\r\n")


# ---- notes of shared memory


LINES = [b"..", b".", b"/etc/x", b"a/b", b"\x00", b"a"]


@FEW
@given(notes=st.binary(max_size=80) | st.lists(st.sampled_from(LINES)).map(b"\n".join))
def test_notes_of_shared_memory_never_lead_out_of_its_folder(folder: Path, notes: bytes) -> None:
    file = folder / f"shm-{DEAD}"
    file.write_bytes(notes)
    memory = folder / "memory"
    for name in shared_memory._noted(file):
        assert (memory / name).parent == memory and name not in ("", ".", "..")


def test_a_note_removes_no_file_elsewhere_and_nothing_that_a_cut_line_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, place = tmp_path / "memory", tmp_path / "instance"
    memory.mkdir()
    place.mkdir()
    monkeypatch.setattr(shared_memory, "_SHARED", memory)
    monkeypatch.setattr(shared_memory, "_forget", lambda name, rtype: None)
    outside = tmp_path / "outside"
    for file in (outside, memory / "own", memory / "psm_1"):
        file.touch()
    (place / f"shm-{DEAD}").write_bytes(b"../outside\n%s\n\x00\nown\npsm_1" % bytes(outside))  # psm_1234, cut off
    shared_memory.remove_dead_segments(str(place))
    assert outside.exists()
    assert [file.name for file in memory.iterdir()] == ["psm_1"]
    assert list(place.iterdir()) == []


# ---- records of progress


def a_record() -> bytearray:
    memory = bytearray(RECORD_BYTES)
    writer = ProgressWriter(memory)
    for step in range(5):
        writer.begin(Phase.FORWARD, step, 4, 2)
        writer.end()
    writer.begin(Phase.FORWARD, 5, 4, 2)
    return memory


@FEW
@given(
    numbers=st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3),
    small=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4),
    lane=st.sampled_from(Lane),
    in_header=st.booleans(),
)
def test_a_record_of_progress_that_makes_no_sense_ends_no_watch(
    numbers: list[int], small: list[int], lane: Lane, in_header: bool
) -> None:
    memory = a_record()
    at = header_at(lane) if in_header else slot_at(lane, numbers[0])
    HEADER.pack_into(memory, at, *numbers, *small, numbers[0])
    watch = ProgressWatch("/nowhere", Limits())
    watch._watched[os.getpid()] = watch._begin(os.getpid())
    watch._watched[os.getpid()] = type(watch._watched[os.getpid()])(
        ProgressReader(memory), watch._watched[os.getpid()].activity
    )
    for second in range(3):
        assert len(watch.observe(1000.0 + second, {0: os.getpid()})) <= 1


# ---- evidence


@pytest.mark.parametrize("text", [b'{"number": 1e999}', b"[" * 5000, b"\xff", b"[]", b'{"number": null}', b""])
def test_an_incident_that_cannot_be_read_keeps_no_later_one_from_being_kept(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "incidents" / "damaged").mkdir(parents=True)
    (tmp_path / "incidents" / "damaged" / "incident.json").write_bytes(text)
    folder = StallFiles(str(tmp_path / "incidents"), str(tmp_path), 0).keep(Stall(0, os.getpid(), True, "x"), {})
    assert folder is not None and (folder / "stall.json").exists()
    control = MemoryControl().attach()
    writer = IncidentWriter(HoldfastConfig(incident_dir=str(tmp_path / "incidents")))
    control.break_down()
    for event in control.events:
        writer.take(event, control.view())
    assert len(IncidentStore(str(tmp_path / "incidents")).page().incidents) == 1


# ---- pipes


@FEW
@given(st.lists(st.binary(max_size=300) | st.just(b"x" * 5000), max_size=30), st.integers(100, 2000))
def test_the_drain_keeps_no_more_than_its_bound_and_counts_what_is_lost(pieces: list[bytes], limit: int) -> None:
    waiting, said = Waiting(limit), b""
    for piece in pieces:
        waiting.add(piece)
        assert len(waiting) <= limit
    dropped = waiting.dropped
    while waiting:
        said += waiting.take().data
    assert (dropped > 0) == (sum(map(len, pieces)) > len(said.partition(b"nobody read the log\n")[2] or said))


@FEW
@given(st.binary(max_size=80) | st.just(b"\x91" * 5000) | st.just(b"\xdf\xff\xff\xff\xff"))
def test_orders_to_a_standby_that_are_none_are_refused(data: bytes) -> None:
    assert restore.decode_reply(data) is None
    for decode in (protocol.decode_take_over, protocol.decode_join):
        with pytest.raises((msgspec.DecodeError, UnicodeDecodeError, RecursionError)):
            decode(data)
