"""The recovery of one engine core: salvage what is computed, replace ranks, rewind requests, restore the workers."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.request import RequestStatus

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import RecoveryFailed
from holdfast.core.faults.faults import Phase
from holdfast.core.protocol.messages import RecoveryReport
from holdfast.core.protocol.rendezvous import Rendezvous
from holdfast.hosts.vllm.communicators import EngineCommunicators
from holdfast.hosts.vllm.engine import rewind as rewinding
from holdfast.hosts.vllm.engine.departed_requests import DepartedRequests
from holdfast.hosts.vllm.engine.lockstep_wave import agree_on_wave, forget_interrupts, in_lockstep
from holdfast.hosts.vllm.engine.pacing import PacedPrefill
from holdfast.hosts.vllm.engine.salvage import request_being_added, salvage
from holdfast.hosts.vllm.engine.worker_pool.replacement_processes import ReplacementResult
from holdfast.hosts.vllm.injection.points import Traps
from holdfast.hosts.vllm.protocol.request_history import NotRestorable, encode_histories, history_of
from holdfast.hosts.vllm.protocol.restore import TAIL_TOKENS, RequestPosition, RestoreCommand, RestoreReply

logger = logging.getLogger("holdfast")


@dataclass(frozen=True)
class _Restored:
    """What restoring the workers came to; `lost_requests` failed because no worker could restore them."""

    stale_replies: int
    lost_requests: int
    rebuild_s: float


class Recovery:
    """Of one engine core, on the busy loop's thread, which stands meanwhile.

    Args:
        await_processes: waits until the new processes of ranks have reported, for so many seconds at most.
    """

    def __init__(
        self,
        engine: Any,
        config: HoldfastConfig,
        communicators: EngineCommunicators,
        traps: Traps,
        paced: PacedPrefill,
        await_processes: Callable[[Mapping[int, int], float], None],
    ) -> None:
        self._engine = engine
        self._config = config
        self._communicators = communicators
        self._traps = traps
        self._paced = paced
        self._await_processes = await_processes
        self._newcomers: set[int] = set()  # ranks that know no request yet
        self._unprepared: set[int] = set()  # ranks whose replacement was begun and has not worked
        self._salvaged: Exception | None = None
        self._departures = self._watch_departures()

    def know_nothing(self) -> None:
        """This engine core takes the place of another one: no rank of it knows a request."""
        self._newcomers |= set(range(self._engine.model_executor.world_size))

    def recover(
        self, error: Exception, epoch: int, rendezvous: Rendezvous | None, replace: Sequence[int] = ()
    ) -> RecoveryReport:
        """Salvage, replace, rewind, restore. May be called again after it raised: every step is idempotent."""
        forget_interrupts(self._engine)
        started = time.monotonic()
        salvaged, failed = self._salvage_once(error)
        self._traps.passes(Phase.RECOVERY)
        if self._engine.batch_queue is not None:
            self._engine.batch_queue.clear()
        replaced = self._replace({*replace, *self._engine.model_executor.dead_ranks(), *self._unprepared})
        rewound = rewinding.rewind(
            self._engine.scheduler,
            self._departures.in_flight() if self._departures else (),
            keep_suspect_blocks=self._config.unsafe_keep_suspect_blocks,
            memory_lost=bool(self._newcomers),
        )
        if self._newcomers and in_lockstep(self._engine):
            self._paced.begin(self._engine.scheduler.requests.values())
        self._fail_unrestorable()
        rewound_at = time.monotonic()
        restored = self._restore_workers(epoch, rendezvous)
        if in_lockstep(self._engine):
            agree_on_wave(self._engine)
        self._traps.passes(Phase.RESUME)
        return RecoveryReport(
            requests=rewound.requests,
            kept_blocks=rewound.kept_blocks,
            evicted_blocks=rewound.evicted_blocks,
            tokens_to_recompute=rewound.tokens_to_recompute,
            stale_replies=restored.stale_replies,
            salvaged_outputs=salvaged,
            failed_requests=failed + restored.lost_requests,
            rewind_s=rewound_at - started,
            restore_s=time.monotonic() - rewound_at,
            rebuild_s=restored.rebuild_s,
            replaced_ranks=tuple(sorted(replaced.pids)),
            standbys_used=replaced.standbys_used,
            replace_s=replaced.elapsed_s,
        )

    def _replace(self, ranks: set[int]) -> ReplacementResult:
        """New processes for these ranks, which count once their sentinels have reported."""
        if not ranks:
            return ReplacementResult({}, 0, 0.0)
        config = self._config
        self._newcomers |= ranks
        self._unprepared = ranks  # should it fail: one without its KV cache must not be let in
        replaced: ReplacementResult = self._engine.model_executor.replace_workers(
            sorted(ranks), config.worker_start_timeout_s, config.drain_timeout_s
        )
        self._await_processes(replaced.pids, config.drain_timeout_s)
        self._unprepared = set()
        return replaced

    def _watch_departures(self) -> DepartedRequests | None:
        """Only where suspect blocks are told from good ones; other caches are dropped as a whole."""
        if rewinding.only_full_attention(self._engine.scheduler) is None:
            return None
        return DepartedRequests(self._engine.scheduler, steps_in_flight=self._engine.batch_queue_size + 1)

    def _salvage_once(self, error: Exception) -> tuple[int, int]:
        """Outputs sent, requests failed alone. Once per error: a recovery may be tried again."""
        if error is self._salvaged:
            return 0, 0
        sent = salvage(self._engine, error)
        failed = self._fail_unadmitted(request_being_added(error))
        self._salvaged = error
        return sent, failed

    def _fail_unadmitted(self, request: Any | None) -> int:
        if request is None or request.request_id in self._engine.scheduler.requests:
            return 0
        self._engine._send_error_outputs_to_client([request.request_id], request.client_index)
        return 1

    def _restore_workers(self, epoch: int, rendezvous: Rendezvous | None) -> _Restored:
        """The workers rebuild their collectives while this engine core rebuilds its own."""
        config = self._config
        order = RestoreCommand(
            nonce=uuid.uuid4().hex,
            epoch=epoch,
            requests=self._positions(),
            rendezvous=rendezvous,
            rebuild_timeout_s=self._rebuild_timeout_s(rendezvous),
            histories=self._encoded_histories(),
        )
        timeout_s = config.drain_timeout_s + self._rebuild_timeout_s(rendezvous)
        replies, stale = self._engine.model_executor.restore_workers(
            order, timeout_s, lambda: self._rebuild_own(rendezvous)
        )
        if errors := [r.error for r in replies if r.error]:
            raise RecoveryFailed(f"restoring a worker failed: {errors[0]}")
        self._salvaged = None
        self._newcomers.clear()
        if self._departures is not None:
            self._departures.clear()
        return _Restored(stale, self._fail_unknown(replies), max(r.rebuild_s for r in replies))

    def _rebuild_own(self, rendezvous: Rendezvous | None) -> None:
        if rendezvous is not None:
            self._communicators.rebuild(rendezvous, self._rebuild_timeout_s(rendezvous))
        if self._communicators.any_placeholder:
            raise RecoveryFailed("this engine core has met none of its peers: it would run on alone")

    def _rebuild_timeout_s(self, rendezvous: Rendezvous | None) -> float:
        return 0.0 if rendezvous is None else self._config.rebuild_timeout_s + rendezvous.extra_wait_s

    def _positions(self) -> tuple[RequestPosition, ...]:
        """Requests that the workers are to keep. V2 is sent each of them whole."""
        scheduler = self._engine.scheduler
        if scheduler.use_v2_model_runner:
            return ()
        return tuple(
            RequestPosition(r.request_id, r.num_output_tokens, tuple(r.output_token_ids[-TAIL_TOKENS:]))
            for r in self._begun()
        )

    def _encoded_histories(self) -> bytes:
        """For ranks that know no request; V2 is sent each of them whole anyway."""
        if not self._newcomers or self._engine.scheduler.use_v2_model_runner:
            return b""
        return encode_histories(history_of(r) for r in self._begun())

    def _begun(self) -> list[Any]:
        """Requests with output, which a rank must know before they are scheduled again."""
        requests = self._engine.scheduler.requests.values()
        return [r for r in requests if r.num_output_tokens and not r.is_finished()]

    def _fail_unrestorable(self) -> None:
        """What a newcomer cannot be told ends alone, with an error; the others go on."""
        for request in self._begun() if self._newcomers else ():
            try:
                history_of(request)
            except NotRestorable as error:
                logger.error("engine %d: %s", self._engine.engine_index, error)
                self._end_alone([request.request_id])

    def _end_alone(self, request_ids: Iterable[str]) -> None:
        ended = self._engine.scheduler.finish_requests(request_ids, RequestStatus.FINISHED_ERROR)
        for request in ended:
            self._engine._send_error_outputs_to_client([request.request_id], request.client_index)

    def _fail_unknown(self, replies: Sequence[RestoreReply]) -> int:
        """A request that a worker never saw cannot go on; it ends alone, with an error."""
        unknown = {request_id for reply in replies for request_id in reply.unknown}
        if unknown:
            logger.error(
                "engine %d (pid %d): cannot restore %d request(s)", self._engine.engine_index, os.getpid(), len(unknown)
            )
            self._end_alone(unknown)
        return len(unknown)
