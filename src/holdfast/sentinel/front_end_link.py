"""A front-end link: the control plane in a process that serves HTTP and does not own the engine cores.

It keeps a view and a history of its own, so that questions are answered where they arrive; commands
go to the owner of the engine cores and are settled from there. It decides nothing, and every wait of it
ends: in the owner's answer, or in an error that says that there was none.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from holdfast.core.config import HoldfastConfig, adopt_settings, runtime_settings
from holdfast.core.errors import HoldfastError, HookNotAttached, PeerSilent
from holdfast.core.protocol import link_messages as lm
from holdfast.core.protocol.commands import Command
from holdfast.core.protocol.decoding import Undecodable
from holdfast.core.protocol.events import Event, EventKind, InstanceView
from holdfast.sentinel.client import MAX_HISTORY
from holdfast.sentinel.forwarded_incidents import IncidentsFromOwner
from holdfast.sentinel.refused import RefusedMessages
from holdfast.sentinel.thread import SentinelThread, link_identity
from holdfast.wire import Delivery, Spoke, Station

logger = logging.getLogger("holdfast")

REPORT_S = 2.0
MAX_UNANSWERED = 4  # the owner answers every report; after so many without an answer it is taken for gone
MARGIN_S = 5.0  # beyond the owner's own bound of a command
_TICK_S = 0.5
_AWAITED = (EventKind.ENGINE_LOST, EventKind.DECISION_MADE)  # the owner waits until everybody knows


@dataclass(frozen=True)
class _Waiting:
    """A command that the owner has to end."""

    ended: Future[None]
    deadline: float


class FrontEndLink:
    """Control plane of an API server that does not own the engine cores. Call `start`, then `await_attached`."""

    def __init__(self, link_id: int, config: HoldfastConfig, station: Station, address: str) -> None:
        self._link_id = link_id
        self._config = config
        self._owner: Spoke = station.connect(address, link_identity(link_id))
        self._view = InstanceView(engines=(), settings=runtime_settings(config))
        self._history: tuple[Event, ...] = ()
        self._on_view: Callable[[InstanceView], None] = lambda view: None
        self._hooks: tuple[str, ...] = ()
        self._waiting: dict[str, _Waiting] = {}  # by submission: two callers may wait for the same command
        self._incidents = IncidentsFromOwner(lambda question: self._owner.send(lm.encode(question)))
        self._reported_at = 0.0
        self._unanswered = 0
        self._attached = threading.Event()
        self._refused = RefusedMessages(self._name)
        self._thread = SentinelThread(f"FrontEndLink-{link_id}", station, self._deliver, self._tick, lambda: _TICK_S)

    # ---- life

    def start(self, hooks: tuple[str, ...]) -> None:
        """Report the hooks of this process to the owner, now and every few seconds."""
        self._hooks = hooks
        self._thread.start()
        self._thread.post(self._report)

    def await_attached(self, timeout_s: float) -> InstanceView:
        """Wait until the owner has answered. Raises `HookNotAttached`."""
        if not self._attached.wait(timeout_s):
            raise HookNotAttached(
                f"the owner of the engine cores did not answer API server {self._link_id} within {timeout_s:g} s",
                hint="see the log of the process that was started first",
            )
        return self._view

    def tell(self, on_view: Callable[[InstanceView], None]) -> None:
        """Call `on_view` with every later view, on the link's thread."""
        self._on_view = on_view

    def close(self) -> None:
        self._thread.close()

    # ---- ControlPlane, any thread

    @property
    def config(self) -> HoldfastConfig:
        return self._config

    def view(self) -> InstanceView:
        return self._view

    def history(self, after: int = 0) -> tuple[Event, ...]:
        return tuple(e for e in self._history if e.sequence > after)

    def submit(self, command: Command) -> Future[None]:
        deadline = time.monotonic() + command.longest_s(self._config) + MARGIN_S
        waiting = _Waiting(Future(), deadline)
        self._thread.post(lambda: self._forward(command, waiting))
        return waiting.ended

    def incidents(self, asked: str) -> Future[bytes]:
        answer: Future[bytes] = Future()
        self._thread.post(lambda: self._incidents.ask(asked, answer))
        return answer

    def poison_request_ended(self, blamed: lm.PoisonRequestEnded) -> None:
        self._thread.post(lambda: self._tell(blamed, f"request {blamed.request_id}"))

    def tell_of_guilt(self, report: lm.GuiltReported | lm.RequestsRefused) -> None:
        self._thread.post(lambda: self._tell(report, "a request that was found guilty"))

    # ---- the link's thread

    def _forward(self, command: Command, waiting: _Waiting) -> None:
        submission = uuid.uuid4().hex
        self._waiting[submission] = waiting
        if self._is_silent or not self._owner.send(lm.encode(lm.Submitted(submission=submission, command=command))):
            self._settle(submission, _no_answer())

    def _report(self) -> None:
        self._reported_at = time.monotonic()
        self._unanswered += 1
        report = lm.LinkReported(link_id=self._link_id, pid=os.getpid(), hooks=self._hooks, sequence=self._seen)
        if not self._owner.send(lm.encode(report)):
            logger.warning("%s: the owner takes no report", self._name)

    def _tell(self, report: lm.PoisonRequestEnded | lm.GuiltReported | lm.RequestsRefused, what: str) -> None:
        """Send the report once: the log of this process keeps the report as well."""
        if not self._owner.send(lm.encode(report)):
            logger.warning("%s: the owner was not told of %s", self._name, what)

    @property
    def _name(self) -> str:
        return f"FrontEndLink-{self._link_id}"

    def _deliver(self, delivery: Delivery) -> None:
        try:
            message = lm.decode_to_link(delivery.data)
        except Undecodable as error:
            self._refused.note(error)
            return
        self._unanswered = 0
        match message:
            case lm.Past():
                if message.after <= self._last_sequence:  # else the portion before is missing, and is asked for again
                    self._learn(message.events)
            case lm.Present():
                self._show(message.view)
                self._attached.set()
            case lm.Published():
                self._take(message.event, message.view)
            case lm.IncidentsAnswered():
                self._incidents.take(message)
            case lm.Settled():
                self._settle(message.submission, None if message.error is None else lm.as_error(message.error))

    def _take(self, event: Event, view: InstanceView) -> None:
        if event.sequence > self._last_sequence + 1:
            self._report()  # something was missed: the answer begins with it
            return
        self._learn((event,))
        self._show(view)
        if view.defeat is not None or event.kind in _AWAITED:
            self._report()  # the owner waits for a moment until everybody knows

    @property
    def _last_sequence(self) -> int:
        return self._history[-1].sequence if self._history else 0

    @property
    def _seen(self) -> int:
        """The latest event that both history and view show: a message with either may have been lost."""
        return min(self._view.sequence, self._last_sequence)

    def _learn(self, events: Sequence[Event]) -> None:
        news = tuple(e for e in events if e.sequence > self._last_sequence)
        self._history = (*self._history, *news)[-MAX_HISTORY:]

    def _show(self, view: InstanceView) -> None:
        # A new view is made at every event, so the same number says the same; the first one replaces nothing.
        if view.sequence > self._view.sequence or not self._view.engines:
            self._view = view
            self._config = adopt_settings(self._config, view.settings)
            self._on_view(view)

    def _settle(self, submission: str, error: HoldfastError | None) -> None:
        waiting = self._waiting.pop(submission, None)
        if waiting is None or waiting.ended.done():
            return
        if error is None:
            waiting.ended.set_result(None)
        else:
            waiting.ended.set_exception(error)

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._reported_at >= REPORT_S:
            self._report()
        self._incidents.tick(now, self._is_silent)
        for submission in [s for s, waiting in self._waiting.items() if self._is_silent or now >= waiting.deadline]:
            self._settle(submission, _no_answer())

    @property
    def owner_answers(self) -> bool:
        """Whether the owner has answered lately. Any thread."""
        return not self._is_silent

    @property
    def _is_silent(self) -> bool:
        return self._unanswered > MAX_UNANSWERED


def _no_answer() -> PeerSilent:
    return PeerSilent(
        "the owner of the engine cores does not answer", hint="it is the process that was started first; see its log"
    )
