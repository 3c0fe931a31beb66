"""The wave of a lockstep group: the run of steps that its engine cores take together, counted by every one of them."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.engine import EngineCoreOutputs

from holdfast.core.errors import RecoveryFailed
from holdfast.core.faults.redaction import PublicText

EXPERTS_DIFFER = PublicText(
    "the ranks hold the experts in different places: a new process starts with the placement of the start, which the "
    "host's balancing of experts (EPLB) has changed since; restart the server"
)
_WAVES_PER_EPOCH = 1 << 32  # more than a group runs between two recoveries; 64 bits hold two billion such epochs


def in_lockstep(engine: Any) -> bool:
    """Tell whether an engine core takes every step together with further engine cores."""
    return getattr(engine, "dp_group", None) is not None


def start_after_any_wave(engine: Any, epoch: int) -> None:
    """Give an engine core that joins a lockstep group, and through `agree_on_wave` the group, a wave never used before.

    The host's coordinator and front ends know the wave that was running, and the new process does not; after a loss of
    all members no engine core knows. Coordinator and front ends ignore the end of an older wave: they would believe in
    a running wave and never wake the group.
    """
    engine.current_wave = (epoch + 1) * _WAVES_PER_EPOCH


def agree_on_wave(engine: Any, expert_placement: int = 0) -> None:
    """Let the engine cores of a lockstep group resume at the same step of the same wave, or all stay idle.

    Engine cores count steps to know when to ask each other for remaining work. After a fault the counts may differ, or
    a member may have ended the wave. With work anywhere all members run, so that the wave ends with the message that
    coordinator and front ends wait for. A pause by the host continues only if every member was paused.

    Raises:
        RecoveryFailed: on every member, when `expert_placement` is not the same everywhere.
    """
    has_work = engine.scheduler.has_unfinished_requests()
    ranks_say = [engine.current_wave, has_work, engine.pending_pause, not engine.ignore_start_dp_wave]
    places = [expert_placement, -expert_placement]  # equal everywhere if the maximum of both is the same number
    state = torch.tensor([*map(int, ranks_say), *places], dtype=torch.int64)
    torch.distributed.all_reduce(state, op=torch.distributed.ReduceOp.MAX, group=engine.dp_group)
    wave, any_work, any_pending, any_unpaused, highest, lowest = state.tolist()
    if highest != -lowest:
        raise RecoveryFailed(EXPERTS_DIFFER)
    engine.current_wave = wave
    engine.engines_running = bool(any_work or any_pending or any_unpaused)
    engine.pending_pause = bool(any_pending)
    engine.ignore_start_dp_wave = not any_unpaused
    engine.step_counter = 0


def announce_to_coordinator(engine: Any) -> None:
    """Tell a new coordinator the load and the wave of an engine core. Any thread; may be repeated.

    A coordinator ignores an announcement that is older than the coordinator's own knowledge.
    """
    if not engine.has_coordinator:
        return
    engine.last_counts = None  # differs from every count, so that the next step sends the counts again
    if not hasattr(engine, "current_wave"):
        return
    wave = engine.current_wave
    has_work = engine.engines_running or engine.scheduler.has_unfinished_requests()
    if has_work and not engine.ignore_start_dp_wave:
        outputs = EngineCoreOutputs(start_wave=wave)
    else:
        outputs = EngineCoreOutputs(wave_complete=wave - 1)
    engine.output_queue.put_nowait((-1, outputs))
