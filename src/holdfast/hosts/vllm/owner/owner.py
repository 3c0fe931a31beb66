"""The process that owns the engine cores: its ClientSentinel, its folder, their death and the instance's end.

With one API server it is that server, with several their launcher; nothing here knows which. Fails
closed: an instance whose processes did not all report their hooks does not serve.
"""

from __future__ import annotations

import logging
import multiprocessing.connection
import os
import shutil
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Protocol, cast

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import HookNotAttached
from holdfast.core.faults.classification import Classifier
from holdfast.core.instance.processes import COORDINATOR
from holdfast.core.protocol.effects import End, LeaveOut, ReplaceEngine, ReplaceProcess
from holdfast.core.protocol.rendezvous import Rendezvous
from holdfast.core.stalls.stalls import Stall
from holdfast.core.states import EngineState
from holdfast.hosts.vllm.communicators.rendezvous import RendezvousHost
from holdfast.hosts.vllm.contract.front_end_touchpoints import CLIENT_INIT
from holdfast.hosts.vllm.contract.hooks import missing
from holdfast.hosts.vllm.owner.api_servers import ApiServerProcess
from holdfast.hosts.vllm.owner.coordinator import CoordinatorProcess
from holdfast.hosts.vllm.owner.engine_processes import END_TIMEOUT_S, EngineProcesses, check_hooks
from holdfast.hosts.vllm.owner.engine_spawning import Launch
from holdfast.hosts.vllm.owner.engine_watch import EngineWatch
from holdfast.hosts.vllm.owner.front_end_watch import FrontEndWatch
from holdfast.hosts.vllm.process.exits import explain_exit
from holdfast.hosts.vllm.process.logs import share_log
from holdfast.hosts.vllm.process.spawning import why_cannot_spawn
from holdfast.hosts.vllm.process.trees import kill_tree
from holdfast.progress.oom import oom_kills
from holdfast.sentinel import ClientSentinel
from holdfast.sentinel.addresses import client_address
from holdfast.sentinel.client import Sink
from holdfast.wire import ZmqStation

logger = logging.getLogger("holdfast")

ATTACH_TIMEOUT_S = 60.0
LINK_TIMEOUT_S = 180.0  # an API server is imported anew, on a busy machine beside every engine core
KNOWN_TIMEOUT_S = 1.0
LINK_KNOWN_TIMEOUT_S = 10.0  # links report every few seconds what they have seen, if not asked before
_WATCH_S = 1.0
_JUDGED = (EngineState.RESTARTING, EngineState.LEFT_OUT, EngineState.DEAD)


class EventSinks(Protocol):
    """Where the events of an instance go; made before any engine core starts."""

    address: str
    sinks: tuple[Sink, ...]

    def close(self) -> None: ...


MakeOutlets = Callable[[HoldfastConfig], EventSinks]
Groups = Sequence[Sequence[int]]

# The instance that this process owns and that has started.
_current: VllmFrontEndHost | None = None


def current_owner() -> VllmFrontEndHost | None:
    return _current


class VllmFrontEndHost:
    """Implements `FrontEndHost`. Sockets are bound before any engine core starts."""

    def __init__(self, config: HoldfastConfig, groups: Groups, links: int, make_outlets: MakeOutlets) -> None:
        share_log()  # when the plugin was loaded the host had not set up its log yet
        self.defeat: str | None = None
        self.serves = False  # whether this process serves requests that can move
        self._links = links
        self._defeated = threading.Event()
        self._ending: threading.Thread | None = None
        self._manager: Callable[[], Any] = lambda: None
        self._api_servers: Sequence[Any] = ()
        self._rendezvous: dict[tuple[int, ...], RendezvousHost] = {}
        self._outlets = make_outlets(config)
        self._folder = tempfile.mkdtemp(prefix="holdfast-")  # 0700: only this user reaches the sockets
        self.config = msgspec.structs.replace(config, runtime_dir=self._folder)
        self.sentinel = ClientSentinel(
            groups,
            self.config,
            self,
            ZmqStation(),
            client_address(self._folder),
            sinks=self._outlets.sinks,
            notify_address=self._outlets.address,
        )
        self.sentinel.expect_links(links)
        self._engines = EngineProcesses(self.sentinel, self.config, self._ends_within, self.unrecoverable_reason)
        self._watch = EngineWatch(self.config, self._engine_pids, self._condemn, self._notice_end)
        self._condemned: dict[int, str] = {}
        self._oom_kills = oom_kills()
        self._front_end = FrontEndWatch(self.sentinel, self._ends_within)

    # ---- the start

    def own(self, launch: Any) -> None:
        """The engine cores are started, and nobody else may own them."""
        manager = launch.engine_manager
        self._engines.adopt(Launch.of(launch), manager.processes)
        self._manager = weakref.ref(manager)
        weakref.finalize(manager, self.close)

    def owns(self, manager: Any) -> bool:
        return self._manager() is manager

    def start(self, api_servers: Sequence[Any]) -> None:
        """Wait for every process's report. Raises `HookNotAttached` when one is missing or incomplete."""
        global _current
        self._api_servers = api_servers
        self.sentinel.start()
        self._check_engines()
        self._check_links(api_servers)
        if self.config.stall_detection:
            self._watch.start()
        self._front_end.start(self._front_end_processes())
        _current = self

    def _front_end_processes(self) -> list[CoordinatorProcess]:
        coordinator = self._engines.launch.coordinator if self._engines.launch is not None else None
        return [CoordinatorProcess(coordinator, self.config)] if coordinator is not None else []

    def _check_engines(self) -> None:
        for engine in self.sentinel.await_attached(ATTACH_TIMEOUT_S).engines:
            check_hooks(engine)

    def _check_links(self, api_servers: Sequence[Any]) -> None:
        deadline = time.monotonic() + LINK_TIMEOUT_S
        while len(reports := self.sentinel.await_links(_WATCH_S)) < self._links:
            ended = [p.name for p in api_servers if p.exitcode is not None]
            if ended or time.monotonic() >= deadline:
                silent = sorted(set(range(self._links)) - {r.link_id for r in reports})
                why = f"{', '.join(ended)} ended" if ended else f"nothing was heard for {LINK_TIMEOUT_S:g} s"
                raise HookNotAttached(f"API server(s) {silent} did not attach: {why}", hint="see the log above")
        for report in reports:
            if absent := missing((CLIENT_INIT,), report.hooks):
                raise HookNotAttached(f"API server {report.link_id} did not attach {', '.join(absent)}")

    def give_up(self) -> None:
        """The start failed: end what was started, as the host does when its own part fails."""
        manager = self._manager()
        if manager is not None:
            manager.shutdown(timeout=0)
        if self._api_servers:
            from vllm.v1.utils import shutdown

            shutdown(list(self._api_servers), timeout=0)
        self.close()

    # ---- deaths

    def await_death(self, manager: Any) -> None:
        """Wait until an engine core is gone, and have everybody know before the host ends the others.

        Theirs would be the last word otherwise: what they have open they end as if that had been asked for.
        """
        while not manager.manager_stopped.is_set():
            watched = self._engines.watched
            by_sentinel = {self._engines.processes[i].sentinel: i for i in watched}
            gone = multiprocessing.connection.wait(list(by_sentinel), _WATCH_S) if watched else []
            if not watched:
                manager.manager_stopped.wait(_WATCH_S)
                if self.defeat is not None:  # and nobody is left whose death would say so
                    self._await_known()
                    return
            ended = (by_sentinel[cast(int, sentinel)] for sentinel in gone)
            # One that was killed to be replaced, meanwhile, is no news.
            if not all(i not in self._engines.watched or self._goes_on_without(manager, i) for i in ended):
                return

    def _goes_on_without(self, manager: Any, engine_id: int) -> bool:
        """Judge the death of an engine core: whether the instance goes on."""
        if manager.manager_stopped.is_set():
            return False  # and its exit code is for the host to look at
        process = self._engines.processes[engine_id]
        process.join(KNOWN_TIMEOUT_S)  # its sentinel says that it ends before the system says how
        if process.exitcode == 0 or manager.manager_stopped.is_set():
            return False  # it was asked to end
        if self.defeat is None:
            self._take_for_lost(engine_id, process.exitcode)
            self.sentinel.await_state(engine_id, _JUDGED, KNOWN_TIMEOUT_S)
            if self.sentinel.view().defeat is None:
                return True
        self._await_known()
        return False

    def _await_known(self) -> None:
        self.sentinel.await_defeat_known(KNOWN_TIMEOUT_S)
        self._defeated.wait(KNOWN_TIMEOUT_S)  # links may know before this process does

    def _notice_end(self, engine_id: int, status: int) -> None:
        """One was killed, and the system has not yet taken back all that it had."""
        killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if killed_by not in (0, signal.SIGTERM, signal.SIGINT) and not self._ends_within(0.0):
            self._take_for_lost(engine_id, -killed_by)

    def _take_for_lost(self, engine_id: int, exit_code: int | None) -> None:
        if self._engines.unwatch(engine_id):
            why = self._condemned.pop(engine_id, self._why_gone(exit_code))
            self.sentinel.engine_lost(engine_id, why, self.unrecoverable_reason())

    def _why_gone(self, exit_code: int | None) -> str:
        reason = Classifier(self.config.fault_classes).of_exit(exit_code).reason
        return f"{explain_exit(exit_code, self._oom_kills)} ({reason})"

    def _engine_pids(self) -> dict[int, int]:
        engines = self.sentinel.view().engines if self.defeat is None else ()
        return {e.engine_id: e.pid for e in engines if e.pid is not None and e.state is not EngineState.DEAD}

    def _condemn(self, stall: Stall) -> None:
        """An engine core stalls: its death is what everything else follows from."""
        self._condemned[stall.rank] = f"it stalled and was killed: {stall.reason}"
        logger.error("engine core %d stalls: %s; killing it", stall.rank, stall.reason)
        kill_tree(stall.pid)

    def unrecoverable_reason(self) -> str:
        if not self._links and not self.serves:
            return "nobody could go on with its requests: it was not started to serve them over HTTP"
        return why_cannot_spawn()

    def replace_engine(self, order: ReplaceEngine) -> None:
        self._engines.replace(order)

    def leave_out_engine(self, order: LeaveOut) -> None:
        self._engines.leave_out(order)

    def _ends_within(self, seconds: float) -> bool:
        """Whether the instance ends within that time, or has ended."""
        manager = self._manager()
        return manager is None or bool(manager.manager_stopped.wait(seconds)) or self.defeat is not None

    # ---- processes beside the engine cores

    def proxies(self, watched: dict[str, Any]) -> dict[str, Any]:
        """What the host is to watch in the place of what is watched here; takes and returns its own arguments."""
        manager, proxy = watched["api_server_manager"], self._front_end.proxy
        servers = [ApiServerProcess(manager, i, self.sentinel, self.config) for i in range(len(manager.processes))]
        self._front_end.add(servers)
        shown = {**watched, "api_server_manager": SimpleNamespace(processes=[proxy(s.name) for s in servers])}
        if watched.get("coordinator") is not None:
            shown["coordinator"] = SimpleNamespace(proc=proxy(COORDINATOR))
        return shown

    def expect_end(self) -> None:
        """The host is about to end every process."""
        self._front_end.close()

    def replace_process(self, order: ReplaceProcess) -> None:
        self._front_end.replace(order)

    # ---- FrontEndHost

    def open_rendezvous(self, group: tuple[int, ...], epoch: int) -> Rendezvous:
        return self._rendezvous.setdefault(group, RendezvousHost()).open(epoch)

    def close_rendezvous(self, group: tuple[int, ...], epoch: int) -> None:
        if group in self._rendezvous:
            self._rendezvous[group].close(epoch)

    def end_instance(self, order: End) -> None:
        """The engine cores were told to end; what does not is killed. Does not wait."""
        if self.defeat is None:
            self.defeat = order.reason
            self._defeated.set()
            self._front_end.give_up()
            about = (order, time.time())
            self._ending = threading.Thread(target=self._engines.end, args=about, name="EngineCoreEnd", daemon=True)
            self._ending.start()

    def await_end(self) -> None:
        """Wait, after a defeat, until no engine core and no worker is left, ended or killed."""
        if self._ending is not None:
            self._ending.join(END_TIMEOUT_S)

    def close(self) -> None:
        """Idempotent."""
        self._watch.close()
        self._front_end.close()
        self.sentinel.close()
        self._outlets.close()
        for rendezvous in self._rendezvous.values():
            rendezvous.close_all()
        self._engines.remove_sockets()
        shutil.rmtree(self._folder, ignore_errors=True)
