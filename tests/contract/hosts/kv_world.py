"""The host's scheduler and its offloading connector over a memory in which each token's KV tells whether it is right.

A block's content is, for each of its tokens, a digest of all tokens up to there. A step checks what it attends to
before it computes, as a model would see it; a fault leaves garbage where the step was to write.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from contract.hosts.vllm_rig import engine_config
from holdfast.hosts.vllm.engine.rewind import rewind
from holdfast.hosts.vllm.worker.connector_transfers import end_transfers
from support.kv_offloading.cpu_offloading import CopyingWorker

TRANSFER = "vllm.distributed.kv_transfer"
BLOCK_SIZE = 16
BLOCKS = 40
CHUNKS = 60  # fewer than the prompts fill: chunks are evicted
WINDOW = 40
STEP_TOKENS = 48
OFFLOADING = {
    "cpu_bytes_to_use": CHUNKS * 4096,
    "spec_name": "CpuBuildOffloadingSpec",
    "spec_module_path": "support.kv_offloading.cpu_offloading",
    "offload_prompt_only": False,
}


FAULTS = ("before", "in", "after", "unsent", "allocated", "unmade")


class Broken(Exception):
    """The fault of a step."""


@functools.cache
def _config(*, offloads: bool) -> Any:
    transfer = KVTransferConfig(
        kv_connector="OffloadingConnector", kv_role="kv_both", kv_connector_extra_config=OFFLOADING
    )
    made = engine_config(
        block_size=BLOCK_SIZE,
        num_gpu_blocks_override=BLOCKS,
        max_num_batched_tokens=STEP_TOKENS,
        max_num_seqs=8,
        kv_transfer_config=transfer if offloads else None,
    )
    made.cache_config.num_gpu_blocks = BLOCKS
    return made


def _cache_config(*, has_window: bool) -> KVCacheConfig:
    shape: dict[str, Any] = {"num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
    specs: list[Any] = [FullAttentionSpec(block_size=BLOCK_SIZE, **shape)]
    if has_window:
        specs.append(SlidingWindowSpec(block_size=BLOCK_SIZE, sliding_window=WINDOW, **shape))
    groups = [KVCacheGroupSpec([f"layer{i}"], spec) for i, spec in enumerate(specs)]
    return KVCacheConfig(num_blocks=BLOCKS, kv_cache_tensors=[], kv_cache_groups=groups, hash_block_size=BLOCK_SIZE)


def kv_of(tokens: Sequence[int]) -> list[int]:
    """Return the KV of each token, which depends on all tokens before; never 0, which is unwritten memory."""
    found, last = [], 0
    for token in tokens:
        last = (hash((last, token)) & 0x7FFFFFFFFFFFFFFF) | 1
        found.append(last)
    return found


def next_token(tokens: Sequence[int]) -> int:
    return kv_of(tokens)[-1] % 900 + 3


class KVWorld:
    """One engine core's scheduler and one rank."""

    def __init__(self, *, offloads: bool = True, has_window: bool = False) -> None:
        init_none_hash(sha256)
        self._offloads, self._config = offloads, _config(offloads=offloads)
        self._caches = _cache_config(has_window=has_window)
        self.scheduler = Scheduler(
            self._config, self._caches, mock.MagicMock(), block_size=BLOCK_SIZE, hash_block_size=BLOCK_SIZE
        )
        self.scheduler.structured_output_manager.accept_tokens.return_value = True
        self.outputs: dict[str, list[int]] = {}
        self.wanted: dict[str, list[int]] = {}
        self.loaded_jobs = 0
        self._new_rank()

    def _new_rank(self) -> None:
        self.memory = torch.zeros((BLOCKS, BLOCK_SIZE), dtype=torch.int64)
        self.connector = None
        if not self._offloads:
            return
        self.connector = OffloadingConnector(self._config, KVConnectorRole.WORKER, self._caches)
        page = CanonicalKVCacheTensor(self.memory.view(torch.int8), BLOCK_SIZE * 8)
        groups = [[CanonicalKVCacheRef(0, BLOCK_SIZE * 8)] for _ in self._caches.kv_cache_groups]
        self.connector.connector_worker.worker = CopyingWorker(
            CanonicalKVCaches([page], groups), 1, self.connector.connector_worker.spec.num_chunks
        )

    def ask(self, name: str, prompt: list[int], tokens: int) -> None:
        request = Request(
            name,
            prompt,
            SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True),
            None,
            block_hasher=get_request_block_hasher(BLOCK_SIZE, sha256),
        )
        expected = list(prompt)
        for _ in range(tokens):
            expected.append(next_token(expected))
        self.wanted[name], self.outputs[name] = expected[len(prompt) :], []
        self.scheduler.add_request(request)

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        self.wanted.pop(name)
        self.outputs.pop(name)

    def has_work(self) -> bool:
        return self.scheduler.has_requests()

    # ---- one step

    def step(self, fault: str = "") -> None:
        """Run one step.

        A fault: `before`, `in` or `after` the forward pass; `unsent`, never sent to the rank; in the schedule right
        after it has asked for blocks (`allocated`), or before the connector has made its part (`unmade`).
        """
        with self._broken_schedule(fault):
            work = self.scheduler.schedule()
        if fault in ("unsent", "allocated", "unmade"):
            raise Broken(fault)
        transfers = KVConnectorOutput()
        if self.connector is not None:
            self.connector.handle_preemptions(work.kv_connector_metadata)
            self.connector.bind_connector_metadata(work.kv_connector_metadata)
        try:
            if fault == "before":
                raise Broken(fault)
            sampled = {name: self._compute(name, count, fault) for name, count in work.num_scheduled_tokens.items()}
            if fault == "in":
                raise Broken(fault)
        finally:  # as the host's runner V1: also after an exception
            if self.connector is not None:
                self._end_of_forward(work, transfers)
        if fault:
            raise Broken(fault)
        names = list(sampled)
        reply = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=[sampled[name] for name in names],
            kv_connector_output=transfers if self.connector is not None else None,
        )
        for answers in self.scheduler.update_from_output(work, reply).values():
            for answer in answers.outputs:
                if answer.request_id in self.outputs:
                    self.outputs[answer.request_id] += answer.new_token_ids

    @contextmanager
    def _broken_schedule(self, fault: str) -> Iterator[None]:
        manager, connector = self.scheduler.kv_cache_manager, self.scheduler.connector
        if fault == "allocated":
            allocate = manager.allocate_slots

            def allocate_and_break(*args: Any, **kwargs: Any) -> None:
                allocate(*args, **kwargs)
                raise Broken(fault)

            with mock.patch.object(manager, "allocate_slots", allocate_and_break):
                yield
        elif fault == "unmade" and connector is not None:
            with mock.patch.object(connector, "build_connector_meta", side_effect=Broken(fault)):
                yield
        else:
            yield

    def _end_of_forward(self, work: Any, transfers: KVConnectorOutput) -> None:
        self.loaded_jobs += len(work.kv_connector_metadata.load_jobs)
        self.connector.start_load_kv(None)
        self.connector.wait_for_save()
        results = self.connector.get_transfer_results(work.finished_req_ids)
        transfers.finished_sending, transfers.finished_recving = results.finished_sending, results.finished_recving
        transfers.kv_connector_worker_meta = self.connector.build_connector_worker_meta()
        self.connector.clear_connector_metadata()

    def _compute(self, name: str, count: int, fault: str) -> list[int]:
        request = self.scheduler.requests[name]
        first = request.num_computed_tokens - count
        tokens = list(request.all_token_ids)
        right = kv_of(tokens)
        memory = self.memory.numpy()
        groups = self._caches.kv_cache_groups
        for group, blocks in zip(groups, self.scheduler.kv_cache_manager.get_block_ids(name), strict=True):
            seen_from = 0 if isinstance(group.kv_cache_spec, FullAttentionSpec) else max(0, first - WINDOW + 1)
            seen = [memory[blocks[at // BLOCK_SIZE], at % BLOCK_SIZE] for at in range(seen_from, first)]
            assert fault or seen == right[seen_from:first], f"{name} attends to wrong KV"
            for at in range(first, first + count):
                memory[blocks[at // BLOCK_SIZE], at % BLOCK_SIZE] = 7 if fault == "in" else right[at]
        return [next_token(tokens)] if first + count == len(tokens) else []

    # ---- repair

    def repair(self, *, new_rank: bool = False) -> None:
        """Rewind and restore, as a recovery does."""
        if new_rank:
            self._new_rank()
        rewind(self.scheduler, (), keep_suspect_blocks=False, memory_lost=new_rank)
        with (
            mock.patch(f"{TRANSFER}.has_kv_transfer_group", return_value=self.connector is not None),
            mock.patch(f"{TRANSFER}.get_kv_transfer_group", return_value=self.connector),
        ):
            end_transfers(None)

    def run(self, faults: random.Random | None = None, chance: float = 0.0) -> None:
        """Run to the end, with faults now and then."""
        for _ in range(2000):
            if not self.has_work():
                return
            draw = faults.random() if faults else 1.0
            fault = faults.choice(FAULTS) if faults and draw < chance else ""
            try:
                self.step(fault)
            except Broken:
                assert faults is not None
                if self.outputs and faults.random() < 0.2:
                    self.abort(faults.choice(sorted(self.outputs)))
                self.repair(new_rank=faults.random() < 0.3)
        raise AssertionError(f"requests do not end: {[(r, q.status) for r, q in self.scheduler.requests.items()]}")


def prompts(draw: random.Random, count: int) -> list[list[int]]:
    """Return prompts of which many begin alike."""
    common = [[int(draw.randint(3, 900)) for _ in range(150)] for _ in range(2)]
    return [
        draw.choice(common)[: draw.randint(20, 150)] + [draw.randint(3, 900) for _ in range(draw.randint(1, 40))]
        for _ in range(count)
    ]
