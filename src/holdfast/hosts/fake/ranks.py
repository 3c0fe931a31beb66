"""Ranks on threads that wait for each other in collectives, as processes of the host do.

A step goes to every rank and only the reply of the first rank is read: an error of another rank shows in the
collectives of its peers, or through its reporter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from holdfast.core.faults.faults import Phase
from holdfast.core.protocol.messages import Rendezvous
from holdfast.hosts.fake.communicators import FakeNetwork
from holdfast.hosts.fake.model import sample
from holdfast.hosts.fake.worker import REBUILD_S, FakeWorker, Part, Reply, WorkerFailed

COLLECTIVE_S = 10.0
REPLY_S = 15.0


class RankThreads:
    """The workers of an engine core, each on a thread, in lockstep through communicators."""

    def __init__(self, workers: Sequence[FakeWorker]) -> None:
        self.workers = tuple(workers)
        self.network = FakeNetwork(len(workers))
        self._threads = [ThreadPoolExecutor(1, f"fake-rank-{w.rank}") for w in workers]
        for worker in workers:
            worker.communicators = self.network.rank(worker.rank)

    def execute(self, parts: Sequence[Part]) -> Reply:
        """Hand a step to every rank; return a reply that waits for the first rank."""
        replies = [thread.submit(_step, worker, parts) for thread, worker in self._each()]
        return lambda: replies[0].result(REPLY_S)

    def restore(self, epoch: int, histories: Mapping[str, Sequence[int]], rendezvous: Rendezvous | None) -> None:
        """Restore every rank. Raises the error of the first rank that fails, without waiting for the rest."""
        restored: list[Future[None]] = [
            thread.submit(_restore, worker, epoch, histories, rendezvous) for thread, worker in self._each()
        ]
        done, late = wait(restored, REBUILD_S, FIRST_EXCEPTION)
        for each in done:
            each.result()
        if late:
            raise WorkerFailed(f"{len(late)} ranks did not restore within {REBUILD_S:g} s")

    def close(self) -> None:
        """End the threads without waiting for steps under way."""
        for thread in self._threads:
            thread.shutdown(wait=False, cancel_futures=True)

    def _each(self) -> list[tuple[ThreadPoolExecutor, FakeWorker]]:
        return list(zip(self._threads, self.workers, strict=True))


def _step(worker: FakeWorker, parts: Sequence[Part]) -> dict[str, int]:
    worker.refuse_if_fenced()
    try:
        sampled = _phases(worker, parts)
    except Exception as error:
        worker.fence(error, getattr(error, "phase", None))
        raise WorkerFailed(f"a worker raised: {error}") from error
    worker.refuse_if_fenced()  # the step may have ended well on broken collectives
    return sampled


def _phases(worker: FakeWorker, parts: Sequence[Part]) -> dict[str, int]:
    assert worker.communicators is not None
    worker.faults.reach(Phase.STEP_START)
    attended = worker.communicators.all_gather(worker.forward(parts), COLLECTIVE_S)
    worker.faults.reach(Phase.STEP_END)
    worker.faults.reach(Phase.SAMPLE_START)
    # Ranks in different steps may differ in shape: memory is read all the same, as on a device.
    sampled = {
        part.request_id: sample(rank[index % len(rank)] for rank in attended)
        for index, part in enumerate(parts)
        if part.samples
    }
    for request_id, token in sampled.items():
        worker.tokens[request_id].append(token)
    worker.faults.reach(Phase.SAMPLE_END)
    return sampled


def _restore(
    worker: FakeWorker, epoch: int, histories: Mapping[str, Sequence[int]], rendezvous: Rendezvous | None
) -> None:
    try:
        worker.restore(epoch, histories, rendezvous)
    except Exception as error:
        worker.fail_entering(error)
        raise
