"""Owner of the engine cores: the ClientSentinel, the instance's folder, engine exits and the instance's end.

With one API server the owner is that server, with several their launcher; this module does not know which.
Fails closed: an instance does not serve unless all of its processes have reported their hooks.
"""

from __future__ import annotations

import logging
import multiprocessing.connection
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import HookNotAttached
from holdfast.core.faults.classification import Classifier
from holdfast.core.instance.processes import COORDINATOR
from holdfast.core.protocol.effects import End, LeaveOut, ReplaceEngine, ReplaceProcess
from holdfast.core.protocol.messages import Rendezvous
from holdfast.core.stalls.stalls import Stall
from holdfast.core.states import EngineState
from holdfast.hosts.vllm.communicators.rendezvous import HOST, InstanceRendezvous
from holdfast.hosts.vllm.contract.front_end_touchpoints import CLIENT_INIT
from holdfast.hosts.vllm.contract.hooks import missing
from holdfast.hosts.vllm.owner.api_servers import ApiServerProcess
from holdfast.hosts.vllm.owner.coordinator import CoordinatorProcess
from holdfast.hosts.vllm.owner.engine_processes import ATTACH_TIMEOUT_S, END_TIMEOUT_S, EngineProcesses, check_hooks
from holdfast.hosts.vllm.owner.engine_spawning import Launch
from holdfast.hosts.vllm.owner.engine_watch import EngineWatch
from holdfast.hosts.vllm.owner.front_end_watch import FrontEndWatch
from holdfast.hosts.vllm.owner.guard import Guard
from holdfast.hosts.vllm.owner.incidents import InstanceIncidents
from holdfast.hosts.vllm.owner.orphans import Orphans
from holdfast.hosts.vllm.process.lifecycle import EXIT_CODE_TIMEOUT_S, explain_exit, kill_tree, why_cannot_spawn
from holdfast.hosts.vllm.process.limits import make_instance_folder, raise_descriptor_limit, warn_of_shortages
from holdfast.hosts.vllm.process.logs import write_as, write_log_beside
from holdfast.hosts.vllm.process.members import end_dead_instances, end_remains, record_owner, remove_folder
from holdfast.hosts.vllm.process.reserve import Reserve
from holdfast.progress.processes import oom_kills, ticks_now
from holdfast.sentinel import ClientSentinel
from holdfast.sentinel.beside import EventSinks
from holdfast.sentinel.thread import client_address
from holdfast.wire import ZmqStation

logger = logging.getLogger("holdfast")

LINK_TIMEOUT_S = 180.0  # an API server is imported anew, on a busy machine beside every engine core
KNOWN_TIMEOUT_S = 1.0  # until the links and this process have heard of a loss or a defeat
RENDEZVOUS_S = 30.0  # for which the ranks that meet there may need descriptors of this process
_WATCH_S = 1.0
_JUDGED = (EngineState.RESTARTING, EngineState.LEFT_OUT, EngineState.DEAD)


OpenSinks = Callable[[HoldfastConfig], EventSinks]
Groups = Sequence[Sequence[int]]

# The instance that this process owns and that has started.
_current: VllmFrontEndHost | None = None


def current_owner() -> VllmFrontEndHost | None:
    """Return the owner in the current process, or None when the process owns no started instance."""
    return _current


class VllmFrontEndHost:
    """Owner of an instance; implements `FrontEndHost`. Binds all sockets before any engine core starts.

    Args:
        groups: engine ids of each lockstep group.
        links: number of API servers in processes of their own.
        address: of this node, where every rank reaches the rendezvous.
    """

    def __init__(
        self, config: HoldfastConfig, groups: Groups, links: int, open_sinks: OpenSinks, *, address: str = HOST
    ) -> None:
        raise_descriptor_limit()
        write_log_beside()  # when the plugin was loaded the host had not set up its log yet
        write_as(config.log_format)
        self.defeat: str | None = None
        self._at_close: list[Callable[[], None]] = []
        self.serves = False  # whether this process serves requests that can move to another engine core
        self._links = links
        self._defeated = threading.Event()
        self._ending: threading.Thread | None = None
        self._manager: Callable[[], Any] = lambda: None
        self._api_servers: Sequence[Any] = ()
        self._rendezvous = InstanceRendezvous(address)
        self._events = open_sinks(config)
        for folder in end_dead_instances():
            logger.warning("ended what a killed server of this user had left behind, known by %s", folder)
        warn_of_shortages(sum(len(group) for group in groups))
        self._folder = make_instance_folder()
        record_owner(self._folder)
        self._guard = Guard(self._folder)
        self._orphans = Orphans.adopted(self._folder)
        self.config = msgspec.structs.replace(config, runtime_dir=self._folder)
        self.incidents = InstanceIncidents(self.config)
        self.sentinel = ClientSentinel(
            groups,
            self.config,
            self,
            ZmqStation(),
            client_address(self._folder),
            sinks={**self._events.sinks, **self.incidents.sinks, "rendezvous": self._rendezvous.close_used},
            notify_address=self._events.address,
        )
        self.sentinel.expect_links(links)
        self._reserve = reserve = Reserve()
        why_not = self.unrecoverable_reason
        self._engines = EngineProcesses(self.sentinel, self.config, self._ends_within, why_not, reserve)
        self._watch = EngineWatch(self.config, self._engine_pids, self._kill_stalled, self._report_killed)
        self._stall_reasons: dict[int, str] = {}
        self._oom_kills = oom_kills()
        self._front_end = FrontEndWatch(self.sentinel, self._ends_within, reserve)

    # ---- the start

    def adopt(self, launch: Any) -> None:
        """Take charge of the engine cores that the host has started; `launch` is the host's own record."""
        manager = launch.engine_manager
        kept = Launch.of(launch, self._reserve.context)
        self._engines.adopt(kept, manager.processes)
        self.incidents.adopt(kept.arguments["vllm_config"])
        self._manager = weakref.ref(manager)
        weakref.finalize(manager, self.close)

    def owns(self, manager: Any) -> bool:
        """Return whether `manager` is the host's manager of the owned engine cores."""
        return self._manager() is manager

    def start(self, api_servers: Sequence[Any]) -> None:
        """Wait until every process has reported all hooks, and start watching.

        Raises:
            HookNotAttached: a report is missing or incomplete.
        """
        global _current
        self._api_servers = api_servers
        self.sentinel.start()
        self._check_engines()
        self._check_links(api_servers)
        if self.config.stall_detection:
            self._watch.start()
        self._front_end.start(self._coordinators())
        self._engines.keep_standbys()
        _current = self

    def _coordinators(self) -> list[CoordinatorProcess]:
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
                why = f"{', '.join(ended)} ended" if ended else f"no report within {LINK_TIMEOUT_S:g} s"
                raise HookNotAttached(f"API server(s) {silent} did not attach: {why}", hint="see the log above")
        for report in reports:
            if absent := missing((CLIENT_INIT,), report.hooks):
                raise HookNotAttached(f"API server {report.link_id} did not attach {', '.join(absent)}")

    def abort_start(self) -> None:
        """End every started process after a failed start, as the host does after an own failed start."""
        manager = self._manager()
        if manager is not None:
            manager.shutdown(timeout=0)
        if self._api_servers:
            from vllm.v1.utils import shutdown

            shutdown(list(self._api_servers), timeout=0)
        self.close()

    def end_start(self) -> None:
        """Kill every process of a starting instance and remove what the processes made; no request is served yet."""
        end_remains(self._folder)
        self._guard.close()

    # ---- exits of engine cores

    def await_fatal_exit(self, manager: Any) -> None:
        """Wait until an engine core exits without a replacement, or the instance is defeated.

        Before returning, every API server knows of the exit: the host ends the engine cores next, and their clients
        would otherwise take the exit for a requested one.
        """
        while not manager.manager_stopped.is_set():
            try:
                if self._has_fatal_exit(manager):
                    return
            except Exception:  # without this thread of the host's no exit would be noticed any more
                logger.exception("a look at the engine cores' exits failed; looking again")
                manager.manager_stopped.wait(_WATCH_S)

    def _has_fatal_exit(self, manager: Any) -> bool:
        """Wait a moment for exits, and return whether the instance does not survive one of them."""
        watched = self._engines.watched
        if not watched:
            manager.manager_stopped.wait(_WATCH_S)
            if self.defeat is None:
                return False
            self._await_known()  # no watched engine core is left to exit
            return True
        by_sentinel = {self._engines.processes[i].sentinel: i for i in watched}
        exited = multiprocessing.connection.wait(list(by_sentinel), _WATCH_S)
        ended = (by_sentinel[cast(int, sentinel)] for sentinel in exited)
        # The exit of an engine core that was killed for its replacement, meanwhile, is expected.
        return not all(i not in self._engines.watched or self._survives_exit(manager, i) for i in ended)

    def _survives_exit(self, manager: Any, engine_id: int) -> bool:
        """Report the exit of an engine core, and return whether the instance survives."""
        if manager.manager_stopped.is_set():
            return False  # the host reads the exit code itself
        process = self._engines.processes[engine_id]
        process.join(EXIT_CODE_TIMEOUT_S)
        if process.exitcode == 0 or manager.manager_stopped.is_set():
            return False  # the host asked it to end
        if self.defeat is None:
            self._report_lost(engine_id, process.exitcode)
            self.sentinel.await_state(engine_id, _JUDGED, KNOWN_TIMEOUT_S)
            if self.sentinel.view().defeat is None:
                return True
        self._await_known()
        return False

    def _await_known(self) -> None:
        self.sentinel.await_defeat_known(KNOWN_TIMEOUT_S)
        self._defeated.wait(KNOWN_TIMEOUT_S)  # links may know before this process does

    def _report_killed(self, engine_id: int, status: int) -> None:
        """Report a killed engine core before the system has released the memory; `status` as of wait(2)."""
        killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if killed_by not in (0, signal.SIGTERM, signal.SIGINT) and not self._ends_within(0.0):
            self._report_lost(engine_id, -killed_by)

    def _report_lost(self, engine_id: int, exit_code: int | None) -> None:
        if self._engines.unwatch(engine_id):
            because = Classifier(self.config.fault_classes).of_exit(exit_code).reason
            how = f"{explain_exit(exit_code, self._oom_kills)} ({because})"
            why = self._stall_reasons.pop(engine_id, "") or how
            lost = self._engines.processes[engine_id]
            self.sentinel.engine_lost(engine_id, why, self.unrecoverable_reason(), lost.pid)

    def _engine_pids(self) -> dict[int, int]:
        engines = self.sentinel.view().engines if self.defeat is None else ()
        return {e.engine_id: e.pid for e in engines if e.pid is not None and e.state is not EngineState.DEAD}

    def _kill_stalled(self, stall: Stall) -> None:
        """Kill a stalled engine core; the exit starts the recovery."""
        self._stall_reasons[stall.rank] = f"killed after a stall: {stall.reason}"
        logger.error("engine core %d stalls: %s; killing it", stall.rank, stall.reason)
        kill_tree(stall.pid)

    def _ends_within(self, seconds: float) -> bool:
        """Return whether the instance ends within `seconds`, or has ended."""
        manager = self._manager()
        return manager is None or bool(manager.manager_stopped.wait(seconds)) or self.defeat is not None

    # ---- processes beside the engine cores

    def proxies(self, watched: dict[str, Any]) -> dict[str, Any]:
        """Return the host's arguments `watched` with a proxy in the place of every process that is watched here."""
        manager, proxy = watched["api_server_manager"], self._front_end.proxy
        servers = [ApiServerProcess(manager, i, self.sentinel) for i in range(len(manager.processes))]
        self._front_end.add(servers)
        shown = {**watched, "api_server_manager": SimpleNamespace(processes=[proxy(s.name) for s in servers])}
        if watched.get("coordinator") is not None:
            shown["coordinator"] = SimpleNamespace(proc=proxy(COORDINATOR))
        return shown

    def expect_end(self) -> None:
        """Treat every later exit as requested: the host is about to end all processes."""
        self._front_end.close()

    # ---- FrontEndHost

    def replace_engine(self, effect: ReplaceEngine) -> None:
        self._engines.replace(effect)

    def leave_out_engine(self, effect: LeaveOut) -> None:
        self._engines.leave_out(effect)

    def replace_process(self, effect: ReplaceProcess) -> None:
        self._front_end.replace(effect)

    def unrecoverable_reason(self) -> str:
        """Return why no engine core can be replaced, or an empty string when replacement is possible."""
        if not self._links and not self.serves:
            return "no engine core can resume its requests: the instance was not started to serve over HTTP"
        if self.config.node_count > 1:
            return "an engine core over several nodes cannot be replaced: the nodes have to be started together"
        return why_cannot_spawn()

    def open_rendezvous(self, group: tuple[int, ...], epoch: int) -> Rendezvous:
        self._reserve.lend(RENDEZVOUS_S)
        return self._rendezvous.open(group, epoch)

    def close_rendezvous(self, group: tuple[int, ...], epoch: int) -> None:
        self._rendezvous.close(group, epoch)

    def end_instance(self, effect: End) -> None:
        """End every engine core and worker, by a kill after a grace period. Does not wait."""
        if self.defeat is None:
            self.defeat = effect.reason
            self._defeated.set()
            self._front_end.end_lost()
            about = (effect, ticks_now())
            ending = threading.Thread(target=self._engines.end, args=about, name="EngineCoreEnd", daemon=True)
            try:
                ending.start()
                self._ending = ending
            except RuntimeError:  # no thread is left; nothing else is left to be decided either
                self._engines.end(*about)

    def await_end(self) -> None:
        """Wait, after a defeat, until no engine core and no worker is left."""
        if self._ending is not None:
            self._ending.join(END_TIMEOUT_S)

    def call_at_close(self, call: Callable[[], None]) -> None:
        """Call `call` when the instance has ended; a repeated call must do no harm."""
        self._at_close.append(call)

    def close(self) -> None:
        """Stop watching and release sockets and the instance's folder. Idempotent."""
        for call in self._at_close:
            call()
        self._watch.close()
        self._front_end.close()
        self.sentinel.close()
        self._events.close()
        self._rendezvous.close_all()
        self._engines.close_standbys()
        self._engines.remove_sockets()
        self._orphans.close()
        self._reserve.close()
        remove_folder(self._folder)
        self._guard.close()  # last: were this process killed before, the guard would remove what is left
