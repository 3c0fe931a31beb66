"""The pretend engine core: the step of a busy loop with phases to fail in, and the recovery.

Implements `EngineHost`. A step raises the error of its phase, as the host's step does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.ports import FaultReporter
from holdfast.core.protocol.messages import RecoveryReport, Rendezvous
from holdfast.core.stalls.standing import NothingScheduled, Planning
from holdfast.hosts.fake.blocks import BlockPool
from holdfast.hosts.fake.communicators import FakeCommunicators
from holdfast.hosts.fake.model import KVMemory
from holdfast.hosts.fake.ranks import COLLECTIVE_S, RankThreads
from holdfast.hosts.fake.requests import FakeRequests
from holdfast.hosts.fake.scheduler import FakeRequest, FakeScheduler
from holdfast.hosts.fake.worker import REBUILD_S, ArmedFaults, FakeWorker, LockstepGroup, Part, Reply, WorkerFailed


@dataclass(frozen=True)
class EngineOptions:
    """The size and the mode of a pretend engine core.

    Attributes:
        steps_in_flight: 1, or 2 to schedule ahead of the outputs.
        rank_threads: run every rank on a thread, with blocking collectives between ranks.
        unsafe_keep_suspect_blocks: leave suspect KV in the prefix cache; answers go wrong.
        unsafe_skip_fence: let failed ranks take steps; answers go wrong.
    """

    ranks: int = 1
    blocks: int = 32
    block_size: int = 4
    step_tokens: int = 16
    max_running: int = 8
    steps_in_flight: int = 1
    rank_threads: bool = False
    unsafe_keep_suspect_blocks: bool = False
    unsafe_skip_fence: bool = False


@dataclass(frozen=True)
class OutputToken:
    """A token sent to the front end."""

    request_id: str
    token: int


class Interrupted(Exception):
    """Error of a busy loop that was told to pause."""


class FakeEngineCore:
    """Implementation of `EngineHost` in memory.

    Args:
        data_parallel: the communicators to the other engine cores of the lockstep group; None: no lockstep.
    """

    def __init__(
        self,
        engine_id: int,
        options: EngineOptions,
        reporter: FaultReporter,
        data_parallel: FakeCommunicators | None = None,
    ) -> None:
        self._engine_id = engine_id
        self._options = options
        self._scheduler = FakeScheduler(
            BlockPool(options.blocks, options.block_size),
            step_tokens=options.step_tokens,
            max_running=options.max_running,
        )
        self.workers = tuple(
            FakeWorker(engine_id, rank, KVMemory(rank, options.blocks, options.block_size), reporter)
            for rank in range(options.ranks)
        )
        for worker in self.workers:
            worker.skips_fence = options.unsafe_skip_fence
        self.ranks = RankThreads(self.workers) if options.rank_threads else LockstepGroup(self.workers)
        self.requests = FakeRequests(self._scheduler)
        self.devices = None
        self.compiles_in_steps = False
        self.pipeline_stages = 1
        self._data_parallel = data_parallel
        self._faults = ArmedFaults()
        self._interrupted = self._step_is_broken = False
        self.step_ended_well = False
        self._clients_gone: deque[int] = deque()  # their requests are dropped at the next step boundary
        self._steps: deque[tuple[list[Part], Reply]] = deque()
        self._processed: list[OutputToken] = []
        self._sent: list[OutputToken] = []

    # ---- for the front end

    def add(
        self,
        request_id: str,
        prompt: Sequence[int],
        max_tokens: int,
        history: Sequence[int] = (),
        client_index: int = 0,
    ) -> None:
        """Accept a request, with `history` as output so far.

        Raises:
            ValueError: the request can never fit.
        """
        tokens = len(prompt) + max_tokens
        if not prompt or max_tokens < 1 or tokens > (self._options.blocks - 1) * self._options.block_size:
            raise ValueError(f"{len(prompt)} + {max_tokens} tokens do not fit")
        self._scheduler.add(FakeRequest(request_id, tuple(prompt), max_tokens, list(history), client_index))

    def abort(self, request_id: str) -> None:
        """End a request without an output; does nothing for an unknown request."""
        if request_id in self._scheduler.requests:
            self._scheduler.finish(request_id)

    def take_outputs(self) -> list[OutputToken]:
        """Return the tokens sent to the front end since the last call."""
        sent, self._sent = self._sent, []
        return sent

    # ---- the busy loop

    @property
    def is_told_to_stop(self) -> bool:
        """Whether the next step will not begin."""
        return self._interrupted

    def step(self) -> bool:
        """Run one turn of the busy loop; return whether an engine core of the lockstep group has work.

        Raises the error of a failed step.
        """
        if self._interrupted:
            raise Interrupted(f"engine {self._engine_id} was told to pause")
        self._drop_requests()
        return self._agree(self._turn())

    def _drop_requests(self) -> None:
        """End the requests of lost API servers."""
        while self._clients_gone:
            client_index = self._clients_gone.popleft()
            for request in [r for r in self._scheduler.requests.values() if r.client_index == client_index]:
                self._scheduler.finish(request.request_id)

    def _turn(self) -> bool:
        self._faults.reach(Phase.SCHEDULE_START)
        if len(self._steps) < self._options.steps_in_flight and self._submit():
            return True
        if not self._steps:
            return False
        parts, reply = self._steps.popleft()
        sampled = reply()
        if self._step_is_broken:
            raise Interrupted(f"engine {self._engine_id}: collectives were broken during the step")
        self._process(parts, sampled)
        return True

    def _agree(self, busy: bool) -> bool:
        """Return whether any engine core of the lockstep group has work."""
        if self._data_parallel is None:
            return busy
        self._faults.reach(Phase.DP_SYNC)
        return self._data_parallel.all_reduce(float(busy), COLLECTIVE_S) > 0

    def _submit(self) -> bool:
        """Schedule a step and hand the step to the workers; return whether another step may be in flight."""
        parts = self._scheduler.schedule()
        if not parts:
            return False
        self._faults.reach(Phase.SCHEDULE_END)
        self._steps.append((parts, self.ranks.execute(parts)))
        return len(self._steps) < self._options.steps_in_flight

    def _process(self, parts: Sequence[Part], sampled: dict[str, int]) -> None:
        self._faults.reach(Phase.OUTPUT_START)
        for index, part in enumerate(parts):
            self._faults.reach(Phase.OUTPUT_REQUEST, index)
            token = sampled.get(part.request_id)
            if self._scheduler.processed(part, token) and token is not None:
                self._processed.append(OutputToken(part.request_id, token))
        self._scheduler.step_processed()
        self._faults.reach(Phase.OUTPUT_END)
        self.step_ended_well = True
        self._send()

    def _send(self) -> int:
        sent = len(self._processed)
        self._sent += self._processed
        self._processed = []
        return sent

    # ---- EngineHost

    @property
    def engine_id(self) -> int:
        return self._engine_id

    @property
    def in_lockstep(self) -> bool:
        return self._data_parallel is not None

    def interrupt(self) -> None:
        self._interrupted = True

    def break_collectives(self) -> int:
        self._step_is_broken = True
        return 0 if self._data_parallel is None else self._data_parallel.break_all()

    def unrebuildable(self) -> tuple[str, ...]:
        return () if self._data_parallel is None else self._data_parallel.unrebuildable()

    def is_interrupt(self, error: Exception) -> bool:
        return isinstance(error, Interrupted)

    def unfinished_requests(self) -> int:
        return len(self._scheduler.requests)

    def planning(self) -> Planning:
        return Planning(self._scheduler.turns, self._scheduler.processed_steps)

    def ready_requests(self) -> int:
        return self._scheduler.ready()

    def is_workers_reply(self, error: Exception) -> bool:
        return isinstance(error, WorkerFailed)

    def lost_ranks(self) -> tuple[int, ...]:
        return tuple(rank for rank, worker in enumerate(self.workers) if worker.gone)

    def arm(self, spec: InjectionSpec) -> None:
        self._faults.arm(spec)

    def configure(self, config: HoldfastConfig) -> None:
        """Ignore the settings: a recovery here waits for nothing."""

    def drop_requests_of(self, client_index: int) -> None:
        self._clients_gone.append(client_index)

    def introduce_to_coordinator(self) -> None:
        """Do nothing: a pretend engine core has no coordinator."""

    def kill_rank(self, rank: int) -> None:
        self.workers[rank].die()

    def recover(
        self, error: Exception, epoch: int, rendezvous: Rendezvous | None, replace: Sequence[int] = ()
    ) -> RecoveryReport:
        """Drop stale replies, rewind, restore the workers and let the ranks take steps in `epoch`."""
        self._interrupted = self._step_is_broken = self.step_ended_well = False
        stale = len(self._steps)
        self._steps.clear()
        self._faults.reach(Phase.RECOVERY)
        salvaged = self._send()
        replaced = self._replace(replace)
        report = self._scheduler.rewind(
            keep_suspect_blocks=self._options.unsafe_keep_suspect_blocks,
            memory_lost=bool(replaced),
            give_kv_up=isinstance(error, NothingScheduled),
        )
        self.ranks.restore(epoch, {i: r.tokens for i, r in self._scheduler.requests.items()}, rendezvous)
        if self._data_parallel is not None and rendezvous is not None:
            self._data_parallel.rebuild(rendezvous, REBUILD_S)
        self._faults.reach(Phase.RESUME)
        return msgspec.structs.replace(
            report, stale_replies=stale, salvaged_outputs=salvaged, replaced_ranks=tuple(replaced)
        )

    def _replace(self, ranks: Sequence[int]) -> list[int]:
        """Replace the named ranks and the dead ranks by workers with empty memory; return the ranks replaced."""
        replaced = [w.rank for w in self.workers if w.gone or w.rank in ranks]
        for rank in replaced:
            memory = KVMemory(rank, self._options.blocks, self._options.block_size)
            self.workers[rank].begin_anew(memory)
        return replaced
