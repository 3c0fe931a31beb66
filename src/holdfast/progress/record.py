"""The layout of a progress record: the call that began last, and the last calls that ended.

Each working thread has a lane: a header for the call that began last, and a ring of ended calls. Beginning a call
writes the header, ending it writes a slot; together they tell whether a call is still running. Native sizes and
alignment store every field as a whole. The number of the call stands first and last in each part. A reader that reads
the last number first and the first number last sees two different numbers when a write interfered. That holds on
processors that keep the order of stores, such as x86; on others the next look is right.
"""

from __future__ import annotations

import enum
import struct

from holdfast.core.faults.faults import Phase

PHASES = tuple(Phase)
PHASE_NUMBERS = {phase: number for number, phase in enumerate(PHASES)}

# call, step, began (monotonic ns), tokens, requests, phase, first of its shape, call
HEADER = struct.Struct("@QQQIIIIQ")
# call, step, lasted (ns), tokens, requests, phase, typical, call
SLOT = struct.Struct("@QQQIIIIQ")
NUMBER = struct.Struct("@Q")
TAIL_OFFSET = HEADER.size - NUMBER.size

RING_SLOTS = 256  # a reader that looks every 100 ms misses nothing below 2,560 calls a second
LANE_BYTES = HEADER.size + RING_SLOTS * SLOT.size


class Lane(enum.IntEnum):
    """The threads of a process that work on steps."""

    MAIN = 0
    OUTPUTS = 1  # finishes asynchronous outputs


RECORD_BYTES = len(Lane) * LANE_BYTES


def header_at(lane: Lane) -> int:
    return lane * LANE_BYTES


def slot_at(lane: Lane, call: int) -> int:
    return lane * LANE_BYTES + HEADER.size + (call % RING_SLOTS) * SLOT.size
