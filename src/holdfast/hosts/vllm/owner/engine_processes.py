"""Who stands in the place of each engine core: started anew, left out, killed. In the process that owns them."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import HookNotAttached
from holdfast.core.protocol.effects import End, LeaveOut, ReplaceEngine
from holdfast.core.protocol.events import EngineView
from holdfast.hosts.vllm.contract.engine_touchpoints import (
    ADD_TO_SCHEDULER,
    BUSY_LOOP,
    ENGINE_INIT,
    MAKE_REQUEST,
    WORKER_QUEUES,
)
from holdfast.hosts.vllm.contract.hooks import missing
from holdfast.hosts.vllm.owner.engine_spawning import Launch, start_engine_core
from holdfast.hosts.vllm.process.shared_memory import remove_dead_segments
from holdfast.hosts.vllm.process.sockets import remove_sockets
from holdfast.hosts.vllm.process.trees import LINGER_S, end_processes, kill_tree
from holdfast.sentinel import ClientSentinel

logger = logging.getLogger("holdfast")

ATTACH_TIMEOUT_S = 60.0
GONE_TIMEOUT_S = 10.0  # until the system has taken back what a killed one had
END_GRACE_S = 10.0
END_TIMEOUT_S = END_GRACE_S + GONE_TIMEOUT_S + 2 * LINGER_S  # however many there are
LINK_KNOWN_TIMEOUT_S = 10.0  # links report every few seconds what they have seen, if not asked before


class EngineProcesses:
    """The processes of the engine cores, in the host's own list. What starts or ends some has a thread of its own.

    Args:
        ends_within: whether the instance ends within some seconds, or has ended.
        unrecoverable_reason: why nobody could start another engine core; empty where one can.
    """

    def __init__(
        self,
        sentinel: ClientSentinel,
        config: HoldfastConfig,
        ends_within: Callable[[float], bool],
        unrecoverable_reason: Callable[[], str],
    ) -> None:
        self.launch: Launch | None = None
        self.processes: Sequence[Any] = ()
        self._sentinel = sentinel
        self._config = config
        self._ends_within = ends_within
        self._unrecoverable_reason = unrecoverable_reason
        self._unwatched: set[int] = set()  # that these end is no news
        self._unwatching = threading.Lock()

    def adopt(self, launch: Launch, processes: Sequence[Any]) -> None:
        """The engine cores are started."""
        self.launch, self.processes = launch, processes

    @property
    def watched(self) -> list[int]:
        """Whose death is news: not that of one that is being replaced, or that is left out."""
        return [i for i in range(len(self.processes)) if i not in self._unwatched]

    def unwatch(self, engine_id: int) -> bool:
        """That it ends is no news any more; whether it would have been until now. Any thread."""
        with self._unwatching:
            was_watched = engine_id not in self._unwatched
            self._unwatched.add(engine_id)
        return was_watched

    def replace(self, order: ReplaceEngine) -> None:
        """Start another one."""
        self.unwatch(order.engine_id)  # before it is killed
        if why := self._unrecoverable_reason():
            self._sentinel.engine_lost(order.engine_id, "it has to be replaced", why)
            return
        self._begin("EngineCoreRestart", order.engine_id, self._replace, order, time.time())

    def leave_out(self, order: LeaveOut) -> None:
        """See that nothing is left of one."""
        self.unwatch(order.engine_id)
        self._begin("EngineCoreLeftOut", order.engine_id, self._clear, order, time.time())

    def end(self, order: End, began_at: float) -> None:
        """Wait until every engine core and every worker has ended, or kill it. `began_at` is wall-clock seconds.

        An engine core goes with all its workers: a stopped one would not follow by itself.
        """
        for process in _join_all(self.processes, END_GRACE_S):
            logger.error("engine core pid %d did not end within %g s; killing it", process.pid, END_GRACE_S)
            kill_tree(process.pid)
        _join_all(self.processes, GONE_TIMEOUT_S)
        end_processes(order.processes, began_at)
        remove_dead_segments(self._config.runtime_dir)

    @staticmethod
    def _begin(name: str, engine_id: int, work: Callable[..., None], *about: Any) -> None:
        threading.Thread(target=work, args=about, name=f"{name}-{engine_id}", daemon=True).start()

    def remove_sockets(self) -> None:
        """Those over which the engine cores and their clients meet."""
        if self.launch is not None:
            remove_sockets((*self.launch.addresses.inputs, *self.launch.addresses.outputs))

    # ---- threads of their own

    def _clear(self, order: LeaveOut | ReplaceEngine, lost_at: float) -> None:
        """Nothing of the old process and of its workers is left in the end: no memory, no zombie, no segment."""
        if order.kill:
            self._kill(order.engine_id)
        self.processes[order.engine_id].join(GONE_TIMEOUT_S)
        end_processes(order.processes, lost_at)
        remove_dead_segments(self._config.runtime_dir)

    def _replace(self, order: ReplaceEngine, lost_at: float) -> None:
        engine_id = order.engine_id
        try:
            self._clear(order, lost_at)
            if not self._sentinel.await_known(order.known_at, LINK_KNOWN_TIMEOUT_S):
                logger.warning("an API server has not heard yet that engine core %d is lost", engine_id)
            if self._ends_within(order.after_s):
                return
            self._start_replacement(engine_id, order.joins_epoch)
        except Exception as error:
            if not self._ends_within(0.0):
                logger.exception("another engine core %d did not start", engine_id)
                self._kill(engine_id)
                why = f"what was to take its place did not start: {' '.join(str(error).split())}"
                self._sentinel.engine_lost(engine_id, why, self._unrecoverable_reason())

    def _start_replacement(self, engine_id: int, joins_epoch: int | None) -> None:
        assert self.launch is not None
        put_in_place = functools.partial(self._put_in_place, engine_id)
        background = joins_epoch is None and self._others_serve(engine_id)
        start_engine_core(self.launch, engine_id, self._config, put_in_place, joins_epoch, background=background)
        if not self._sentinel.await_attached_again(engine_id, ATTACH_TIMEOUT_S):
            raise HookNotAttached(f"engine core {engine_id} did not report its hooks within {ATTACH_TIMEOUT_S:g} s")
        view = self._sentinel.view().engine(engine_id)
        if view is not None:
            check_hooks(view)
        self._unwatched.discard(engine_id)

    def _others_serve(self, engine_id: int) -> bool:
        return any(e.state.makes_progress for e in self._sentinel.view().engines if e.engine_id != engine_id)

    def _put_in_place(self, engine_id: int, process: Any) -> None:
        """From now on it ends with the others."""
        cast(list[Any], self.processes)[engine_id] = process
        if self._ends_within(0.0):
            self._kill(engine_id)

    def _kill(self, engine_id: int) -> None:
        """Unless it has ended: its process id may be another's by now."""
        process = self.processes[engine_id]
        if process.exitcode is None and process.pid is not None:
            kill_tree(process.pid)


def _join_all(processes: Sequence[Any], timeout_s: float) -> list[Any]:
    """Wait that long at most until all have ended; those that have not."""
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    return [process for process in processes if process.is_alive()]


def check_hooks(engine: EngineView) -> None:
    """Raises `HookNotAttached` for an engine core that is not protected."""
    if absent := missing((ENGINE_INIT, BUSY_LOOP, MAKE_REQUEST, ADD_TO_SCHEDULER), engine.hooks):
        raise HookNotAttached(f"engine core {engine.engine_id} did not attach {', '.join(absent)}")
    if absent := missing((WORKER_QUEUES,), engine.worker_hooks):
        raise HookNotAttached(f"a worker of engine core {engine.engine_id} did not attach {', '.join(absent)}")
