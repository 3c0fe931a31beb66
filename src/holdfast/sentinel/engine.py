"""The EngineCoreSentinel: the shell around `core.engine_core.machine`, which decides.

The sentinel's thread owns the sockets to the client and to the workers. The thread of the busy loop calls `run`, and
performs the machine's tasks while the busy loop is paused. Facts come from any thread; the machine takes one fact at a
time, and its effects are performed before the next fact, so that no effect meets another epoch than its own.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.engine_core import effects as fx
from holdfast.core.engine_core import facts
from holdfast.core.engine_core.machine import BusyLoop, EngineCoreMachine
from holdfast.core.engine_core.membership import LOOK_S
from holdfast.core.errors import HookNotAttached
from holdfast.core.faults.injection import UncontainedFault
from holdfast.core.faults.redaction import PublicText
from holdfast.core.ports import EngineHost
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.decoding import Undecodable
from holdfast.core.stalls.step_deadlines import Limits
from holdfast.sentinel.host_effects import perform_on
from holdfast.sentinel.incident_files import StallFiles
from holdfast.sentinel.nodes import NodeWatch
from holdfast.sentinel.quarantine import make_quarantine
from holdfast.sentinel.rank_hubs import RankHubs, await_stopped
from holdfast.sentinel.refused import RefusedMessages
from holdfast.sentinel.stall_watch import PERIOD_S, ProgressWatch
from holdfast.sentinel.standing_watch import StandingWatch
from holdfast.sentinel.thread import IDLE_S, SentinelThread, engine_identity
from holdfast.wire import Delivery, Spoke, Station

logger = logging.getLogger("holdfast")

_POLL_S = 0.2
_SHORTEST_WAIT_S = 0.001


class EngineDefeated(Exception):
    """The engine core ends, because nothing repaired it. The cause is the original error."""


class AwaitsJoin(Exception):
    """Reason for the first pause of an engine core that joins a lockstep group: no fault."""


class EngineCoreSentinel:
    """Sentinel of an engine core.

    Built before the workers start, so that workers find its address; started after that.

    Args:
        address_for_nodes: where agents and workers of further nodes reach the engine core; none on a single node.
    """

    def __init__(
        self,
        engine_id: int,
        config: HoldfastConfig,
        station: Station,
        client_address: str,
        own_address: str,
        *,
        joins_epoch: int | None = None,
        address_for_nodes: str = "",
    ) -> None:
        self._engine_id = engine_id
        self._config = config
        self._ranks = RankHubs(station, own_address, address_for_nodes)
        self.nodes: NodeWatch | None = None
        self._client: Spoke = station.connect(client_address, engine_identity(engine_id))
        self._thread = SentinelThread(
            f"EngineCoreSentinel-{engine_id}", station, self._deliver, self._tick, self._idle_s
        )
        self._machine = EngineCoreMachine(engine_id, config, time.time, joins_epoch)
        self._changed = threading.Condition()  # held for a fact and all its effects
        self._tasks: SimpleQueue[fx.Task] = SimpleQueue()
        self._refused = RefusedMessages(f"EngineCoreSentinel-{engine_id}")
        self._joins = joins_epoch is not None  # pauses until its lockstep group lets it in
        self._host: EngineHost | None = None  # none while the engine core starts
        self._watch: ProgressWatch | None = None
        self._standing: StandingWatch | None = None
        self._stalls = StallFiles(config.incident_dir, config.runtime_dir, engine_id)
        self._quarantine = make_quarantine(config, engine_id, self._post, lambda: self._machine.epoch)

    def start(self) -> None:
        """Begin to answer. Not before the workers were started: a process that forks must be of one thread."""
        self._thread.start()

    def close(self) -> None:
        """End the sentinel's thread and close the sockets."""
        if self.nodes is not None:
            self.nodes.end_all()
        self._thread.close()

    # ---- attaching

    def await_workers(self, ranks: int, timeout_s: float) -> tuple[m.WorkerAttached, ...]:
        """Wait for the reports of all ranks. Raises `HookNotAttached` for a rank that does not report in time."""
        known = self._machine.registry
        with self._changed:
            if not self._changed.wait_for(lambda: not known.missing(ranks), timeout_s):
                raise HookNotAttached(
                    f"worker rank(s) {known.missing(ranks)} of engine {self._engine_id} did not report their hooks",
                    hint="the plugin did not load there; see the worker's log",
                )
            return known.reports(ranks)

    def await_processes(self, pids: Mapping[int, int], timeout_s: float) -> None:
        """Wait for the reports of new processes, by rank. Raises `HookNotAttached` for a report that is late."""
        known = self._machine.registry
        self._feed(facts.RanksStarted(dict(pids)))
        with self._changed:
            if not self._changed.wait_for(lambda: not known.unreported(pids), timeout_s):
                missing = known.unreported(pids)
                raise HookNotAttached(f"the new process(es) of rank(s) {missing} did not report their hooks")

    def take_back(self, pids: Mapping[int, int], timeout_s: float) -> set[int]:
        """Let ranks in again that were lost with their node; return those that said in time that they stopped."""
        ask = functools.partial(self._feed_returned, pids)
        return await_stopped(pids, ask, self._changed, lambda: self._machine.returning, timeout_s)

    def _feed_returned(self, pids: Mapping[int, int], ranks: set[int]) -> None:
        self._feed(facts.RanksReturned({rank: pids[rank] for rank in ranks}))

    def send_to_agent(self, peer: bytes, data: bytes) -> None:
        """Send a message to the agent of a further node. Any thread; does not wait."""
        self._thread.post(functools.partial(self._ranks.send_to_agent, peer, data))

    def report_standbys(self, standbys: m.Standbys) -> None:
        """Report the standby workers to the client. Any thread."""
        self._post(m.StandbysChanged(engine_id=self._engine_id, standbys=standbys))

    def report_runtime_state(self, calls: bytes, unrepeatable: str) -> None:
        """Report the state that callers set at run time to the client. Any thread."""
        self._post(m.RuntimeStateChanged(engine_id=self._engine_id, calls=calls, unrepeatable=unrepeatable))

    def announce(self, host: EngineHost, hooks: tuple[str, ...], workers: tuple[m.WorkerAttached, ...]) -> None:
        """Report to the client that the engine core is protected from now on."""
        if self._config.stall_detection and self._config.runtime_dir:
            limits = Limits(may_compile=host.compiles_in_steps)
            self._watch = ProgressWatch(self._config.runtime_dir, limits, with_peers=host.in_lockstep)
            self._standing = StandingWatch(host, limits)
            self._stalls.devices = host.devices
        self._host = host
        self._feed(facts.HostAttached(host.in_lockstep))
        self._post(
            m.EngineAttached(
                engine_id=self._engine_id,
                pid=os.getpid(),
                hooks=hooks,
                workers=workers,
                unrebuildable=host.unrebuildable(),
                pipeline_stages=host.pipeline_stages,
            )
        )

    # ---- the busy loop's thread

    def run(self, busy_loop: Callable[[], None], is_running: Callable[[], bool]) -> None:
        """Run the busy loop through faults. Returns or raises only when the engine core ends."""
        host = self._attached_host()
        if self._joins:
            self._pause(
                facts.JoinAwaited(), AwaitsJoin("this engine core has not joined its lockstep group yet"), is_running
            )
        while (error := _error_of(busy_loop)) is not None:
            if self._standing is not None:
                error = self._standing.cause_of(error)
            raised = facts.StepRaised(error, host.is_interrupt(error), host.is_workers_reply(error))
            self._pause(raised, error, is_running)

    def _pause(self, why: facts.Fact, error: Exception, is_running: Callable[[], bool]) -> None:
        """Perform the machine's tasks until the busy loop may run again."""
        host = self._attached_host()
        self._feed(why)
        while True:
            match self._next_task(is_running):
                case fx.CheckWorkers():
                    self._feed(facts.WorkersChecked(host.lost_ranks()))
                case fx.StudyFault() as study:
                    if self._quarantine is not None:
                        self._quarantine.learn(study.fault, host.requests)
                    self._feed(facts.FaultStudied())
                case fx.AnnouncePause() as pause:
                    self._announce_pause(pause, host)
                case fx.RunRecovery() as recovery:
                    if self._recover(recovery.command, error, host):
                        return
                case fx.EndBusyLoop() as end:
                    raise EngineDefeated(PublicText(end.reason)) from error

    def _next_task(self, is_running: Callable[[], bool]) -> fx.Task:
        """Wait for a task; every wait of the machine is bounded. Raises `SystemExit` in an orderly shutdown."""
        while True:
            try:
                return self._tasks.get(timeout=self._wait_s(_POLL_S))
            except Empty:
                self._feed(facts.TimePassed())
            if self._machine.busy_loop is BusyLoop.PAUSED and self._tasks.empty() and not is_running():
                raise SystemExit

    def _announce_pause(self, pause: fx.AnnouncePause, host: EngineHost) -> None:
        self._post(
            m.EnginePaused(
                engine_id=self._engine_id,
                epoch=pause.epoch,
                fault=pause.fault,
                unfinished_requests=host.unfinished_requests(),
                broken=pause.broken,
                search_progressed=self._quarantine is not None and self._quarantine.search_progressed,
                clears_rank=self._quarantine is not None and self._quarantine.clears_rank,
                progressed=host.step_ended_well or not host.unfinished_requests(),
            )
        )

    def _recover(self, command: m.RecoverEngine, error: Exception, host: EngineHost) -> bool:
        """Recover as commanded; return True when the busy loop may run again."""
        try:
            report = host.recover(error, command.epoch, command.rendezvous, command.replace)
            if self._quarantine is not None:
                self._quarantine.carry_out(report.replaced_ranks)
        except UncontainedFault:
            raise
        except Exception as again:
            logger.exception("engine %d: recovery failed", self._engine_id)
            self._feed(facts.RecoveryFailed(again, host.lost_ranks()))
            return False
        self._feed(facts.RecoveryFinished(report))
        return True

    def _attached_host(self) -> EngineHost:
        assert self._host is not None
        return self._host

    # ---- the sentinel's thread

    def rank_lost(self, rank: int, pid: int, how: str, exit_code: int | None = None) -> None:
        """Report that the process of a rank ended. Any thread."""
        self._thread.post(lambda: self._feed(facts.RankLost(rank, pid, how, exit_code)))

    def _deliver(self, delivery: Delivery) -> None:
        try:
            if delivery.endpoint is self._client:
                self._feed(m.decode_to_engine(delivery.data))
            elif self.nodes is not None and self._ranks.is_of_agent(delivery):
                self.nodes.deliver(delivery.peer, delivery.data)
            else:
                self._take_report(delivery, m.decode_from_worker(delivery.data))
        except Undecodable as error:
            self._refused.note(error)

    def _take_report(self, delivery: Delivery, report: m.FromWorker) -> None:
        if self._ranks.is_of_rank(delivery, report.rank):
            self._feed(report)
        else:
            self._refused.note(f"{delivery.peer!r} is not rank {report.rank}")

    def _idle_s(self) -> float:
        longest_s = LOOK_S if self.nodes is not None else IDLE_S
        return self._wait_s(longest_s if self._watch is None else PERIOD_S)

    def _wait_s(self, longest_s: float) -> float:
        """Return how long to wait for the next fact: no longer than until the machine is due."""
        return min(longest_s, max(_SHORTEST_WAIT_S, self._machine.wakes_at() - time.monotonic()))

    def _tick(self) -> None:
        now = time.monotonic()
        if self.nodes is not None:
            self.nodes.look(now)
        if now >= self._machine.wakes_at():
            self._feed(facts.TimePassed())
        if self._watch is not None and self._host is not None and self._watch.is_due(now):
            self._look_for_stalls(self._watch, self._host, now)

    def _look_for_stalls(self, watch: ProgressWatch, host: EngineHost, now: float) -> None:
        if self._standing is not None:
            self._standing.look(now, is_running=self._machine.busy_loop is BusyLoop.RUNNING)
        stalls = watch.observe(now, self._machine.pids_to_watch())
        if stalls or self._machine.is_searching:
            self._feed(facts.StallsSeen(tuple(stalls), is_rebuildable=not host.unrebuildable()))

    def _keep_evidence(self, stall: fx.KeepEvidence) -> None:
        """Write down a stall, which takes a while; then, or after a bound, have the process killed."""
        proceed = functools.partial(self._feed, facts.EvidenceKept(stall.stall))
        self._stalls.keep_within(stall.stall, self._machine.registry.pids_here(), proceed)

    # ---- facts and effects: any thread

    def _feed(self, fact: facts.Fact) -> None:
        """Tell the machine a fact and perform the effects."""
        with self._changed:
            for effect in self._machine.handle(fact, time.monotonic()):
                try:
                    self._perform(effect)
                except Exception:  # the next effect may be what lets peers go
                    logger.exception("EngineCoreSentinel-%d: %s failed", self._engine_id, type(effect).__name__)
            self._changed.notify_all()

    def _perform(self, effect: fx.Effect) -> None:
        """Perform an effect without waiting; effects that take time go to a thread."""
        match effect:
            case fx.Release():
                self._tasks.put(effect.task)
            case fx.SendToClient():
                self._post(effect.message)
            case fx.SendToRank():
                self._thread.post(lambda: self._send_to_rank(effect.rank, effect.message))
            case fx.ArmRank():
                self._thread.post(lambda: self._arm_rank(effect.command))
            case fx.KeepEvidence():
                self._thread.post(lambda: self._keep_evidence(effect))
            case fx.RelearnDeadlines():
                self._thread.post(self._relearn_deadlines)
            case fx.Log():
                level = logging.ERROR if effect.is_error else logging.WARNING
                logger.log(level, "EngineCoreSentinel-%d: %s", self._engine_id, effect.text)
            case _ if self._host is not None:
                perform_on(self._host, effect)

    def _relearn_deadlines(self) -> None:
        if self._watch is not None:
            self._watch.detector.relearn()

    def _post(self, message: m.FromEngine) -> None:
        self._thread.post(lambda: self._send(message))

    # ---- sockets: the sentinel's thread

    def _send(self, message: m.FromEngine) -> None:
        """Sign a message with the process id, and send the message."""
        if not self._client.send(m.encode(msgspec.structs.replace(message, pid=os.getpid()))):
            logger.error("EngineCoreSentinel-%d: the client did not accept a message", self._engine_id)

    def _send_to_rank(self, rank: int, message: m.ToWorker) -> None:
        if not self._ranks.send(rank, message):
            logger.error("EngineCoreSentinel-%d: rank %d did not accept a command", self._engine_id, rank)

    def _arm_rank(self, command: m.ArmWorkerFault) -> None:
        if not self._ranks.send(command.spec.rank, command):
            self._feed(facts.ArmingUndelivered(command))


def _error_of(busy_loop: Callable[[], None]) -> Exception | None:
    """Return the exception a busy loop ended with. `SystemExit` passes through, and a fault nothing is to contain."""
    try:
        busy_loop()
    except UncontainedFault:
        raise
    except Exception as error:
        return error
    return None
