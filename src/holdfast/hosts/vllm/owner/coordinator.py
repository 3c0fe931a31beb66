"""Replacement of the host's data-parallel coordinator, and what the engine cores tell the new process.

A replacement binds the addresses of the lost process, and the peers reconnect by themselves. Lost is the state: the
load of each engine core and, in lockstep, the current wave. Without the wave no engine core would be woken, and a
lone stepping engine core would wait in a collective for ever.
"""

from __future__ import annotations

import inspect
import multiprocessing.connection
from collections.abc import Callable
from typing import Any

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import RecoveryFailed
from holdfast.core.instance.processes import COORDINATOR
from holdfast.hosts.vllm.process.bootstrap import bootstrapped
from holdfast.hosts.vllm.process.lifecycle import spawning, why_cannot_spawn
from holdfast.hosts.vllm.process.settings import inherited_settings

START_TIMEOUT_S = 120.0  # as long as the host waits for the first coordinator


def save_coordinator_arguments(original: Callable[..., None], coordinator: Any, *args: Any, **kwargs: Any) -> None:
    """Keep the coordinator's arguments, around `__init__`: a started process forgets them."""
    if inherited_settings() is not None:
        bound = inspect.signature(original).bind(coordinator, *args, **kwargs)
        bound.apply_defaults()
        coordinator.holdfast_arguments = dict(bound.arguments)
    original(coordinator, *args, **kwargs)


class CoordinatorProcess:
    """The data-parallel coordinator; implements `FrontEndProcess`."""

    name = COORDINATOR

    def __init__(self, coordinator: Any, config: HoldfastConfig) -> None:
        self._coordinator = coordinator
        self._config = config

    @property
    def process(self) -> Any:
        return self._coordinator.proc

    def note_loss(self) -> None:
        """Do nothing: no process shares state with the coordinator."""

    def unrecoverable_reason(self) -> str:
        return why_cannot_spawn()

    def start_replacement(self, on_started: Callable[[], None]) -> None:
        """Start a process and wait until the addresses are bound; messages wait there from then on.

        Raises:
            RecoveryFailed: the process ended, or bound no addresses within `START_TIMEOUT_S`.
        """
        from vllm.utils.system_utils import get_mp_context
        from vllm.v1.engine.coordinator import DPCoordinatorProc

        context = get_mp_context()
        ours, theirs = context.Pipe(duplex=False)
        with spawning(self._config), bootstrapped(context, background=False):
            process = context.Process(
                target=DPCoordinatorProc.run_coordinator,
                name="VLLM_DP_Coordinator",
                kwargs={**self._arguments(), "zmq_addr_pipe": theirs},
                daemon=True,
            )
            process.start()
        theirs.close()
        self._put_in_place(process)
        on_started()
        with ours:
            _await_bound(ours, process)

    def _arguments(self) -> dict[str, Any]:
        first, saved = self._coordinator, self._coordinator.holdfast_arguments
        return {
            "engine_count": saved["parallel_config"].data_parallel_size,
            "front_publish_address": first.stats_publish_address,
            "back_output_address": first.coord_out_address,
            "back_publish_address": first.coord_in_address,
            "enable_wave_coordination": saved["enable_wave_coordination"],
            "logging_config": saved["logging_config"],
        }

    def _put_in_place(self, process: Any) -> None:
        """Put a process into the host's record, so that the host ends the process at shutdown."""
        self._coordinator.proc = process
        if (finalizer := self._coordinator._finalizer.peek()) is not None:
            _, _, (processes,), _ = finalizer
            processes[:] = [process]


def _await_bound(pipe: Any, process: Any) -> None:
    ready = multiprocessing.connection.wait([pipe, process.sentinel], START_TIMEOUT_S)
    if pipe not in ready:
        raise RecoveryFailed(
            "the process ended at once" if ready else f"no addresses bound within {START_TIMEOUT_S:g} s"
        )
    try:
        pipe.recv()
    except EOFError:
        raise RecoveryFailed("the process ended before it had bound its addresses") from None
