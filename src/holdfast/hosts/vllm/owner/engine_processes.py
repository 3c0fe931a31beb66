"""Processes of the engine cores: replaced, left out, ended. In the process that owns them."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import HookNotAttached
from holdfast.core.faults.redaction import account_of
from holdfast.core.protocol.effects import End, LeaveOut, ReplaceEngine
from holdfast.core.protocol.events import EngineStatus
from holdfast.hosts.vllm.contract.engine_touchpoints import (
    ADD_TO_SCHEDULER,
    BUSY_LOOP,
    ENGINE_INIT,
    MAKE_REQUEST,
    WORKER_QUEUES,
)
from holdfast.hosts.vllm.contract.hooks import missing
from holdfast.hosts.vllm.owner.engine_spawning import (
    Launch,
    start_engine_core,
    start_standby_engine,
    takes_standby_engines,
)
from holdfast.hosts.vllm.owner.standby_engines import StandbyEngine, StandbyEngines
from holdfast.hosts.vllm.process.lifecycle import LINGER_S, all_live, end_processes, kill_tree, why_cannot_spawn
from holdfast.hosts.vllm.process.reserve import Reserve
from holdfast.hosts.vllm.process.settings import Heritage
from holdfast.hosts.vllm.process.shared_memory import remove_dead_segments
from holdfast.hosts.vllm.process.sockets import remove_sockets
from holdfast.progress.processes import ticks_now
from holdfast.sentinel import ClientSentinel

logger = logging.getLogger("holdfast")

ATTACH_TIMEOUT_S = 60.0  # until a ready engine core has reported its hooks
GONE_TIMEOUT_S = 10.0  # until the system has released the memory of a killed process
END_GRACE_S = 10.0
WAITING_LINGER_S = 1.0  # workers of a killed engine core do not follow: they wait for another
END_TIMEOUT_S = END_GRACE_S + GONE_TIMEOUT_S + 2 * LINGER_S  # however many there are
LINK_KNOWN_TIMEOUT_S = 10.0  # links report every few seconds what they have seen, if not asked before


class EngineProcesses:
    """Processes of the engine cores, in the host's own list. Starts and ends run on threads.

    Args:
        ends_within: waits so many seconds for the instance to end, and returns whether it has ended.
        unrecoverable_reason: returns why no engine core can be replaced; empty when replacement is possible.
        reserve: what a replacement needs where the system has nothing left.
    """

    def __init__(
        self,
        sentinel: ClientSentinel,
        config: HoldfastConfig,
        ends_within: Callable[[float], bool],
        unrecoverable_reason: Callable[[], str],
        reserve: Reserve,
    ) -> None:
        self.launch: Launch | None = None
        self.processes: Sequence[Any] = ()
        self._sentinel = sentinel
        self._config = config
        self._ends_within = ends_within
        self._unrecoverable_reason = unrecoverable_reason
        self._reserve = reserve
        self._unwatched: set[int] = set()  # engine cores whose exit is expected
        self._unwatching = threading.Lock()
        self._standbys = StandbyEngines(config.standby_engines, self._start_standby)
        self._starts: dict[int, ReplaceEngine] = {}  # the latest order for each engine core; older ones are void

    def adopt(self, launch: Launch, processes: Sequence[Any]) -> None:
        """Take charge of started engine cores; `processes` is the host's list, by engine id."""
        self.launch, self.processes = launch, processes

    def keep_standbys(self) -> None:
        """Keep standby engine cores ready from now on, where one can take the place of an engine core."""
        assert self.launch is not None
        if self._config.standby_engines and takes_standby_engines(self.launch) and not why_cannot_spawn():
            self._standbys.start()
        elif self._config.standby_engines:
            logger.warning("no standby engine cores: they are for instances with a single engine core on one node")

    def close_standbys(self) -> None:
        """End every standby engine core. Idempotent."""
        self._standbys.close()

    def _start_standby(self) -> StandbyEngine:
        assert self.launch is not None
        return start_standby_engine(self.launch, self._sentinel.config)

    @property
    def watched(self) -> list[int]:
        """Engine ids of which an exit is a loss: not being replaced, and not left out."""
        return [i for i in range(len(self.processes)) if i not in self._unwatched]

    def unwatch(self, engine_id: int) -> bool:
        """Expect the exit of an engine core, and return whether the exit was a loss until now. Any thread."""
        with self._unwatching:
            was_watched = engine_id not in self._unwatched
            self._unwatched.add(engine_id)
        return was_watched

    def replace(self, effect: ReplaceEngine) -> None:
        """Start a replacement of an engine core. Does not wait."""
        self.unwatch(effect.engine_id)  # before the kill
        if why := self._unrecoverable_reason():
            self._sentinel.engine_lost(effect.engine_id, "it has to be replaced", why)
            return
        self._starts[effect.engine_id] = effect
        self._begin("EngineCoreRestart", effect.engine_id, self._replace, effect, ticks_now())

    def leave_out(self, effect: LeaveOut) -> None:
        """End an engine core with all workers, without a replacement. Does not wait."""
        self.unwatch(effect.engine_id)
        self._begin("EngineCoreLeftOut", effect.engine_id, self._clear, effect, ticks_now())

    def end(self, effect: End, began_at_ticks: int) -> None:
        """Wait until every engine core and every worker has ended, and kill the rest.

        An engine core is killed with its workers: a stopped worker would not follow by itself.

        Args:
            began_at_ticks: when the end began, as `ticks_now` tells.
        """
        for process in _join_all(self.processes, END_GRACE_S):
            logger.error("engine core pid %d did not end within %g s; killing it", process.pid, END_GRACE_S)
            kill_tree(process.pid)
        _join_all(self.processes, GONE_TIMEOUT_S)
        end_processes(effect.processes, began_at_ticks, WAITING_LINGER_S if self._config.adopt_workers else None)
        remove_dead_segments(self._config.runtime_dir)

    def _begin(self, name: str, engine_id: int, work: Callable[..., None], *about: Any) -> None:
        def run() -> None:
            with self._reserve.released():
                work(*about)

        self._reserve.run(f"{name}-{engine_id}", run)

    def remove_sockets(self) -> None:
        """Remove the sockets between the engine cores and their clients."""
        if self.launch is not None:
            remove_sockets((*self.launch.addresses.inputs, *self.launch.addresses.outputs))

    # ---- threads of their own

    def _clear(self, effect: LeaveOut | ReplaceEngine, lost_at_ticks: int, *, keep_workers: bool = False) -> None:
        """Remove all remains of an engine core and the workers: processes, zombies, shared-memory segments."""
        if effect.kill:
            self._kill(effect.engine_id)
        self.processes[effect.engine_id].join(GONE_TIMEOUT_S)
        if not keep_workers:  # workers that wait for an engine core do not follow by themselves
            end_processes(effect.processes, lost_at_ticks, 0.0 if self._config.adopt_workers else None)
        remove_dead_segments(self._config.runtime_dir)

    def _can_adopt(self, effect: ReplaceEngine, lost_at_ticks: int) -> bool:
        """Tell whether the workers of a lost engine core may live on: it died alone, and all of them are there."""
        is_alone = not effect.kill and effect.joins_epoch is None and self._config.adopt_workers
        return is_alone and all_live(effect.processes, lost_at_ticks)

    def _replace(self, effect: ReplaceEngine, lost_at_ticks: int) -> None:
        engine_id, old = effect.engine_id, self.processes[effect.engine_id]
        try:
            adopts = self._can_adopt(effect, lost_at_ticks)
            self._clear(effect, lost_at_ticks, keep_workers=adopts)
            if not self._sentinel.await_known(effect.known_at, LINK_KNOWN_TIMEOUT_S):
                logger.warning("an API server does not know yet that engine core %d is lost", engine_id)
            if self._ends_within(effect.after_s) or self._starts.get(engine_id) is not effect:
                return
            if not (adopts and self._start_over_workers(effect, lost_at_ticks)):
                self._start_replacement(effect)
        except Exception as error:
            if not self._ends_within(0.0) and self._starts.get(engine_id) is effect:
                logger.exception("the replacement of engine core %d did not start", engine_id)
                self._kill(engine_id)
                why = f"the replacement did not start: {account_of(error).message}"
                started = self.processes[engine_id]
                pid = None if started is old else started.pid
                self._sentinel.engine_lost(engine_id, why, self._unrecoverable_reason(), pid)

    def _start_over_workers(self, effect: ReplaceEngine, lost_at_ticks: int) -> bool:
        """Start a replacement that takes over the living workers; return False when the workers are ended instead."""
        if all_live(effect.processes, lost_at_ticks):
            try:
                self._start_replacement(effect, effect.processes)
                return True
            except Exception as error:
                if self._ends_within(0.0):
                    raise
                why = account_of(error).message
                logger.warning("the workers of engine core %d are replaced too: %s", effect.engine_id, why)
        self._kill(effect.engine_id)
        self._clear(effect, lost_at_ticks)
        return False

    def _start_replacement(self, effect: ReplaceEngine, adopts: Sequence[int] = ()) -> None:
        assert self.launch is not None
        engine_id, joins_epoch = effect.engine_id, effect.joins_epoch
        put_in_place = functools.partial(self._put_in_place, engine_id)
        background = joins_epoch is None and self._siblings_serve(engine_id)
        config = self._sentinel.config  # the settings in force
        start_engine_core(
            self.launch,
            engine_id,
            config,
            put_in_place,
            Heritage(joins_epoch, effect.runtime_state, adopts),
            background=background,
            standby=self._standbys.take(),
        )
        if not self._sentinel.await_attached_again(engine_id, ATTACH_TIMEOUT_S):
            raise HookNotAttached(f"engine core {engine_id} did not report its hooks within {ATTACH_TIMEOUT_S:g} s")
        view = self._sentinel.view().engine(engine_id)
        if view is not None:
            check_hooks(view)
        self._unwatched.discard(engine_id)

    def _siblings_serve(self, engine_id: int) -> bool:
        return any(e.state.makes_progress for e in self._sentinel.view().engines if e.engine_id != engine_id)

    def _put_in_place(self, engine_id: int, process: Any) -> None:
        """Put a process into the host's list, so that the host ends the process at shutdown."""
        cast(list[Any], self.processes)[engine_id] = process
        if self._ends_within(0.0):
            self._kill(engine_id)

    def _kill(self, engine_id: int) -> None:
        """Kill an engine core unless the process has ended: the system may have reused the process id."""
        process = self.processes[engine_id]
        if process.exitcode is None and process.pid is not None:
            kill_tree(process.pid)


def _join_all(processes: Sequence[Any], timeout_s: float) -> list[Any]:
    """Wait at most `timeout_s` until all processes have ended, and return the processes that have not."""
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    return [process for process in processes if process.is_alive()]


def check_hooks(engine: EngineStatus) -> None:
    """Raise `HookNotAttached` unless an engine core and all workers are protected."""
    if absent := missing((ENGINE_INIT, BUSY_LOOP, MAKE_REQUEST, ADD_TO_SCHEDULER), engine.hooks):
        raise HookNotAttached(f"engine core {engine.engine_id} did not attach {', '.join(absent)}")
    if absent := missing((WORKER_QUEUES,), engine.worker_hooks):
        raise HookNotAttached(f"a worker of engine core {engine.engine_id} did not attach {', '.join(absent)}")
