"""The recovery of an engine core: salvage outputs, replace ranks, rewind requests, restore the workers.

In lockstep the engine cores agree on the wave before they resume. Runs on the busy loop's thread.
"""

from __future__ import annotations

import logging
import secrets
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.request import RequestStatus

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import RecoveryFailed
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.redaction import PublicText
from holdfast.core.protocol.messages import RecoveryReport, Rendezvous
from holdfast.core.stalls.standing import NothingScheduled
from holdfast.hosts.vllm.communicators import EngineCommunicators
from holdfast.hosts.vllm.contract.name_touchpoints import KV_HANDSHAKE
from holdfast.hosts.vllm.engine.lockstep_wave import EXPERTS_DIFFER, agree_on_wave, in_lockstep
from holdfast.hosts.vllm.engine.pacing import PacedPrefill
from holdfast.hosts.vllm.engine.resumed_requests import tell_workers
from holdfast.hosts.vllm.engine.rewind import FreedInFlight, encodes_again, only_full_attention, rewind
from holdfast.hosts.vllm.engine.runtime_state import RuntimeState
from holdfast.hosts.vllm.engine.salvage import Input, drop_unknown, input_under_way, salvage
from holdfast.hosts.vllm.engine.streaming_sessions import was_added
from holdfast.hosts.vllm.engine.worker_pool.replacement_processes import ReplacementResult
from holdfast.hosts.vllm.injection import ArmedFaults
from holdfast.hosts.vllm.process import priority
from holdfast.hosts.vllm.protocol import drawn_before
from holdfast.hosts.vllm.worker.equal_state import SEED_BITS
from holdfast.hosts.vllm.worker.request_history import NotRestorable, encode_histories, history_of
from holdfast.hosts.vllm.worker.restore import TAIL_TOKENS, RequestPosition, RestoreCommand, RestoreReply

logger = logging.getLogger("holdfast")


_NOT_IN_STEP = PublicText("the ranks have taken part in different numbers of collectives: their groups are made anew")


@dataclass(frozen=True)
class _RestoreResult:
    """The outcome of restoring the workers. `expert_placement` is of the ranks' replies."""

    stale_replies: int
    rebuild_s: float
    expert_placement: int


class Recovery:
    """The recovery of an engine core. Busy loop's thread, which is paused meanwhile.

    Args:
        state: set by callers at run time; repeated in every new worker.
        await_processes: waits until the new processes of ranks have reported; arguments: pids by rank, seconds.

    Attributes:
        take_back: lets ranks in again that were lost with their node, and returns those that answered.
    """

    take_back: Callable[[Mapping[int, int], float], set[int]] = staticmethod(lambda pids, timeout_s: set())

    def __init__(
        self,
        engine: Any,
        config: HoldfastConfig,
        communicators: EngineCommunicators,
        faults: ArmedFaults,
        paced: PacedPrefill,
        await_processes: Callable[[Mapping[int, int], float], None],
        state: RuntimeState,
    ) -> None:
        self._engine = engine
        self.config = config  # in force; replaced as a whole when an operator changes settings
        self._communicators = communicators
        self._faults = faults
        self._paced = paced
        self._await_processes = await_processes
        self._state = state
        self._ranks_without_requests: set[int] = set()  # replaced and not yet restored
        self._is_new = False  # engine core and ranks began together: no memory of theirs is lost
        self._unprepared_ranks: set[int] = set()  # ranks whose replacement has begun and has not worked
        self._salvaged: Exception | None = None
        self._taken_again: Any = None  # content of the input that raised last, and was put back
        self._freed = self._track_freed_requests()

    def mark_all_ranks_replaced(self) -> None:
        """Expect every rank to know no request: the engine core is a replacement itself."""
        self._is_new = True
        self._ranks_without_requests |= set(range(self._engine.model_executor.world_size))

    def recover(
        self, error: Exception, epoch: int, rendezvous: Rendezvous | None, replace: Sequence[int] = ()
    ) -> RecoveryReport:
        """Salvage, replace, rewind, restore. May be called again after an error: every step is idempotent."""
        priority.hold()
        try:
            return self._recover(error, epoch, rendezvous, replace)
        finally:
            priority.release()

    def _recover(
        self, error: Exception, epoch: int, rendezvous: Rendezvous | None, replace: Sequence[int]
    ) -> RecoveryReport:
        engine = self._engine
        drop_interrupts(engine)
        started = time.monotonic()
        salvaged, failed = self._salvage_once(error)
        self._faults.reach(Phase.RECOVERY)
        if engine.batch_queue is not None:
            engine.batch_queue.clear()
        lost = {*replace, *engine.model_executor.dead_ranks(), *self._unprepared_ranks}
        replaced = self._replace(lost - self._returned(lost))
        rewound = rewind(
            engine.scheduler,
            self._freed.requests() if self._freed else (),
            keep_suspect_blocks=self.config.unsafe_keep_suspect_blocks,
            memory_lost=bool(self._ranks_without_requests) and not self._is_new,
            give_kv_up=isinstance(error, NothingScheduled),
        )
        if self._ranks_without_requests and in_lockstep(engine):
            self._paced.begin(engine.scheduler.requests.values())
        self._fail_unrestorable()
        rewound_at = time.monotonic()
        restored = self._restore_workers(epoch, rendezvous)
        if in_lockstep(engine):
            agree_on_wave(engine, restored.expert_placement)
        self._faults.reach(Phase.RESUME)
        return RecoveryReport(
            requests=rewound.requests,
            kept_blocks=rewound.kept_blocks,
            evicted_blocks=rewound.evicted_blocks,
            tokens_to_recompute=rewound.tokens_to_recompute,
            stale_replies=restored.stale_replies,
            salvaged_outputs=salvaged,
            failed_requests=failed,
            rewind_s=rewound_at - started,
            restore_s=time.monotonic() - rewound_at,
            rebuild_s=restored.rebuild_s,
            replaced_ranks=tuple(sorted(replaced.pids)),
            standbys_used=replaced.standbys_used,
            replace_s=replaced.elapsed_s,
        )

    # ---- salvage

    def _salvage_once(self, error: Exception) -> tuple[int, int]:
        """Return the outputs sent and the requests failed. Once per error: a recovery may be repeated."""
        if error is self._salvaged:
            return 0, 0
        sent = salvage(self._engine, error)
        failed = self._take_input_again(input_under_way(error))
        self._salvaged = error
        return sent, failed

    def _take_input_again(self, taken: Input | None) -> int:
        """Put the input that raised back, once: an admission or an abort. Return the requests failed instead."""
        if taken is None or not self._is_unfinished(*taken):
            return 0
        drop_unknown(self._engine.scheduler)
        kind, content = taken
        is_second = content is self._taken_again
        self._taken_again = None if is_second else content
        if not is_second:
            put_first(self._engine, taken)
        elif kind is EngineCoreRequestType.ADD:
            self._fail_requests([content[0].request_id])  # a session, whose input this is
            self._engine._send_error_outputs_to_client([content[0].request_id], content[0].client_index)
            return 1
        return 0

    def _is_unfinished(self, kind: EngineCoreRequestType, content: Any) -> bool:
        """Tell whether an input that raised has to be taken again. An abort may be repeated at any time."""
        if kind is EngineCoreRequestType.ADD:
            return not was_added(content[0])
        return kind is EngineCoreRequestType.ABORT

    def _track_freed_requests(self) -> FreedInFlight | None:
        """Track freed requests where suspect blocks are told from good blocks; further caches are dropped anyway."""
        if only_full_attention(self._engine.scheduler) is None:
            return None
        return FreedInFlight(self._engine.scheduler, steps_in_flight=self._engine.batch_queue_size + 1)

    # ---- replace

    def _returned(self, lost: set[int]) -> set[int]:
        """Wait for lost nodes; return the ranks that keep their process: it was lost with its node, and answers."""
        executor = self._engine.model_executor
        there = executor.await_nodes(lost, self.config.node_return_timeout_s)
        back = self.take_back(there, self.config.acknowledge_timeout_s) - self._unprepared_ranks if there else set()
        if back:
            executor.take_back(back)
            logger.warning("engine %d: rank(s) %s are back with their node", self._engine.engine_index, sorted(back))
        return back

    def _replace(self, ranks: set[int]) -> ReplacementResult:
        """Give the ranks new processes and wait until the sentinels of these processes have reported."""
        if not ranks:
            return ReplacementResult({}, 0, 0.0)
        config = self.config
        self._is_new = False
        self._ranks_without_requests |= ranks
        self._unprepared_ranks = ranks  # after a failure: a rank without its KV cache must not be let in
        replaced: ReplacementResult = self._engine.model_executor.replace_workers(
            sorted(ranks), config.worker_start_timeout_s, config.drain_timeout_s
        )
        self._await_processes(replaced.pids, config.drain_timeout_s)
        if calls := self._state.calls_of_workers():
            self._engine.model_executor.repeat_calls(sorted(ranks), calls, config.worker_start_timeout_s)
        self._unprepared_ranks = set()
        return replaced

    # ---- restore

    def _restore_workers(self, epoch: int, rendezvous: Rendezvous | None) -> _RestoreResult:
        """Restore the workers, and rebuild the engine core's own collectives at the same time."""
        rebuild_timeout_s = 0.0 if rendezvous is None else self.config.rebuild_timeout_s + rendezvous.extra_wait_s
        command = RestoreCommand(
            nonce=uuid.uuid4().hex,
            epoch=epoch,
            requests=self._positions(),
            seed=secrets.randbits(SEED_BITS),
            rendezvous=rendezvous,
            rebuild_timeout_s=rebuild_timeout_s,
            histories=self._encoded_histories(),
        )
        replies, stale = self._engine.model_executor.restore_workers(
            command,
            self.config.drain_timeout_s + rebuild_timeout_s,
            lambda: self._rebuild_own_collectives(rendezvous, rebuild_timeout_s),
        )
        if errors := [r.error for r in replies if r.error]:
            raise RecoveryFailed(PublicText(f"restoring a worker failed: {errors[0]}"))
        if len(placements := {r.expert_placement for r in replies}) > 1:
            raise RecoveryFailed(EXPERTS_DIFFER)
        parallel = self._engine.vllm_config.parallel_config
        if rendezvous is None and parallel.pipeline_parallel_size <= 2 and len({r.collectives for r in replies}) > 1:
            raise RecoveryFailed(_NOT_IN_STEP)  # the next collective of one rank would meet another one of its peer
        if self._ranks_without_requests:
            self._introduce_connectors()
        self._salvaged = None
        self._is_new = False
        self._ranks_without_requests.clear()
        if self._freed is not None:
            self._freed.clear()
        rebuild_s = max(r.rebuild_s for r in replies)
        self._send_unknown(replies)
        return _RestoreResult(stale, rebuild_s, placements.pop())

    def _introduce_connectors(self) -> None:
        """Tell the scheduler's KV connector how the new workers are reached, as the host does at its start."""
        connector = self._engine.scheduler.get_kv_connector()
        if connector is None:
            return
        of_ranks = self._engine.model_executor.collective_rpc(KV_HANDSHAKE, timeout=self.config.drain_timeout_s)
        content = {place: handshake for of_rank in of_ranks if of_rank for place, handshake in of_rank.items()}
        if content:
            connector.set_xfer_handshake_metadata_pp_aware(content)

    def _rebuild_own_collectives(self, rendezvous: Rendezvous | None, timeout_s: float) -> None:
        if rendezvous is not None:
            self._communicators.rebuild(rendezvous, timeout_s)
        if in_lockstep(self._engine) and self._communicators.any_placeholder:
            raise RecoveryFailed(
                "the data-parallel group of this engine core is a placeholder: it would run without its peers"
            )

    def _positions(self) -> tuple[RequestPosition, ...]:
        """Return the requests for the workers to keep; none for runner V2, which is sent every request in full."""
        scheduler = self._engine.scheduler
        if scheduler.use_v2_model_runner:
            return ()
        return tuple(_position_of(r) for r in self._requests_with_output())

    def _encoded_histories(self) -> bytes:
        """Encode the histories for replaced ranks; empty for runner V2, which is sent every request in full."""
        if not self._ranks_without_requests or self._engine.scheduler.use_v2_model_runner:
            return b""
        return encode_histories(history_of(r) for r in self._requests_with_output())

    def _requests_with_output(self) -> list[Any]:
        """Return the requests that a rank must know before the next step."""
        requests = self._engine.scheduler.requests.values()
        return [r for r in requests if (r.num_output_tokens or drawn_before(r)) and not r.is_finished()]

    # ---- requests that cannot resume

    def _fail_unrestorable(self) -> None:
        """Fail each request with a history that cannot be sent to a replaced rank."""
        for request in self._requests_with_output() if self._ranks_without_requests else ():
            try:
                history_of(request)
            except NotRestorable as error:
                logger.error("engine %d: %s", self._engine.engine_index, error)
                self._fail_requests([request.request_id])

    def _send_unknown(self, replies: Sequence[RestoreReply]) -> None:
        """Send the workers each request that a worker cannot resume from what the worker has of it."""
        unknown = {request_id for reply in replies for request_id in reply.unknown}
        if requests := [r for r in self._requests_with_output() if r.request_id in unknown]:
            logger.info(
                "engine %d: %d request(s) are sent to the workers again", self._engine.engine_index, len(requests)
            )
            tell_workers(self._engine, requests)

    def _fail_requests(self, request_ids: Iterable[str]) -> None:
        """End requests with an error to the clients."""
        ended = self._engine.scheduler.finish_requests(request_ids, RequestStatus.FINISHED_ERROR)
        for request in ended:
            self._engine._send_error_outputs_to_client([request.request_id], request.client_index)


def _position_of(request: Any) -> RequestPosition:
    tail = tuple(request.output_token_ids[-TAIL_TOKENS:])
    return RequestPosition(
        request.request_id, request.num_output_tokens, tail, drawn_before(request), encodes_again(request)
    )


def drop_interrupts(engine: Any) -> None:
    """Remove pending interrupts from the input queue: each would end the busy loop once more, without a fault."""
    waiting = engine.input_queue
    with waiting.mutex:
        kept = [item for item in waiting.queue if item[0] is not EngineCoreRequestType.EXECUTOR_FAILED]
        waiting.queue.clear()
        waiting.queue.extend(kept)


def put_first(engine: Any, taken: Input) -> None:
    """Let an input be the next that the busy loop takes."""
    waiting = engine.input_queue
    with waiting.mutex:
        waiting.queue.appendleft(taken)
        waiting.not_empty.notify()
