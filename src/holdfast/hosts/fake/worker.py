"""A pretend worker, and the lockstep group of all workers, which runs a step phase by phase.

A rank that raises fences itself and tells its reporter; its peers find their communicator broken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from holdfast.core.errors import NonFiniteLogits, RankFenced
from holdfast.core.faults.classification import default_classifier, fault_of
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import ArmedFault, FaultKind, InjectedFault, InjectionSpec
from holdfast.core.ports import FaultReporter
from holdfast.core.protocol.messages import Rendezvous
from holdfast.hosts.fake.communicators import FakeCommunicators
from holdfast.hosts.fake.model import KVMemory, sample

R = TypeVar("R")
Reply = Callable[[], dict[str, int]]

REBUILD_S = 10.0
SILENT = frozenset({FaultKind.STOP, FaultKind.HANG, FaultKind.SPIN, FaultKind.DEADLOCK})


class WorkerFailed(RuntimeError):
    """Error of the engine core that repeats the text of a worker's exception."""


@dataclass(frozen=True)
class Part:
    """The share of a request in a step: compute `count` tokens from `start` on, then sample if `samples`."""

    request_id: str
    start: int
    count: int
    blocks: tuple[int, ...]
    samples: bool
    history: tuple[int, ...] | None = None  # set for a request that the workers do not know yet


class ArmedFaults:
    """The armed faults of a process; `reach` raises a fault that is due."""

    def __init__(self) -> None:
        self._armed: list[ArmedFault] = []
        self.batch: tuple[str, ...] = ()  # the requests of the step under way

    def arm(self, spec: InjectionSpec) -> None:
        self._armed.append(ArmedFault(spec))

    def reach(self, phase: Phase, request_index: int | None = None) -> None:
        here = [t for t in self._armed if t.spec.phase is phase and request_index in (None, t.spec.request_index)]
        spoilt: dict[str, None] = {}
        for fault in here:
            if not fault.is_due(self.batch):
                continue
            if fault.spec.kind is not FaultKind.NAN:
                raise InjectedFault(fault.spec)
            spoilt |= dict.fromkeys(_spoilt_by(fault.spec, self.batch))
        if spoilt:  # the error names every request with spoilt logits
            message = f"NaN or infinite logits of {len(spoilt)} of {len(self.batch)} requests"
            raise NonFiniteLogits(message, request_ids=tuple(spoilt))


def _spoilt_by(spec: InjectionSpec, batch: Sequence[str]) -> Sequence[str]:
    if spec.request:
        return [request for request in batch if spec.request in request]
    at = min(spec.request_index, len(batch))
    return batch[at - 1 : at] if at else batch


@dataclass
class FakeWorker:
    """Implementation of `WorkerHost` with a KV memory and a copy of every request's tokens."""

    engine_id: int
    rank: int
    memory: KVMemory
    reporter: FaultReporter
    epoch: int = 0
    fenced: bool = False
    fenced_in: int = 0
    gone: bool = False
    hangs: bool = False  # until the process is killed
    skips_fence: bool = False  # answers go wrong; a test shows it
    communicators: FakeCommunicators | None = None  # None: `LockstepGroup` fences the peers
    faults: ArmedFaults = field(default_factory=ArmedFaults)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arm(self, spec: InjectionSpec) -> None:
        self.faults.arm(spec)

    def restore(self, epoch: int, histories: Mapping[str, Sequence[int]], rendezvous: Rendezvous | None = None) -> None:
        """Keep the given histories and nothing else; take part in steps again."""
        if self.gone:
            raise WorkerFailed(f"rank {self.rank} is gone")
        with self._lock:
            self.epoch = epoch  # a break of an older epoch changes nothing from now on
        self.faults.reach(Phase.REBUILD)
        if rendezvous is not None and self.communicators is not None:
            self.communicators.rebuild(rendezvous, REBUILD_S)
        self.tokens = {request_id: list(tokens) for request_id, tokens in histories.items()}
        with self._lock:
            self.fenced = self.fenced and self.fenced_in >= epoch

    def die(self) -> None:
        """End without a report: the connections to the peers close."""
        self.gone = True
        self._break()

    def begin_anew(self, memory: KVMemory) -> None:
        """Become the replacement of a dead process: empty memory, no request known, not let in yet."""
        self.memory, self.tokens, self.gone, self.hangs = memory, {}, False, False

    def forward(self, parts: Sequence[Part]) -> list[int]:
        """Write the KV of a batch; return the attention result of each request's last token."""
        attended: list[int] = []
        self.faults.batch = tuple(part.request_id for part in parts)
        for index, part in enumerate(parts):
            if part.history is not None:
                self.tokens[part.request_id] = list(part.history)
            known = self.tokens[part.request_id][part.start : part.start + part.count]
            if index == len(parts) // 2:
                half = len(known) // 2
                self.memory.write(part.blocks, part.start, known[:half])
                self.faults.reach(Phase.FORWARD)
            attended.append(self.memory.write(part.blocks, part.start, known))
        return attended

    def break_collectives(self, epoch: int) -> int | None:
        with self._lock:
            if self.epoch > epoch:
                return None
            self.fenced, self.fenced_in = True, epoch
            return self._break()

    def collective_under_way(self, epoch: int) -> str | None:
        with self._lock:
            if self.communicators is None or self.epoch > epoch:
                return None
            return self.communicators.waits_in

    def fence(self, error: Exception, phase: Phase | None) -> None:
        """Refuse steps from now on, report the error and break the collectives.

        In this order and under the lock, as the vLLM host does: errors of the peers follow from the break.
        """
        if self.fenced or self.gone or self.skips_fence:
            return
        with self._lock:
            self.fenced, self.fenced_in = True, self.epoch
            self.report(error, phase)
            self._break()

    def report(self, error: Exception, phase: Phase | None) -> None:
        fault = fault_of(error, default_classifier(), engine_id=self.engine_id, rank=self.rank, phase=phase)
        self.reporter.report(fault, self.epoch)

    def fail_entering(self, error: Exception) -> None:
        """Report a failed restore and break the collectives, so that no peer waits for this rank."""
        with self._lock:
            self.report(error, Phase.REBUILD)
            self._break()

    def refuse_if_fenced(self) -> None:
        """Raise for a rank that is gone or fenced."""
        if self.gone:
            raise WorkerFailed(f"rank {self.rank} is gone")
        if self.fenced:
            raise RankFenced(f"rank {self.rank} is fenced")

    def _break(self) -> int:
        return 0 if self.communicators is None else self.communicators.break_all()


class LockstepGroup:
    """The workers of an engine core, where a step succeeds or fails on every rank."""

    def __init__(self, workers: Sequence[FakeWorker]) -> None:
        self.workers = tuple(workers)

    def execute(self, parts: Sequence[Part]) -> Reply:
        """Run a step; return a reply with the sampled tokens, or a reply that raises the engine core's error."""
        try:
            sampled = self._phases(parts)
        except _RankRaised as raised:
            kind = getattr(raised.error, "kind", FaultKind.RAISE)
            raised.worker.hangs = kind in SILENT
            if raised.worker.hangs or kind is FaultKind.KILL:
                raised.worker.gone = True  # reports nothing; only a watch notices
            raised.worker.fence(raised.error, raised.phase)
            for worker in self.workers:
                worker.fenced = True  # their communicator is broken
            return _raising(WorkerFailed(f"a worker raised: {raised.error}"))
        return lambda: sampled

    def restore(self, epoch: int, histories: Mapping[str, Sequence[int]], rendezvous: Rendezvous | None) -> None:
        for worker in self.workers:
            worker.restore(epoch, histories, rendezvous)

    def _phases(self, parts: Sequence[Part]) -> dict[str, int]:
        self._on_each(None, FakeWorker.refuse_if_fenced)
        self._pass_by(Phase.STEP_START)
        attended = self._on_each(Phase.FORWARD, lambda w: w.forward(parts))
        self._pass_by(Phase.STEP_END)
        self._pass_by(Phase.SAMPLE_START)
        sampled = {
            part.request_id: sample(rank[index] for rank in attended)
            for index, part in enumerate(parts)
            if part.samples
        }
        for worker in self.workers:
            for request_id, token in sampled.items():
                worker.tokens[request_id].append(token)
        self._pass_by(Phase.SAMPLE_END)
        return sampled

    def _pass_by(self, phase: Phase) -> None:
        self._on_each(phase, lambda w: w.faults.reach(phase))

    def _on_each(self, phase: Phase | None, act: Callable[[FakeWorker], R]) -> list[R]:
        results: list[R] = []
        for worker in self.workers:
            try:
                results.append(act(worker))
            except Exception as error:
                raise _RankRaised(worker, phase, error) from error
        return results


class _RankRaised(Exception):
    def __init__(self, worker: FakeWorker, phase: Phase | None, error: Exception) -> None:
        super().__init__(str(error))
        self.worker, self.phase, self.error = worker, phase, error


def _raising(error: Exception) -> Reply:
    def reply() -> dict[str, int]:
        raise error

    return reply
