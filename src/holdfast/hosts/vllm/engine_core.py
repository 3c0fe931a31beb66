"""An engine core under Holdfast: its sentinel, its busy loop, its recovery."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.request import RequestStatus

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import RecoveryFailed
from holdfast.core.faults import Phase
from holdfast.core.injection import InjectionSpec
from holdfast.core.messages import RecoveryReport
from holdfast.core.rendezvous import Rendezvous
from holdfast.hosts.vllm import rewind as rewinding
from holdfast.hosts.vllm.clients import answer_greetings, drop_requests
from holdfast.hosts.vllm.communicators import EngineCommunicators, attach_communicator_hooks
from holdfast.hosts.vllm.coordinator import introduce
from holdfast.hosts.vllm.departures import Departures
from holdfast.hosts.vllm.device_health import device_health
from holdfast.hosts.vllm.engine_progress import record_progress
from holdfast.hosts.vllm.holding_out import VllmRequests
from holdfast.hosts.vllm.injection import Traps, arm_engine
from holdfast.hosts.vllm.leaving import leave_within
from holdfast.hosts.vllm.pacing import PacedPrefill
from holdfast.hosts.vllm.register import BUSY_LOOP, ENGINE_INIT, LOCKSTEP_BUSY_LOOP, attach, attached
from holdfast.hosts.vllm.restore import TAIL_TOKENS, RequestHistory, RestoreOrder, RestoreReply
from holdfast.hosts.vllm.resuming import attach_resuming_hooks, pace
from holdfast.hosts.vllm.salvage import request_being_added, salvage
from holdfast.hosts.vllm.settings import inherited_settings, joins_epoch
from holdfast.hosts.vllm.standing_still import agree_on_wave, begin_later_than_any_wave, forget_interrupts
from holdfast.hosts.vllm.step_rules import StepRules
from holdfast.hosts.vllm.whole_requests import NotRestorable, encode_whole, whole_request
from holdfast.hosts.vllm.worker import TOLD_TO_STOP
from holdfast.hosts.vllm.workers.meeting import attach_meeting_place
from holdfast.hosts.vllm.workers.replacing import Replaced
from holdfast.hosts.vllm.workers.segments import attach_notes_of_segments
from holdfast.hosts.vllm.workers.standby import PoolState
from holdfast.sentinel import EngineCoreSentinel
from holdfast.sentinel.addresses import client_address, engine_address
from holdfast.wire import ZmqStation

logger = logging.getLogger("holdfast")

ATTACH_TIMEOUT_S = 30.0


def attach_engine_hooks() -> None:
    attach_communicator_hooks()
    attach(ENGINE_INIT, _protect_engine)
    attach(BUSY_LOOP, _run_protected)
    attach(LOCKSTEP_BUSY_LOOP, _run_protected)
    attach_resuming_hooks()
    attach_meeting_place()
    attach_notes_of_segments()


def _protect_engine(original: Callable[..., None], engine: Any, *args: Any, **kwargs: Any) -> None:
    config = inherited_settings()
    if config is None or not config.enable_fault_tolerance:
        original(engine, *args, **kwargs)
        return
    engine_id = kwargs.get("engine_index", 0)
    folder = config.runtime_dir
    addresses = client_address(folder), engine_address(folder, engine_id)
    sentinel = EngineCoreSentinel(engine_id, config, ZmqStation(), *addresses, joins_epoch=joins_epoch())
    answer_greetings(engine)
    original(engine, *args, **kwargs)
    if engine.enable_fault_tolerance:  # the host has put its own sentinel there
        answer_greetings(engine)
    sentinel.start()
    host = VllmEngine(engine, config, sentinel)
    workers = sentinel.await_workers(engine.model_executor.world_size, ATTACH_TIMEOUT_S)
    engine.holdfast = sentinel
    sentinel.announce(host, attached(), workers)
    engine.model_executor.standbys.start()


def _run_protected(original: Callable[..., None], engine: Any) -> None:
    sentinel = getattr(engine, "holdfast", None)
    if sentinel is None:
        original(engine)
        return
    try:
        sentinel.run(lambda: original(engine), engine.is_running)
    except Exception:
        leave_within()
        raise
    finally:
        sentinel.close()


@dataclass(frozen=True)
class _Restored:
    """What restoring the workers came to; `lost_requests` failed because no worker could restore them."""

    stale_replies: int
    lost_requests: int
    rebuild_s: float


class VllmEngine:
    """Implements `EngineHost` on the host's engine core."""

    def __init__(self, engine: Any, config: HoldfastConfig, sentinel: EngineCoreSentinel) -> None:
        self._engine = engine
        self._config = config
        self._sentinel = sentinel
        self._newcomers: set[int] = set()  # ranks that know no request yet
        if (joins := joins_epoch()) is not None:
            self._newcomers |= set(range(engine.model_executor.world_size))
            begin_later_than_any_wave(engine, joins)
        self._unprepared: set[int] = set()  # ranks whose replacement was begun and has not worked
        engine.model_executor.on_rank_lost = sentinel.rank_lost
        engine.model_executor.on_standbys = self._report_standbys
        self._communicators = EngineCommunicators(engine)
        self._traps = Traps()
        self._salvaged: Exception | None = None
        self._departures = self._watch_departures()
        if config.enable_fault_injection:
            arm_engine(self._traps, engine)
        record_progress(engine, config)
        rules = StepRules(engine.scheduler)
        self.requests = VllmRequests(engine, rules)
        self._paced = pace(engine, PacedPrefill(engine, rules, config.recovery_prefill_tokens))
        self.devices = device_health() if config.stall_detection else None

    @property
    def engine_id(self) -> int:
        index: int = self._engine.engine_index
        return index

    @property
    def in_lockstep(self) -> bool:
        return getattr(self._engine, "dp_group", None) is not None

    @property
    def compiles_in_steps(self) -> bool:
        """Kernels of GPUs are compiled when they are needed; on a CPU only with the host's compiler on."""
        from vllm.platforms import current_platform

        config = self._engine.vllm_config
        return not (current_platform.is_cpu() and config.model_config.enforce_eager)

    def interrupt(self) -> None:
        self._engine.input_queue.put_nowait((EngineCoreRequestType.EXECUTOR_FAILED, b""))

    def is_interrupt(self, error: Exception) -> bool:
        interrupted = isinstance(error, RuntimeError) and str(error) == "Executor failed."
        return not self.lost_a_worker() and (interrupted or TOLD_TO_STOP in str(error))

    def break_collectives(self) -> int:
        return self._communicators.break_all()

    def unrebuildable(self) -> tuple[str, ...]:
        return self._communicators.unrebuildable()

    def unfinished_requests(self) -> int:
        return len(self._engine.scheduler.requests)

    def is_workers_reply(self, error: Exception) -> bool:
        return isinstance(error, RuntimeError) and str(error).startswith("Worker failed with error")

    def lost_a_worker(self) -> bool:
        return bool(self._engine.model_executor.is_failed)

    def kill_rank(self, rank: int) -> None:
        self._engine.model_executor.kill_rank(rank)

    def arm(self, spec: InjectionSpec) -> None:
        self._traps.arm(spec)

    def drop_requests_of(self, client_index: int) -> None:
        drop_requests(self._engine, client_index)

    def introduce_to_coordinator(self) -> None:
        introduce(self._engine)

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
        if self._newcomers and self.in_lockstep:
            self._paced.begin(self._engine.scheduler.requests.values())
        self._fail_unrestorable()
        rewound_at = time.monotonic()
        restored = self._restore_workers(epoch, rendezvous)
        if self.in_lockstep:
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

    def _replace(self, ranks: set[int]) -> Replaced:
        """New processes for these ranks, which count once their sentinels have reported."""
        if not ranks:
            return Replaced({}, 0, 0.0)
        config = self._config
        self._newcomers |= ranks
        self._unprepared = ranks  # should it fail: one without its KV cache must not be let in
        replaced: Replaced = self._engine.model_executor.replace_workers(
            sorted(ranks), config.worker_start_timeout_s, config.drain_timeout_s
        )
        self._sentinel.await_processes(replaced.pids, config.drain_timeout_s)
        self._unprepared = set()
        return replaced

    def _report_standbys(self, state: PoolState) -> None:
        self._sentinel.report_standbys(state.wanted, state.ready, state.memory_bytes)

    def _watch_departures(self) -> Departures | None:
        """Only where suspect blocks are told from good ones; other caches are dropped as a whole."""
        if rewinding.only_full_attention(self._engine.scheduler) is None:
            return None
        return Departures(self._engine.scheduler, steps_in_flight=self._engine.batch_queue_size + 1)

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
        order = RestoreOrder(
            nonce=uuid.uuid4().hex,
            epoch=epoch,
            requests=self._histories(),
            rendezvous=rendezvous,
            rebuild_timeout_s=self._rebuild_timeout_s(rendezvous),
            whole=self._whole_histories(),
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
        return 0.0 if rendezvous is None else self._config.rebuild_timeout_s + rendezvous.patience_s

    def _histories(self) -> tuple[RequestHistory, ...]:
        """Requests that the workers are to keep. V2 is sent each of them whole."""
        scheduler = self._engine.scheduler
        if scheduler.use_v2_model_runner:
            return ()
        return tuple(
            RequestHistory(r.request_id, r.num_output_tokens, tuple(r.output_token_ids[-TAIL_TOKENS:]))
            for r in self._begun()
        )

    def _whole_histories(self) -> bytes:
        """For ranks that know no request; V2 is sent each of them whole anyway."""
        if not self._newcomers or self._engine.scheduler.use_v2_model_runner:
            return b""
        return encode_whole(whole_request(r) for r in self._begun())

    def _begun(self) -> list[Any]:
        """Requests with output, which a rank must know before they are scheduled again."""
        requests = self._engine.scheduler.requests.values()
        return [r for r in requests if r.num_output_tokens and not r.is_finished()]

    def _fail_unrestorable(self) -> None:
        """What a newcomer cannot be told ends alone, with an error; the others go on."""
        for request in self._begun() if self._newcomers else ():
            try:
                whole_request(request)
            except NotRestorable as error:
                logger.error("engine %d: %s", self.engine_id, error)
                self._end_alone([request.request_id])

    def _end_alone(self, request_ids: Iterable[str]) -> None:
        ended = self._engine.scheduler.finish_requests(request_ids, RequestStatus.FINISHED_ERROR)
        for request in ended:
            self._engine._send_error_outputs_to_client([request.request_id], request.client_index)

    def _fail_unknown(self, replies: Sequence[RestoreReply]) -> int:
        """A request that a worker never saw cannot go on; it ends alone, with an error."""
        unknown = {request_id for reply in replies for request_id in reply.unknown}
        if unknown:
            logger.error("engine %d (pid %d): cannot restore %d request(s)", self.engine_id, os.getpid(), len(unknown))
            self._end_alone(unknown)
        return len(unknown)
