"""The vLLM host under the conformance suite: the host's own engine core, scheduler, executor and worker loop."""

from __future__ import annotations

import functools
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from contract.hosts.rig import BLOCK_SIZE, BLOCKS, LONG_S, MAX_RUNNING, RANKS, STEP_TOKENS, Rig, WaitingRank
from contract.hosts.vllm_parts import MODEL, InProcessCore, PretendSentinel, ThreadExecutor
from holdfast.core.config import HoldfastConfig
from holdfast.hosts.fake.communicators import FakeNetwork
from holdfast.hosts.fake.model import KVMemory
from holdfast.hosts.vllm.communicators import WorkerCommunicators
from holdfast.hosts.vllm.communicators.tracking import TrackedGroups
from holdfast.hosts.vllm.engine.engine_core import VllmEngineHost
from holdfast.hosts.vllm.engine.worker_pool.launchers import Launchers, LocalLauncher
from holdfast.hosts.vllm.worker.fence import StepFence
from holdfast.hosts.vllm.worker.worker import VllmWorkerHost


def engine_config(**arguments: Any) -> Any:
    """Return the host's configuration for a model that is never loaded; `arguments` come on top of the usual ones."""
    usual: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "enforce_eager": True,
        "max_model_len": MODEL["max_position_embeddings"],
        "block_size": BLOCK_SIZE,
        "max_num_batched_tokens": STEP_TOKENS,
        "max_num_seqs": MAX_RUNNING,
        "async_scheduling": False,  # tests that want the scheduler for that make one by hand
    }
    with tempfile.TemporaryDirectory() as folder, _as_a_library():
        (Path(folder) / "config.json").write_text(json.dumps(MODEL))
        return EngineArgs(model=folder, **usual | arguments).create_engine_config()


@functools.cache
def vllm_config() -> Any:
    """Return the host's configuration of two ranks."""
    return engine_config(tensor_parallel_size=RANKS, distributed_executor_backend="mp", num_gpu_blocks_override=BLOCKS)


@contextmanager
def _as_a_library() -> Iterator[None]:
    """Keep the side effects of the host on a process away from the tests."""
    with ExitStack() as stack:
        for name in ("enable_envs_cache", "freeze_gc_heap", "maybe_attach_gc_debug_callback"):
            stack.enter_context(mock.patch(f"vllm.v1.engine.core.{name}"))
        stack.enter_context(mock.patch("vllm.plugins.load_general_plugins"))
        yield


@property
def ranks_here(executor: Any) -> Launchers:
    """All ranks are started by the executor itself, as on one node."""
    return Launchers(LocalLauncher(lambda: executor.workers, executor._start_here), RANKS, None)


class VllmRig(Rig):
    """A `VllmEngineHost` over the host's engine core."""

    def __init__(self) -> None:
        super().__init__()
        self.network = FakeNetwork(RANKS)
        executor = type(
            "RigExecutor", (ThreadExecutor,), {"network": self.network, "reports": self.faults, "launchers": ranks_here}
        )
        with _as_a_library():
            self._core = InProcessCore(vllm_config(), True, "", executor, False)
        config = HoldfastConfig(enable_fault_injection=True, stall_detection=False)
        self.engine = VllmEngineHost(self._core, config, PretendSentinel())  # type: ignore[arg-type]

    @property
    def workers(self) -> list[VllmWorkerHost]:  # type: ignore[override]
        return [rank.host for rank in self._core.model_executor.ranks]

    def step(self) -> None:
        try:
            self._core.turn()
        finally:
            self._take_outputs()

    def recover(self, error: Exception, replace: Sequence[int] = ()) -> Any:
        try:
            return super().recover(error, replace)
        finally:
            self._take_outputs()

    def spoil_kv(self) -> None:
        for rank in self._core.model_executor.ranks:
            rank.proc.worker.worker.model_runner.memory = KVMemory(rank.proc.rank, BLOCKS, BLOCK_SIZE)

    def break_before_the_next_reply(self) -> None:
        rank = self._core.model_executor.ranks[0]
        runner = rank.proc.worker.worker.model_runner
        sample = runner.sample_tokens

        def break_after(grammar: Any) -> Any:
            runner.sample_tokens = sample
            sampled = sample(grammar)
            rank.host.break_collectives(0)
            return sampled

        runner.sample_tokens = break_after

    def close(self) -> None:
        self._core.model_executor.shutdown()

    def _accept(self, request_id: str, prompt: Sequence[int], max_tokens: int, client_index: int) -> None:
        asked = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=list(prompt),
            mm_features=None,
            sampling_params=SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True),
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            client_index=client_index,
        )
        self._core.add_request(*self._core.preprocess_add_request(asked))

    def _take_outputs(self) -> None:
        sent = self._core.output_queue
        while not sent.empty():
            for output in sent.get_nowait()[1].outputs:
                self.answers.setdefault(output.request_id, []).extend(output.new_token_ids)
                if str(output.finish_reason) == "error":
                    self.ended[output.request_id] = str(output.stop_reason)


rig = VllmRig


def waiting_rank() -> WaitingRank:
    """Return rank 0 of two ranks over gloo, both of this process."""
    tracked = TrackedGroups()
    group = tracked.make(_pair_over_gloo)
    communicators = WorkerCommunicators(tracked=tracked)
    runner = SimpleNamespace(model=torch.nn.Identity())
    wrapper = SimpleNamespace(worker=SimpleNamespace(model_runner=runner))
    for method in ("execute_model", "sample_tokens", "take_draft_token_ids", "execute_dummy_batch"):
        setattr(wrapper, method, lambda *_: None)
    proc = SimpleNamespace(rank=0, worker=wrapper, use_async_scheduling=False)
    host = VllmWorkerHost(proc, StepFence(0, 0, communicators), communicators, injection=False)
    return WaitingRank(host, lambda: torch.distributed.all_reduce(torch.ones(1), group=group))


_PEERS: list[Any] = []  # a group lives as long as somebody holds it


def _pair_over_gloo() -> Any:
    from vllm.distributed.utils import init_gloo_process_group

    store = torch.distributed.PrefixStore("pair", torch.distributed.HashStore())
    made: dict[int, Any] = {}

    def make(rank: int) -> None:
        made[rank] = init_gloo_process_group(store, rank, RANKS, timedelta(seconds=LONG_S))

    peer = threading.Thread(target=make, args=(1,))
    peer.start()
    make(0)
    peer.join(LONG_S)
    _PEERS.append(made[1])
    return made[0]
