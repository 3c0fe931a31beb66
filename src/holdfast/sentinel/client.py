"""The ClientSentinel: one per instance, in the process that owns the engine cores.

A shell: its thread feeds reports, commands and time to the pure `Instance` and carries out the
effects. Everything that others read (`view`, `history`) is immutable and replaced as a whole.
"""

from __future__ import annotations

import functools
import logging
import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import BadCommand, HookNotAttached, OperatorError, RecoveryFailed
from holdfast.core.faults.redaction import account_of
from holdfast.core.instance.instance import Instance
from holdfast.core.instance.processes import index_of_api_server
from holdfast.core.ports import FrontEndHost
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import Command
from holdfast.core.protocol.decoding import Undecodable
from holdfast.core.protocol.effects import (
    BeginRecovery,
    CloseRendezvous,
    Effect,
    End,
    LeaveOut,
    Publish,
    ReplaceEngine,
    ReplaceProcess,
    Send,
    Settle,
)
from holdfast.core.protocol.events import Event, InstanceView
from holdfast.core.protocol.link_messages import GuiltReported, LinkReported, PoisonRequestEnded, RequestsRefused
from holdfast.core.states import EngineState
from holdfast.sentinel.begun_commands import BegunCommands
from holdfast.sentinel.beside import Beside, Sink, dropped_items
from holdfast.sentinel.incident_store import IncidentAnswers
from holdfast.sentinel.link_registry import LinkRegistry
from holdfast.sentinel.refused import RefusedMessages
from holdfast.sentinel.thread import SentinelThread, engine_identity, is_link
from holdfast.wire import Delivery, Hub, Station

logger = logging.getLogger("holdfast")

MAX_HISTORY = 1000
SINK_TIMEOUT_S = 1.0  # at the end
KEY_BYTES = 32
TICK_S = 0.25  # deadlines are of seconds


class ClientSentinel:
    """Implements `ControlPlane`. Bind first (`__init__`), then start the engines, then `start`."""

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        config: HoldfastConfig,
        host: FrontEndHost,
        station: Station,
        address: str,
        *,
        sinks: Mapping[str, Sink] = MappingProxyType({}),
        notify_address: str = "",
    ) -> None:
        self._host = host
        self._hub: Hub = station.bind(address)
        self._instance = Instance(
            groups,
            config,
            wall_clock=time.time,
            new_command_id=lambda: uuid.uuid4().hex,
            instance_id=uuid.uuid4().hex,
            notify_address=notify_address,
            fingerprint_key=secrets.token_bytes(KEY_BYTES),
        )
        self._view = self._instance.view()
        self._history: deque[Event] = deque(maxlen=MAX_HISTORY)
        self._sinks = [Beside(name, functools.partial(_deliver_event, name, sink)) for name, sink in sinks.items()]
        self._follower: Beside[None] = Beside("views", self._show_view)
        self._waiting: dict[str, Future[None]] = {}
        self._begun = BegunCommands()
        self._incidents = IncidentAnswers(config.incident_dir)
        self._on_view: Callable[[InstanceView], None] = lambda view: None
        self._changed = threading.Condition()
        self._refused = RefusedMessages("ClientSentinel")
        self._thread = SentinelThread("ClientSentinel", station, self._deliver, self._tick, lambda: TICK_S)
        self._links = LinkRegistry(self._hub, self, self._refused, self._thread.post)
        self._serves_links = False

    # ---- life

    def start(self) -> None:
        self._thread.start()

    def await_attached(self, timeout_s: float) -> InstanceView:
        """Wait until every engine core is protected. Raises `HookNotAttached`, which names the silent engine cores."""
        with self._changed:
            self._changed.wait_for(lambda: not self._starting(), timeout_s)
            missing = self._starting()
        if missing:
            raise HookNotAttached(
                f"engine core(s) {missing} did not report their hooks within {timeout_s:g} s",
                hint="the plugin did not load there; see the engine core's log",
            )
        return self._view

    def expect_links(self, count: int) -> None:
        """Serve the links of `count` API servers. Call before `start`."""
        self._serves_links = count > 0
        self._links.expect(count, self._notify)

    def await_links(self, timeout_s: float) -> tuple[LinkReported, ...]:
        """Return the reports of the links, after all have reported or `timeout_s` is over."""
        with self._changed:
            self._changed.wait_for(lambda: not self._links.missing(), timeout_s)
        return self._links.reports()

    def await_defeat_known(self, timeout_s: float) -> None:
        """Give every link a moment to learn that the instance is defeated."""
        with self._changed:
            self._changed.wait_for(self._defeat_is_known, timeout_s)

    def close(self) -> None:
        """End the thread, and give each sink a moment to take what is left. Idempotent."""
        self._thread.close()
        for beside in (self._follower, *self._sinks):
            beside.close(SINK_TIMEOUT_S)

    def await_sinks(self, timeout_s: float) -> bool:
        """Wait until each sink has taken every event so far; return whether all have."""
        deadline = time.monotonic() + timeout_s
        return all(s.flush(max(0.0, deadline - time.monotonic())) for s in (self._follower, *self._sinks))

    def engine_lost(self, engine_id: int, why: str, unrecoverable_reason: str = "", pid: int | None = None) -> None:
        """Report the loss of an engine core. Any thread.

        Args:
            unrecoverable_reason: why no replacement is possible; else empty.
            pid: the lost process; None for a replacement that has no process yet.
        """
        self._thread.post(
            lambda: self._perform(self._instance.lost(engine_id, why, time.monotonic(), unrecoverable_reason, pid))
        )

    def process_attached(self, name: str, pid: int | None) -> None:
        """Report that a process beside the engine cores is watched. Any thread."""
        self._thread.post(lambda: self._perform(self._instance.process_attached(name, pid)))

    def process_lost(self, name: str, why: str, unrecoverable_reason: str = "", pid: int | None = None) -> None:
        """Report the loss of a process beside the engine cores, as `engine_lost` does. Any thread."""
        self._thread.post(lambda: self._process_lost(name, why, unrecoverable_reason, pid))

    def process_returned(self, name: str, pid: int | None) -> None:
        """Report that the replacement of a process beside the engine cores serves. Any thread."""
        self._thread.post(lambda: self._perform(self._instance.process_returned(name, time.monotonic(), pid)))

    def tell(self, on_view: Callable[[InstanceView], None]) -> None:
        """Call `on_view` with the latest view after every later event, in a thread beside the sentinel's."""
        self._on_view = on_view

    def await_known(self, sequence: int, timeout_s: float) -> bool:
        """Wait until every link has seen an event; return whether all have."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._links.behind(sequence), timeout_s)

    def await_attached_again(self, engine_id: int, timeout_s: float) -> bool:
        """Wait until the replacement of an engine core has reported; return whether the report came."""
        return self.await_state(engine_id, [s for s in EngineState if s.is_attached], timeout_s)

    def await_state(self, engine_id: int, states: Sequence[EngineState], timeout_s: float) -> bool:
        """Wait until an engine is in any of the states; return whether the engine is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_in(engine_id, states), timeout_s)

    def _is_in(self, engine_id: int, states: Sequence[EngineState]) -> bool:
        engine = self._view.engine(engine_id)
        return engine is not None and engine.state in states

    def _defeat_is_known(self) -> bool:
        return self._view.defeat is not None and not self._links.behind(self._view.sequence)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _starting(self) -> list[int]:
        return [e.engine_id for e in self._view.engines if e.state is EngineState.STARTING]

    # ---- ControlPlane, any thread

    @property
    def config(self) -> HoldfastConfig:
        return self._instance.config

    def view(self) -> InstanceView:
        view, dropped = self._view, dropped_items()
        return view if dropped == view.dropped else msgspec.structs.replace(view, dropped=dropped)

    def history(self, after: int = 0) -> tuple[Event, ...]:
        return tuple(e for e in tuple(self._history) if e.sequence > after)

    def submit(self, command: Command) -> Future[None]:
        ended: Future[None] = Future()
        self._thread.post(lambda: self._begin(command, ended))
        return ended

    def incidents(self, asked: str) -> Future[bytes]:
        return self._incidents.ask(asked)

    def poison_request_ended(self, blamed: PoisonRequestEnded) -> None:
        self._thread.post(lambda: self._perform(self._instance.poison_request_ended(blamed)))

    def tell_of_guilt(self, report: GuiltReported | RequestsRefused) -> None:
        self._thread.post(lambda: self._perform(self._instance.take_guilt(report, time.monotonic())))

    # ---- the sentinel's thread

    def _process_lost(self, name: str, why: str, unrecoverable_reason: str, pid: int | None) -> None:
        if (link_id := index_of_api_server(name)) is not None:
            self._links.forget(link_id, pid)
        self._perform(self._instance.process_lost(name, why, time.monotonic(), unrecoverable_reason, pid))

    def _begin(self, command: Command, ended: Future[None]) -> None:
        """Begin a command once: a repeated command id gets the outcome of the first."""
        now = time.monotonic()
        if self._begun.answer_again(command, ended, self._view, now):
            return
        try:
            effects = self._instance.submit(command, now, self._host.unrecoverable_reason())
        except Exception as error:  # whoever waits for the command must learn how it ended
            ended.set_exception(error)
            if not isinstance(error, OperatorError):
                raise
            return
        self._begun.remember(command, ended, now)
        self._waiting[command.command_id] = ended
        self._perform(effects)

    def _deliver(self, delivery: Delivery) -> None:
        try:
            if is_link(delivery.peer):
                self._links.deliver(delivery.peer, delivery.data)
            else:
                self._observe(delivery.peer, m.decode_from_engine(delivery.data))
        except Undecodable as error:
            self._refused.note(error)

    def _observe(self, peer: bytes, report: m.FromEngine) -> None:
        if peer != engine_identity(report.engine_id):
            self._refused.note(f"{peer!r} is not engine core {report.engine_id}")
            return
        self._perform(self._instance.observe(report, time.monotonic()))

    def _tick(self) -> None:
        self._perform(self._instance.tick(time.monotonic()))

    def _perform(self, effects: Sequence[Effect]) -> None:
        """Carry out the effects one by one; what follows from a failed effect comes after all others."""
        pending = deque(effects)
        while pending:
            effect = pending.popleft()
            try:
                self._carry_out(effect)
            except Exception as error:
                what, why = type(effect).__name__, account_of(error).message
                logger.exception("ClientSentinel: the effect %s failed; the repair goes on without it", what)
                pending += self._instance.effect_failed(effect, why, time.monotonic())

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._send(effect.engine_id, effect.message)
            case BeginRecovery():
                self._begin_recovery(effect)
            case CloseRendezvous():
                self._host.close_rendezvous(effect.engine_ids, effect.epoch)
            case ReplaceEngine():
                self._host.replace_engine(effect)
            case LeaveOut():
                self._host.leave_out_engine(effect)
            case ReplaceProcess():
                self._host.replace_process(effect)
            case Publish():
                self._publish(effect)
            case Settle():
                self._settle(effect)
            case End():
                self._host.end_instance(effect)

    def _begin_recovery(self, effect: BeginRecovery) -> None:
        """Bind the rendezvous, then send the recovery commands."""
        rendezvous = None
        if effect.rebuild:
            opened = self._host.open_rendezvous(effect.engine_ids, effect.epoch)
            rendezvous = msgspec.structs.replace(opened, extra_wait_s=effect.extra_wait_s)
        for engine_id in effect.engine_ids:
            replace = effect.replace.get(engine_id, ())
            command = m.RecoverEngine(
                command_id=effect.command_id, epoch=effect.epoch, rendezvous=rendezvous, replace=replace
            )
            self._send(engine_id, command)

    def _send(self, engine_id: int, message: m.ToEngine) -> None:
        if not self._hub.send(engine_identity(engine_id), m.encode(message)):
            # Bounded elsewhere: a command that does not arrive ends in its deadline.
            logger.error("ClientSentinel: engine core %d takes no commands", engine_id)

    def _publish(self, effect: Publish) -> None:
        self._history.append(event := effect.event.without_stack())
        view = self._view = msgspec.structs.replace(effect.view, dropped=dropped_items())
        if self._serves_links:
            self._links.publish(event, view)
        self._notify()
        self._follower.put(None)
        for sink in self._sinks:
            sink.put((effect.event, view))

    def _show_view(self, _: None) -> None:
        try:
            self._on_view(self._view)
        except Exception:
            logger.exception("ClientSentinel: a view was not taken")

    def _settle(self, effect: Settle) -> None:
        ended = self._waiting.pop(effect.command_id, None)
        if ended is None or ended.done():
            return
        if effect.error is None:
            ended.set_result(None)
        elif effect.refused:
            ended.set_exception(BadCommand(effect.error))
        else:
            ended.set_exception(RecoveryFailed(effect.error))


def _deliver_event(name: str, sink: Sink, news: tuple[Event, InstanceView]) -> None:
    try:
        sink(*news)
    except Exception:
        logger.exception("ClientSentinel: the sink %s failed", name)
