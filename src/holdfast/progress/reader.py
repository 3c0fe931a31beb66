"""Reads the progress of another process, which may be stuck, stopped or gone."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import msgspec

from holdfast.core.stalls.steps import BatchShape, Ended, Running
from holdfast.progress.record import (
    HEADER,
    NUMBER,
    PHASES,
    RECORD_BYTES,
    RING_SLOTS,
    SLOT,
    TAIL_OFFSET,
    Lane,
    header_at,
    slot_at,
)
from holdfast.progress.writer import record_path

_TRIES = 3  # a torn read lasts as long as a store; two in a row mean that the writer runs


class Seen(msgspec.Struct, frozen=True):
    """Content of a record: running calls, and calls that ended since the last look."""

    running: tuple[Running, ...] = ()
    ended: tuple[Ended, ...] = ()


class ProgressReader:
    """The record of a process. Raises `OSError` without a record."""

    def __init__(self, memory: mmap.mmap | bytes | bytearray) -> None:
        self._memory = memory
        self._read_up_to = dict.fromkeys(Lane, 0)

    @classmethod
    def of(cls, folder: str, pid: int) -> ProgressReader:
        with record_path(folder, pid).open("rb") as file:
            return cls(mmap.mmap(file.fileno(), RECORD_BYTES, prot=mmap.PROT_READ))

    def look(self) -> Seen:
        running: list[Running] = []
        ended: list[Ended] = []
        for lane in Lane:
            header = self._read(header_at(lane))
            if header is None or header[0] == 0:
                continue
            ended += self._ended(lane, header[0])
            if self._slot(lane, header[0]) is None:
                call, step, began_ns, tokens, requests, number, is_first = header
                shape = BatchShape(tokens, requests)
                running.append(Running(lane, call, step, PHASES[number], shape, began_ns / 1e9, bool(is_first)))
        return Seen(tuple(running), tuple(ended))

    def _ended(self, lane: Lane, begun: int) -> Iterator[Ended]:
        for call in range(max(self._read_up_to[lane] + 1, begun - RING_SLOTS + 1), begun + 1):
            if (slot := self._slot(lane, call)) is not None:
                _, _, lasted_ns, tokens, requests, number, is_typical = slot
                self._read_up_to[lane] = call
                shape, lasted_s = BatchShape(tokens, requests), lasted_ns / 1e9
                yield Ended(PHASES[number], shape, lasted_s, bool(is_typical), lane, call)

    def _slot(self, lane: Lane, call: int) -> tuple[int, ...] | None:
        slot = self._read(slot_at(lane, call))
        return slot if slot is not None and slot[0] == call else None

    def _read(self, at: int) -> tuple[int, ...] | None:
        """Read a header or a slot, which have the same size; None when every attempt met a write."""
        for _ in range(_TRIES):
            last: int = NUMBER.unpack_from(self._memory, at + TAIL_OFFSET)[0]
            fields: tuple[int, ...] = HEADER.unpack_from(self._memory, at)
            first: int = NUMBER.unpack_from(self._memory, at)[0]
            if first == last == fields[0]:
                return fields[:-1]
        return None


assert HEADER.size == SLOT.size
