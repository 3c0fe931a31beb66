"""Parts of a vLLM engine core in one process: ranks as threads that run the host's worker loop, queues in memory.

Only the model runner is pretended, with the semantics of the host's runner V1: a rank keeps the tokens of each request
itself. A rank has a small process of its own, so that the rank can be killed.
"""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.utils import EngineZmqAddresses
from vllm.v1.executor.multiproc_executor import WorkerProc, WorkerProcHandle
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker.gpu_input_batch import CachedRequestState
from vllm.v1.worker.worker_base import CompilationTimes, WorkerWrapperBase

from contract.hosts.rig import BLOCK_SIZE, BLOCKS, LONG_S, Reports
from holdfast.hosts.fake.communicators import FakeNetwork
from holdfast.hosts.fake.model import KVMemory, sample
from holdfast.hosts.vllm.engine.worker_pool.replacement_processes import ReplacementResult
from holdfast.hosts.vllm.executor import HoldfastExecutor
from holdfast.hosts.vllm.worker.fence import StepFence
from holdfast.hosts.vllm.worker.worker import VllmWorkerHost

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
    "bos_token_id": 1000,
    "eos_token_id": 1001,
}


class Closed(Exception):
    """The last item of a closed queue."""


class MemoryQueue:
    """A message queue of the host in memory, with a single reader."""

    def __init__(self) -> None:
        self._items: queue.Queue[Any] = queue.Queue()

    def enqueue(self, item: Any, timeout: float | None = None) -> None:
        self._items.put(item)

    def dequeue(self, timeout: float | None = None, indefinite: bool = False) -> Any:
        try:
            item = self._items.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if item is Closed:
            raise RuntimeError("cancelled")  # as the host's queue does when it is shut down
        return item

    def shutdown(self) -> None:
        self._items.put(Closed)


class Broadcast:
    """The queue over which an engine core calls the ranks: a copy of each call for every rank."""

    def __init__(self, ranks: int) -> None:
        self.readers = [MemoryQueue() for _ in range(ranks)]

    def enqueue(self, item: Any, timeout: float | None = None) -> None:
        for reader in self.readers:
            reader.enqueue(item)


class SmallProcess:
    """A process that does nothing, with the attributes of a `multiprocessing` process."""

    name = "rank"

    def __init__(self) -> None:
        self._process = subprocess.Popen(["sleep", "600"])
        self.pid = self._process.pid
        self.sentinel = os.pidfd_open(self.pid)

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        self._process.kill()

    def join(self, timeout: float | None = None) -> None:
        self._process.wait(timeout)

    def close(self) -> None:
        self.kill()
        self.join(LONG_S)
        os.close(self.sentinel)


@dataclass
class PretendBatch:
    """As much of the host's `InputBatch` as a restore looks at."""

    req_id_to_index: dict[str, int] = field(default_factory=dict)
    vocab_size: int = MODEL["vocab_size"]  # type: ignore[assignment]
    block_table: Any = field(default_factory=lambda: SimpleNamespace(block_tables=[None]))

    def remove_request(self, request_id: str) -> None:
        self.req_id_to_index.pop(request_id, None)

    def condense(self) -> None:
        """Close gaps: there are none."""

    def refresh_metadata(self) -> None:
        """Build tensors: there are none."""


class PretendRunner:
    """A model runner V1 that computes the fake host's arithmetic and keeps the tokens of each request."""

    def __init__(self, rank: int, communicators: Any) -> None:
        self.mamba_state_idx: dict[str, int] = {}
        self.memory = KVMemory(rank, BLOCKS, BLOCK_SIZE)
        self._communicators = communicators
        self.model = torch.nn.Identity()
        self.requests: dict[str, CachedRequestState] = {}
        self.input_batch = PretendBatch()
        self.num_prompt_logprobs: dict[str, int] = {}
        self.encoder_cache: dict[str, Any] = {}
        self.uses_mrope = False
        self.execute_model_state: dict[str, int] | None = None
        self.device = torch.device("cpu")
        self.eplb_state = None

    def execute_model(self, work: Any) -> ModelRunnerOutput | None:
        """Write the KV of a step and gather the attention results of all ranks."""
        self._learn(work)
        if not work.total_num_scheduled_tokens:
            return ModelRunnerOutput(req_ids=[], req_id_to_index={})
        self.model(torch.zeros(1))
        attended, samples = {}, {}
        for request_id, count in work.num_scheduled_tokens.items():
            state = self.requests[request_id]
            tokens = [*state.prompt_token_ids, *state.output_token_ids]
            start = state.num_computed_tokens
            attended[request_id] = self.memory.write(state.block_ids[0], start, tokens[start : start + count])
            samples[request_id] = start + count == len(tokens)
        every = self._communicators.all_gather(attended, LONG_S)
        self.execute_model_state = {i: sample(rank[i] for rank in every) for i in attended if samples[i]}
        self.input_batch.req_id_to_index = {i: index for index, i in enumerate(attended)}
        return None

    def sample_tokens(self, _: Any) -> ModelRunnerOutput:
        sampled, self.execute_model_state = self.execute_model_state, None
        assert sampled is not None
        for request_id, token in sampled.items():
            self.requests[request_id].output_token_ids.append(token)
        index = self.input_batch.req_id_to_index
        tokens = [[sampled[i]] if i in sampled else [] for i in index]
        return ModelRunnerOutput(req_ids=list(index), req_id_to_index=dict(index), sampled_token_ids=tokens)

    def _learn(self, work: Any) -> None:
        for request_id in work.finished_req_ids:
            self.requests.pop(request_id, None)
        for new in work.scheduled_new_reqs:
            self.requests[new.req_id] = CachedRequestState(
                req_id=new.req_id,
                prompt_token_ids=new.prompt_token_ids,
                mm_features=[],
                sampling_params=new.sampling_params,
                generator=None,
                block_ids=tuple(list(blocks) for blocks in new.block_ids),
                num_computed_tokens=new.num_computed_tokens,
                output_token_ids=[],
            )
        cached = work.scheduled_cached_reqs
        for request_id, computed, new_blocks in zip(
            cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True
        ):
            state = self.requests[request_id]
            state.num_computed_tokens = computed
            if request_id in cached.resumed_req_ids:
                state.block_ids = tuple(list(blocks) for blocks in new_blocks)
            elif new_blocks is not None:
                for blocks, more in zip(state.block_ids, new_blocks, strict=True):
                    blocks.extend(more)


class PretendWorker:
    """The methods that the host calls on a worker."""

    def __init__(self, rank: int, communicators: Any) -> None:
        self.rank = rank
        self.model_runner = PretendRunner(rank, communicators)

    def execute_model(self, work: Any) -> Any:
        return self.model_runner.execute_model(work)

    def sample_tokens(self, grammar: Any) -> Any:
        return self.model_runner.sample_tokens(grammar)

    def take_draft_token_ids(self) -> None:
        return None

    def execute_dummy_batch(self) -> None:
        """Compute nothing."""

    def get_kv_cache_spec(self) -> dict[str, Any]:
        return {"layer": FullAttentionSpec(BLOCK_SIZE, num_kv_heads=1, head_size=32, dtype=torch.float32)}

    def determine_available_memory(self) -> int:
        return 1 << 24

    def get_supported_kv_cache_layouts(self) -> list[str]:
        return ["NHD"]

    def set_kv_cache_layout(self, *_: Any) -> None:
        """Keep no KV cache of the host's."""

    def initialize_from_config(self, _: Any) -> None:
        """Keep no KV cache of the host's."""

    def synchronize_device(self) -> None:
        """Wait for no device."""

    def reset_mm_cache(self) -> None:
        """Keep no cache of inputs."""

    def reset_encoder_cache(self) -> None:
        """Keep no cache of an encoder."""

    def compile_or_warm_up_model(self) -> CompilationTimes:
        return CompilationTimes(0.0, 0.0)


class ThreadRank:
    """A rank: a worker of the host on a thread, under the fence of Holdfast, beside a small process."""

    def __init__(self, rank: int, config: Any, calls: MemoryQueue, communicators: Any, reports: Reports) -> None:
        wrapper = WorkerWrapperBase(rank)
        wrapper.vllm_config, wrapper.mm_receiver_cache = config, None
        wrapper.worker = PretendWorker(rank, communicators)
        self.proc = WorkerProc.__new__(WorkerProc)
        self.proc.rank, self.proc.worker, self.proc.use_async_scheduling = rank, wrapper, False
        self.proc.rpc_broadcast_mq, self.proc.worker_response_mq = calls, MemoryQueue()
        fence = StepFence(0, rank, communicators)
        fence.reporter = reports
        self.host = VllmWorkerHost(self.proc, fence, communicators, injection=True)
        self.process = SmallProcess()
        self.handle = WorkerProcHandle(self.process, rank, self.proc.worker_response_mq, [])
        threading.Thread(target=self._run, name=f"rank-{rank}", daemon=True).start()

    def _run(self) -> None:
        try:
            self.proc.worker_busy_loop()
        except RuntimeError:
            return

    def close(self) -> None:
        self.proc.rpc_broadcast_mq.shutdown()
        self.process.close()


class ThreadExecutor(HoldfastExecutor):
    """Holdfast's executor over ranks that are threads."""

    network: FakeNetwork
    reports: Reports

    def _init_executor(self) -> None:
        self._get_parallel_sizes()
        self.is_failed, self.output_rank, self.futures_queue = False, 0, deque()
        self.rpc_broadcast_mq = Broadcast(self.world_size)
        self.ranks = [self._new_rank(rank) for rank in range(self.world_size)]
        self._watch_ranks()
        self.note_start_calls()

    def replace_workers(self, ranks: Sequence[int], start_timeout_s: float, timeout_s: float) -> ReplacementResult:
        """Give each rank a new worker that knows no request and no KV."""
        self._stop_watching()  # the death of a rank that is killed on purpose is no loss
        for rank in ranks:
            self.ranks[rank].close()
            self.rpc_broadcast_mq.readers[rank] = MemoryQueue()
            self.ranks[rank] = self._new_rank(rank)
            self.ranks[rank].host.restores.is_replacement = True
        self._watch_ranks()
        self.is_failed, self.lost_ranks = False, frozenset()
        return ReplacementResult({rank: self.ranks[rank].process.pid for rank in ranks}, 0, 0.0)

    def shutdown(self) -> None:
        self.shutting_down = True
        self._stop_watching()
        for rank in self.ranks:
            rank.close()

    def _new_rank(self, rank: int) -> ThreadRank:
        calls = self.rpc_broadcast_mq.readers[rank]
        return ThreadRank(rank, self.vllm_config, calls, self.network.rank(rank), self.reports)

    def _watch_ranks(self) -> None:
        self.workers = [rank.handle for rank in self.ranks]
        self.response_mqs = [handle.worker_response_mq for handle in self.workers]
        self.start_worker_monitor()


class InProcessCore(EngineCoreProc):
    """The host's engine core without sockets; runs the busy loop turn by turn."""

    @contextmanager
    def _perform_handshakes(self, *_: Any) -> Iterator[EngineZmqAddresses]:
        yield EngineZmqAddresses(inputs=[], outputs=[])

    def process_input_sockets(self, *args: Any) -> None:
        args[-1].set()

    def process_output_sockets(self, *_: Any) -> None:
        """Send nothing: outputs stay in the queue."""

    def turn(self) -> None:
        """Run one turn of the host's busy loop. Raises the error that ends the busy loop."""
        self.process_input_queue_block = False
        self._turns = iter((True, False))
        try:
            self.run_busy_loop()
        except SystemExit:
            return

    def _handle_shutdown(self) -> bool:
        return next(self._turns)


class PretendSentinel:
    """The part of `EngineCoreSentinel` that a `VllmEngineHost` calls."""

    def __init__(self) -> None:
        self.lost: list[int] = []
        self.nodes = None  # one machine

    def rank_lost(self, rank: int, pid: int, how: str, exit_code: int | None = None) -> None:
        self.lost.append(rank)

    def take_back(self, *_: object) -> None:
        """Ignore workers of a lost engine core: there are none."""

    def report_standbys(self, *_: object) -> None:
        """Ignore the pool: there is none."""

    def report_runtime_state(self, *_: object) -> None:
        """Ignore the state that callers set at run time: nobody sets any."""

    def await_processes(self, *_: Any) -> None:
        """Return at once: a rank on a thread is ready when made."""
