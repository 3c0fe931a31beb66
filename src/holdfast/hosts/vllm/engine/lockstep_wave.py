"""An engine core between standing still and running again: its queue of interrupts, its wave.

Runs on the busy loop's thread, inside a recovery.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.engine import EngineCoreRequestType


def in_lockstep(engine: Any) -> bool:
    """Whether its busy loop takes every step together with those of other engine cores."""
    return getattr(engine, "dp_group", None) is not None


def forget_interrupts(engine: Any) -> None:
    """Take back every interrupt that has not been heard: it would end the busy loop once more, for nothing."""
    waiting = engine.input_queue
    with waiting.mutex:
        kept = [item for item in waiting.queue if item[0] is not EngineCoreRequestType.EXECUTOR_FAILED]
        waiting.queue.clear()
        waiting.queue.extend(kept)


_WAVES_PER_EPOCH = 1 << 32  # more than a group runs between two recoveries, and 64 bits hold two billion epochs of it


def begin_later_than_any_wave(engine: Any, epoch: int) -> None:
    """Give an engine core that joins a lockstep group a wave that nobody has heard of, and with it its whole group.

    The host's coordinator and front ends know the wave that was running, a process that joins does not, and where all
    members are new nobody there does. Waves below theirs they would not hear the end of: they would go on believing in
    a running wave and wake nobody.
    """
    engine.current_wave = (epoch + 1) * _WAVES_PER_EPOCH


def agree_on_wave(engine: Any) -> None:
    """Let the engine cores of a lockstep group go on at one step of one wave, all of them or none.

    They count steps to know when to ask each other whether anybody has work left; standing still, one may have
    counted further, or have ended the wave. They run on, were it only for a moment: so the wave ends with the word
    of it that the host's coordinator and front ends wait for. A pause of the host's own goes on only where every one
    of them had come to it.
    """
    has_work = engine.scheduler.has_unfinished_requests()
    ranks_say = [engine.current_wave, has_work, engine.pending_pause, not engine.ignore_start_dp_wave]
    state = torch.tensor([int(value) for value in ranks_say], dtype=torch.int64)
    torch.distributed.all_reduce(state, op=torch.distributed.ReduceOp.MAX, group=engine.dp_group)
    wave, any_work, any_pending, any_unpaused = state.tolist()
    engine.current_wave = wave
    engine.engines_running = bool(any_work or any_pending or any_unpaused)
    engine.pending_pause = bool(any_pending)
    engine.ignore_start_dp_wave = not any_unpaused
    engine.step_counter = 0
