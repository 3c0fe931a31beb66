"""The restore of a rank after a fault: command and reply, and the state of the model runner.

Runner V1 keeps the tokens and the
generator of each request in the worker: a known request is cut back to the tokens that were delivered, and every
request that does not resume is removed. Runner V2 is sent every resumed request in full and removes all requests.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from holdfast.core.errors import RecoveryFailed
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.redaction import account_of
from holdfast.core.ports import Communicators
from holdfast.core.protocol.messages import Rendezvous
from holdfast.hosts.vllm.injection import ArmedFaults
from holdfast.hosts.vllm.process.collective_count import COUNT
from holdfast.hosts.vllm.worker.connector_transfers import end_transfers
from holdfast.hosts.vllm.worker.equal_state import expert_placement, make_equal
from holdfast.hosts.vllm.worker.fence import StepFence
from holdfast.hosts.vllm.worker.memory_shortage import release_memory
from holdfast.hosts.vllm.worker.request_history import add_requests, decode_histories, lacks_features
from holdfast.hosts.vllm.worker.seeded_generator import set_generator

logger = logging.getLogger("holdfast")

RESTORE = "holdfast_restore"  # name under which the call is bound to a worker

# Ranks of an engine receive a token at different moments, never further apart than the steps in flight.
TAIL_TOKENS = 64


class RequestPosition(msgspec.Struct, frozen=True, array_like=True):
    """The position at which a request resumes: number of output tokens delivered, and the last tokens of the output.

    `encodes_again`: the request computes pictures again, whose data the rank must have.
    """

    request_id: str
    output_tokens: int
    tail: tuple[int, ...] = ()
    drawn: int = 0  # tokens sampled in earlier turns of a streaming session
    encodes_again: bool = False


class RestoreCommand(msgspec.Struct, frozen=True):
    """Keep only `requests`, rewound to their positions, and take work again under `epoch`.

    With a `rendezvous` the rank first rebuilds its collectives, within `rebuild_timeout_s`. From `seed` every rank
    draws the same numbers for requests without a seed of their own.
    """

    nonce: str
    epoch: int
    requests: tuple[RequestPosition, ...]
    seed: int
    rendezvous: Rendezvous | None = None
    rebuild_timeout_s: float = 0.0
    histories: bytes = b""  # encoded `RequestHistory` of the same requests, where a rank may not know them


class RestoreReply(msgspec.Struct, frozen=True):
    """Reply of a rank.

    Attributes:
        unknown: requests of the command that the rank never saw, or of which the rank lacks what they need.
        collectives: carried out since the restore before; equal on all ranks that share their collectives.
        expert_placement: digest of the placement of experts; 0 where the host does not move experts.
    """

    nonce: str
    unknown: tuple[str, ...] = ()
    error: str | None = None
    rebuild_s: float = 0.0
    expert_placement: int = 0
    collectives: int = 0


_commands = msgspec.msgpack.Decoder(RestoreCommand)
_replies = msgspec.msgpack.Decoder(RestoreReply)


def encode_command(command: RestoreCommand) -> bytes:
    """Encode a `RestoreCommand`."""
    return msgspec.msgpack.encode(command)


def decode_command(data: bytes) -> RestoreCommand:
    """Decode a `RestoreCommand`. Raises `msgspec.DecodeError`."""
    return _commands.decode(data)


def encode_reply(reply: RestoreReply) -> bytes:
    """Encode a `RestoreReply`."""
    return msgspec.msgpack.encode(reply)


def decode_reply(data: bytes) -> RestoreReply | None:
    """Decode a reply; return None for bytes that are no reply."""
    try:
        return _replies.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


# ---- the rank


class RankRestore:
    """Restores of one rank, as called by the engine core. Main thread."""

    def __init__(self, proc: Any, fence: StepFence, communicators: Communicators, faults: ArmedFaults) -> None:
        self._proc = proc
        self._fence = fence
        self._communicators = communicators
        self._faults = faults
        self.is_replacement = False  # knows no request until the first restore

    def restore(self, data: bytes) -> bytes:
        """Carry out a `RestoreCommand` and encode the reply. Never raises."""
        command = decode_command(data)
        self._fence.begin_restore(command.epoch)
        began_at = time.monotonic()
        try:
            self._rebuild(command)
            rebuilt_at = time.monotonic()
            if self._communicators.any_placeholder:
                raise RecoveryFailed(
                    "the process groups of this rank are placeholders: its collectives would send nothing"
                )
            if self.is_replacement and command.histories:  # runner V2 is sent every request in full when scheduled
                add_requests(self._runner, decode_histories(command.histories))
            unknown = restore_runner(self._runner, command.requests)
            make_equal(self._runner, command.seed)
            placement = expert_placement(self._runner)
        except Exception as error:
            logger.exception("restoring rank %d failed", self._proc.rank)
            self._fence.fail_restore(error, command.epoch)
            release_memory(error)
            return encode_reply(RestoreReply(nonce=command.nonce, error=str(account_of(error))))
        self.is_replacement = False
        collectives, COUNT.carried_out = COUNT.carried_out, 0
        self._fence.reopen(command.epoch)
        logger.info("rank %d takes work again (epoch %d, pid %d)", self._proc.rank, command.epoch, os.getpid())
        return encode_reply(
            RestoreReply(
                nonce=command.nonce,
                unknown=unknown,
                rebuild_s=rebuilt_at - began_at,
                expert_placement=placement,
                collectives=collectives,
            )
        )

    def forget(self, seed: int) -> None:
        """Know no request any more; every rank with the same `seed` draws the same numbers."""
        worker = self._proc.worker.worker
        if getattr(worker, "_pp_send_work", None):
            worker._pp_send_work = []
        restore_runner(self._runner, ())
        make_equal(self._runner, seed)
        self.is_replacement = False

    def add_requests(self, data: bytes) -> None:
        """Add requests that another engine core began, before they are scheduled."""
        add_requests(self._runner, decode_histories(data))

    def _rebuild(self, command: RestoreCommand) -> None:
        worker = self._proc.worker.worker
        if getattr(worker, "_pp_send_work", None):
            worker._pp_send_work = []  # sends that no rank will receive any more
        self._faults.reach(Phase.REBUILD)
        if command.rendezvous is not None:
            self._communicators.rebuild(command.rendezvous, command.rebuild_timeout_s)

    @property
    def _runner(self) -> Any:
        return self._proc.worker.worker.model_runner


# ---- the model runner


def restore_runner(runner: Any, requests: Sequence[RequestPosition]) -> tuple[str, ...]:
    """Restore the runner; return the ids of requests that the rank cannot resume."""
    runner.execute_model_state = None
    end_transfers(runner)
    if hasattr(runner, "req_states"):
        return _restore_v2(runner)
    runner.encoder_cache.clear()
    return _restore_v1(runner, requests)


def _restore_v2(runner: Any) -> tuple[str, ...]:
    for request_id in sorted(runner.req_states.req_id_to_index):
        runner._remove_request(request_id)
    if runner.encoder_cache is not None:
        runner.encoder_cache.reset_encoder_cache()
    return ()


def _restore_v1(runner: Any, requests: Sequence[RequestPosition]) -> tuple[str, ...]:
    runner.kv_connector_output = None
    runner.mamba_state_idx.clear()  # a request that is sent as new would go on from the state of its old blocks
    _empty_batch(runner.input_batch)
    positions = {r.request_id: r for r in requests}
    for request_id in [r for r in runner.requests if r not in positions]:
        del runner.requests[request_id]
        runner.num_prompt_logprobs.pop(request_id, None)
    for request_id, position in positions.items():
        if request_id in runner.requests:
            _rewind_state(runner, runner.requests[request_id], position)
    return tuple(r for r, position in positions.items() if not _reaches(runner.requests.get(r), position))


def _empty_batch(batch: Any) -> None:
    for request_id in list(batch.req_id_to_index):
        batch.remove_request(request_id)
    batch.condense()
    batch.refresh_metadata()
    batch.prev_sampled_token_ids = None
    batch.prev_req_id_to_index = None
    # Tokens of the step before, still on their way to the CPU under asynchronous scheduling.
    batch.sampled_token_ids_cpu = None
    batch.async_copy_ready_event = None


def _rewind_state(runner: Any, state: Any, position: RequestPosition) -> None:
    """Cut off tokens that were not delivered, and append tokens that were delivered before the rank received them."""
    state.output_token_ids[position.output_tokens - len(position.tail) :] = position.tail
    state.prev_num_draft_len = 0
    if state.generator is not None:
        set_generator(state.generator, state.sampling_params.seed, position.drawn + position.output_tokens, runner)


def _reaches(state: Any | None, position: RequestPosition) -> bool:
    if state is None or len(state.output_token_ids) != position.output_tokens:
        return False
    return not (position.encodes_again and lacks_features(state))
