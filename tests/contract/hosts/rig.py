"""What the conformance suite needs of a host under test: one engine core with its workers, driven turn by turn."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from holdfast.core.faults.faults import Fault, Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.ports import EngineHost, RequestHost, WorkerHost
from holdfast.core.protocol.messages import RecoveryReport, Rendezvous
from holdfast.hosts.fake import fault_free_output
from holdfast.hosts.fake.communicators import FakeNetwork

RANKS = 2
BLOCKS = 64
BLOCK_SIZE = 16
STEP_TOKENS = 64
MAX_RUNNING = 8
LONG_S = 30.0  # a bound that a passing test never reaches

PROMPT = tuple(range(1, 41))  # two whole blocks, and a part of a third


class Reported(NamedTuple):
    """A fault as reported by a worker, with the epoch of the fault."""

    fault: Fault
    epoch: int


class Reports(list[Reported]):
    """A `FaultReporter` that keeps every report, and acts as the owner does on a rank that cannot rebuild."""

    def __init__(self, close_rendezvous: Callable[[int], None] = lambda epoch: None) -> None:
        super().__init__()
        self._close_rendezvous = close_rendezvous

    def report(self, fault: Fault, epoch: int, *, finishes: bool = False) -> None:
        self.append(Reported(fault, epoch))
        if fault.phase is Phase.REBUILD:
            self._close_rendezvous(epoch)


class Rig(ABC):
    """An engine core of two ranks whose model is the arithmetic of `holdfast.hosts.fake.model`.

    The engine core's busy loop runs on the test's thread, one turn for each call of `step`; ranks run on threads and
    share collectives in memory. A rank's part of a wrong or unwritten KV block shows in the tokens.
    """

    engine: EngineHost
    workers: Sequence[WorkerHost]
    faults: Reports
    network: FakeNetwork
    answers: dict[str, list[int]]  # tokens sent to the front end, by request
    ended: dict[str, str]  # why a request was ended with an error

    def __init__(self) -> None:
        self.faults = Reports(self._close_rendezvous)
        self.answers, self.ended = {}, {}
        self._expected: dict[str, list[int]] = {}
        self._epoch = 0

    @property
    def requests(self) -> RequestHost:
        return self.engine.requests

    # ---- what each host does its own way

    @abstractmethod
    def step(self) -> None:
        """Run one turn of the busy loop. Raises the error that ends the busy loop."""

    @abstractmethod
    def close(self) -> None:
        """End every thread and process of the rig."""

    @abstractmethod
    def spoil_kv(self) -> None:
        """Overwrite the KV memory of every rank, which no host notices by itself."""

    @abstractmethod
    def break_before_the_next_reply(self) -> None:
        """Have the collectives of rank 0 broken in the next step, after the last collective of the step."""

    @abstractmethod
    def _accept(self, request_id: str, prompt: Sequence[int], max_tokens: int, client_index: int) -> None:
        """Add a request as the front end does."""

    # ---- what is the same for all

    def add(self, request_id: str, max_tokens: int = 4, prompt: Sequence[int] = PROMPT, client_index: int = 0) -> None:
        """Add a request and note the tokens of a run without faults."""
        self._accept(request_id, prompt, max_tokens, client_index)
        self.answers[request_id] = []
        self._expected[request_id] = fault_free_output(prompt, max_tokens, RANKS)

    def run(self) -> None:
        """Step until no request is unfinished."""
        for _ in range(200):
            if not self.engine.unfinished_requests():
                return
            self.step()
        raise AssertionError("the requests never finish")

    def failing_step(self) -> Exception:
        """Step until the busy loop raises; return the error."""
        for _ in range(50):
            try:
                self.step()
            except Exception as error:
                return error
        raise AssertionError("no step fails")

    def await_report_of(self, rank: int) -> None:
        """Wait until a rank has reported a fault: only the reply of the first rank ends a step."""
        deadline = time.monotonic() + LONG_S
        while all(reported.fault.rank != rank for reported in self.faults):
            assert time.monotonic() < deadline, f"rank {rank} reports no fault"
            time.sleep(0.002)

    def arm(self, phase: Phase, rank: int = 0, **spec: int) -> None:
        """Arm an exception at a phase of the engine core, or of one rank."""
        armed = InjectionSpec(phase=phase, rank=rank, **spec)
        (self.workers[rank] if phase.in_worker else self.engine).arm(armed)

    def rendezvous(self) -> Rendezvous:
        """Open the rendezvous of a new epoch."""
        self._epoch += 1
        return self.network.open(self._epoch)

    def recover(self, error: Exception, replace: Sequence[int] = ()) -> RecoveryReport:
        """Recover in a new epoch, with new collectives."""
        opened = self.rendezvous()
        return self.engine.recover(error, opened.epoch, opened, replace)

    def expected(self, request_id: str) -> list[int]:
        """Return the tokens of a request in a run without faults."""
        return self._expected[request_id]

    def _close_rendezvous(self, epoch: int) -> None:
        self.network.close(epoch)

    @property
    def is_exact(self) -> bool:
        """Whether every request that was not ended got the tokens of a run without faults."""
        return all(self.answers[i] == tokens for i, tokens in self._expected.items() if i not in self.ended)


@dataclass
class WaitingRank:
    """A rank of two whose main thread is the main thread of the test; the peer takes part in no collective."""

    host: WorkerHost
    all_reduce: Callable[[], object]
    close: Callable[[], None] = lambda: None
