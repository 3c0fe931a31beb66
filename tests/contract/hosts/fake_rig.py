"""The fake host under the conformance suite."""

from __future__ import annotations

from collections.abc import Sequence

from contract.hosts.rig import BLOCK_SIZE, BLOCKS, LONG_S, MAX_RUNNING, RANKS, STEP_TOKENS, Reports, Rig, WaitingRank
from holdfast.core.faults.faults import Phase
from holdfast.hosts.fake import EngineOptions, FakeEngineCore, FakeWorker
from holdfast.hosts.fake.communicators import FakeNetwork
from holdfast.hosts.fake.model import KVMemory
from holdfast.hosts.fake.ranks import RankThreads


class FakeRig(Rig):
    """A `FakeEngineCore` with a thread for each rank."""

    def __init__(self) -> None:
        super().__init__()
        options = EngineOptions(
            ranks=RANKS,
            blocks=BLOCKS,
            block_size=BLOCK_SIZE,
            step_tokens=STEP_TOKENS,
            max_running=MAX_RUNNING,
            rank_threads=True,
        )
        self.engine = self._core = FakeEngineCore(0, options, self.faults)
        assert isinstance(self._core.ranks, RankThreads)
        self._threads = self._core.ranks
        self.workers, self.network = self._core.workers, self._threads.network

    def step(self) -> None:
        try:
            self._core.step()
        finally:
            self._take_outputs()

    def recover(self, error: Exception, replace: Sequence[int] = ()):
        try:
            return super().recover(error, replace)
        finally:
            self._take_outputs()

    def spoil_kv(self) -> None:
        for worker in self._core.workers:
            worker.memory = KVMemory(worker.rank, BLOCKS, BLOCK_SIZE)

    def break_before_the_next_reply(self) -> None:
        worker = self._core.workers[0]
        reach = worker.faults.reach

        def break_first(phase: Phase, request_index: int | None = None) -> None:
            if phase is Phase.SAMPLE_END:
                worker.faults.reach = reach  # type: ignore[method-assign]
                worker.break_collectives(worker.epoch)
            reach(phase, request_index)

        worker.faults.reach = break_first  # type: ignore[method-assign]

    def close(self) -> None:
        self._threads.close()

    def _accept(self, request_id: str, prompt: Sequence[int], max_tokens: int, client_index: int) -> None:
        self._core.add(request_id, prompt, max_tokens, client_index=client_index)

    def _take_outputs(self) -> None:
        for output in self._core.take_outputs():
            self.answers.setdefault(output.request_id, []).append(output.token)
        self.ended |= self._core.requests.ended


rig = FakeRig


def waiting_rank() -> WaitingRank:
    """Return rank 0 of two fake ranks."""
    network = FakeNetwork(RANKS)
    worker = FakeWorker(0, 0, KVMemory(0, BLOCKS, BLOCK_SIZE), Reports(), communicators=network.rank(0))
    return WaitingRank(worker, lambda: worker.communicators.all_reduce(1.0, LONG_S))
