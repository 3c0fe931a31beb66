"""What a failed rank owes to its peers: which collectives are muted, what is sent, and where nothing is finished."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

from holdfast.core.faults.faults import FaultClass
from holdfast.hosts.vllm.engine.engine_core import StepOfFailedRank, StepReplies
from holdfast.hosts.vllm.process.collective_count import CollectiveCount
from holdfast.hosts.vllm.process.fence_flag import FenceFlag, FenceFlags
from holdfast.hosts.vllm.worker import finishing
from holdfast.hosts.vllm.worker.finishing import StepFinisher

pytestmark = pytest.mark.host


class Model:
    """Three collectives: two layers and the logits. `sent` is what the peers get."""

    def __init__(self) -> None:
        self.count = CollectiveCount()
        self.sent: list[list[float]] = []
        self.raises_after: int | None = None
        self._reduce = self.count.counted(lambda communicator, input_: input_)

    def reduce(self, value: Any) -> Any:
        return self._reduce(self._carry_out, None, value)

    def _carry_out(self, communicator: Any, input_: Any) -> Any:
        self.sent.append(input_.tolist())
        return input_ * 2

    def run(self, tokens: int, **_: Any) -> tuple[Any, None]:
        hidden = torch.ones(tokens)
        for layer in range(2):
            if layer == self.raises_after:
                self.raises_after = None
                raise ValueError
            hidden = self.reduce(hidden)
        return hidden, None

    def compute_logits(self, hidden: Any) -> Any:
        return self.reduce(hidden)


PARALLEL = {
    "pipeline_parallel_size": 1,
    "tensor_parallel_size": 1,
    "data_parallel_size": 1,
    "decode_context_parallel_size": 1,
    "prefill_context_parallel_size": 1,
}
CONFIG = {
    "speculative_config": None,
    "lora_config": None,
    "kv_transfer_config": None,
    "ec_transfer_config": None,
    "model_config": SimpleNamespace(enforce_eager=True),
}
RUNNER = {
    "device": torch.device("cpu"),
    "eplb_state": None,
    "is_pooling_model": False,
    "supports_mm_inputs": False,
    "enable_prompt_embeds": False,
    "num_prompt_logprobs": {},
}


def layers(kind: type) -> Any:
    return SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=object.__new__(kind))])


def finisher(model: Model, **changes: Any) -> StepFinisher:
    def changed(values: dict[str, Any]) -> dict[str, Any]:
        return values | {key: value for key, value in changes.items() if key in values}

    runner = {"model": model, "_dummy_run": model.run, "kv_cache_config": layers(FullAttentionSpec)} | RUNNER
    config = SimpleNamespace(**changed(CONFIG), parallel_config=SimpleNamespace(**changed(PARALLEL)))
    worker = SimpleNamespace(
        use_v2_model_runner=changes.get("v2", False),
        vllm_config=config,
        model_runner=SimpleNamespace(**changed(runner)),
    )
    return StepFinisher(worker, model.count)


def planned(tokens: int = 3, encodes: bool = False) -> Any:
    return SimpleNamespace(
        total_num_scheduled_tokens=tokens,
        num_scheduled_tokens=dict.fromkeys("ab", 1),
        scheduled_encoder_inputs={"a": [0]} if encodes else {},
    )


@pytest.fixture(autouse=True)
def one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finishing, "get_pp_group", lambda: SimpleNamespace(world_size=1))
    monkeypatch.setattr(finishing, "get_tp_group", lambda: None)


@pytest.mark.parametrize("done", [0, 1])
def test_the_collectives_that_are_left_are_carried_out_with_zeros(done: int) -> None:
    model = Model()
    rest = finisher(model)
    rest.begin(planned())
    model.raises_after = done
    with pytest.raises(ValueError):
        model.run(3)
    assert rest.why_not(FaultClass.TRANSIENT) is None
    rest.finish()
    assert model.sent == [[1.0] * 3] * done + [[0.0] * 3] * (2 - done) + [[0.0] * 2]
    assert model.count.carried_out == 3


def test_after_the_forward_pass_nothing_is_owed() -> None:
    model = Model()
    rest = finisher(model)
    rest.begin(planned())
    rest.end()
    rest.finish()
    assert (rest.why_not(FaultClass.TRANSIENT), model.sent) == (None, [])


def test_a_queued_step_is_joined_whole_and_an_empty_one_is_not_run() -> None:
    model = Model()
    rest = finisher(model)
    rest.join(planned())
    rest.join(planned(tokens=0))
    assert len(model.sent) == 3


def test_an_exception_inside_a_collective_or_after_an_opaque_one_is_not_finished() -> None:
    model = Model()
    rest = finisher(model)
    rest.begin(planned())
    model.count.entered += 1
    assert rest.why_not(FaultClass.TRANSIENT) == "the exception lies inside a collective"
    assert rest.why_not(FaultClass.TRANSIENT, is_in_step=False) is None
    rest.begin(planned())
    assert model.count.counted_opaque(lambda: 7) == 7
    assert rest.why_not(FaultClass.TRANSIENT) == "the step had a collective that cannot be left out"


@pytest.mark.parametrize("fault_class", [FaultClass.DEVICE, FaultClass.COMMUNICATOR])
def test_an_error_of_device_or_communicator_is_not_finished(fault_class: FaultClass) -> None:
    assert fault_class in str(finisher(Model()).why_not(fault_class))


UNSHOWN = {
    "model runner V2": {"v2": True},
    "a device other than the CPU": {"device": torch.device("meta")},
    "compiled models": {"model_config": SimpleNamespace(enforce_eager=False)},
    "more than two stages": {"pipeline_parallel_size": 3},
    "stages of several ranks": {"pipeline_parallel_size": 2, "tensor_parallel_size": 2},
    "data parallelism in lockstep": {"data_parallel_size": 2},
    "context parallelism": {"decode_context_parallel_size": 2},
    "balancing of experts": {"eplb_state": object()},
    "speculative decoding": {"speculative_config": object()},
    "adapters": {"lora_config": object()},
    "a KV connector": {"kv_transfer_config": object()},
    "pooling models": {"is_pooling_model": True},
    "multimodal models": {"supports_mm_inputs": True},
    "prompt embeddings": {"enable_prompt_embeds": True},
    "layers without full attention": {"kv_cache_config": layers(SlidingWindowSpec)},
}


@pytest.mark.parametrize("what", UNSHOWN)
def test_what_was_never_shown_is_not_finished(what: str) -> None:
    assert what in str(finisher(Model(), **UNSHOWN[what]).why_not(FaultClass.TRANSIENT))


def test_steps_with_collectives_of_their_own_are_not_finished() -> None:
    rest = finisher(Model())
    rest.begin(planned(encodes=True))
    assert "encodes" in str(rest.why_not(FaultClass.TRANSIENT))
    rest = finisher(Model(), num_prompt_logprobs={"a": 1})
    rest.begin(planned())
    assert "logprobs" in str(rest.why_not(FaultClass.TRANSIENT))


# ---- stages of a pipeline


class Stages:
    """Stands for the group of two stages: notes transfers. A handle may be waited for once, as with gloo."""

    def __init__(self, count: CollectiveCount, *, is_first: bool) -> None:
        self.world_size, self.is_first_rank, self.is_last_rank = 2, is_first, not is_first
        self.did: list[str] = []
        self._count = count

    def irecv_tensor_dict(self, **_: Any) -> Any:
        return self._count.receive(lambda: ({}, [self], []))

    def isend_tensor_dict(self, tensors: dict[str, Any], **_: Any) -> Any:
        self.did.append(f"send {tensors['hidden'].tolist()}")
        return self._count.send(lambda: [self, self])

    def wait(self) -> None:
        assert self.did[-1:] != ["wait"]
        self.did.append("wait")


def stage(monkeypatch: pytest.MonkeyPatch, *, is_first: bool) -> tuple[StepFinisher, Stages, Any]:
    model = Model()
    rest = finisher(model)
    stages = Stages(model.count, is_first=is_first)
    monkeypatch.setattr(finishing, "get_pp_group", lambda: stages)
    worker = rest._worker
    worker._pp_send_work, worker.model_runner.model_config = [], SimpleNamespace(dtype=torch.float32)
    model.make_empty_intermediate_tensors = lambda tokens, dtype, device: SimpleNamespace(  # type: ignore[attr-defined]
        tensors={"hidden": torch.ones(tokens, dtype=dtype)}
    )
    return rest, stages, worker


def test_a_first_stage_that_failed_sends_zeros_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rest, stages, worker = stage(monkeypatch, is_first=True)
    rest.begin(planned(tokens=2))
    rest.finish()
    assert (stages.did, len(worker._pp_send_work)) == (["send [0.0, 0.0]"], 1)
    rest.join(planned(tokens=1))  # waits for the transfer before
    assert stages.did == ["send [0.0, 0.0]", "wait", "send [0.0]"]


def test_a_stage_that_has_sent_owes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rest, stages, _ = stage(monkeypatch, is_first=True)
    rest.begin(planned())
    stages.isend_tensor_dict({"hidden": torch.ones(1)})
    rest.finish()
    assert stages.did == ["send [1.0]"]


@pytest.mark.parametrize("done", ["nothing", "begun", "waited"])
def test_a_last_stage_that_failed_receives_once(monkeypatch: pytest.MonkeyPatch, done: str) -> None:
    rest, stages, _ = stage(monkeypatch, is_first=False)
    rest.begin(planned())
    if done != "nothing":
        _, handles, _ = stages.irecv_tensor_dict()
        assert done == "begun" or [handle.wait() for handle in handles]
    rest.finish()
    assert stages.did == ["wait"]
    assert (rest.why_not(FaultClass.TRANSIENT), rest._count.carried_out) == (None, 1)


# ---- the flag


def test_an_engine_core_sees_the_flag_of_a_rank(tmp_path: Any) -> None:
    flag, flags = FenceFlag.published(str(tmp_path)), FenceFlags(str(tmp_path))
    assert not flag.is_read
    flags.watch({0: os.getpid(), 1: 1 << 30})
    assert (flag.is_read, flags.any_raised) == (True, False)
    flag.put(raised=True)
    assert flags.any_raised
    flags.watch({0: 1 << 30})  # a new process without a flag that can be seen
    assert not flags.any_raised


def test_a_rank_without_a_flag_is_no_reason_for_a_warning(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    FenceFlags(str(tmp_path)).watch({0: 1 << 30})
    assert caplog.messages == []


def test_no_reply_is_taken_while_a_flag_is_raised(tmp_path: Any) -> None:
    """The reply of a healthy peer, of a step in which another rank failed, is wrong."""
    taken: list[Any] = []
    scheduler = SimpleNamespace(update_from_output=taken.append)
    flags = SimpleNamespace(any_raised=True)
    StepReplies(scheduler, flags)  # type: ignore[arg-type]
    with pytest.raises(StepOfFailedRank):
        scheduler.update_from_output(planned())
    flags.any_raised = False
    scheduler.update_from_output(planned())
    assert len(taken) == 1
