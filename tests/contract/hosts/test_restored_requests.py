"""What the host tells a rank of a new request, and computes there, it has of a restored request too."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)
from vllm.multimodal.utils import strip_covered_mm_data
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.pool.late_interaction_runner import LateInteractionRunner
from vllm.v1.request import Request
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
from vllm.v1.worker import gpu_model_runner
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from holdfast.hosts.vllm.engine.resumed_requests import _make_request
from holdfast.hosts.vllm.serving.resumption import resumption, unmovable
from holdfast.hosts.vllm.worker.request_history import (
    RequestHistory,
    add_requests,
    decode_histories,
    encode_histories,
    history_of,
)
from holdfast.hosts.vllm.worker.restore import RequestPosition, restore_runner

pytestmark = pytest.mark.host

PROMPT = [5, 900, 900, 900, 7, 8]
# Of a step, not of a request: a restored request gets them as it is scheduled. The last two are of runner V2, which is
# sent every request in full.
OF_THE_STEP = {"block_ids", "num_computed_tokens", "prefill_token_ids", "replay_start"}
NEVER_RESTORED = {"pooling_params"}  # such a request has no output, and is sent as a new one


def feature() -> MultiModalFeatureSpec:
    pixels = MultiModalFieldElem(data=torch.arange(600, dtype=torch.float32), field=MultiModalBatchedField())
    grid = MultiModalFieldElem(data=torch.tensor([1, 2, 6]), field=MultiModalBatchedField(keep_on_cpu=True))
    item = MultiModalKwargsItem({"pixel_values": pixels, "image_grid_thw": grid})
    return MultiModalFeatureSpec(
        data=item, modality="image", identifier="picture", mm_position=PlaceholderRange(offset=1, length=3)
    )


def request(**changed: Any) -> Request:
    stated: dict[str, Any] = {
        "prompt_token_ids": PROMPT,
        "mm_features": [feature()],
        "lora_request": LoRARequest("adapter", 3, "/nowhere"),
        **changed,
    }
    made = Request("r", sampling_params=SamplingParams(seed=4, max_tokens=9), pooling_params=None, **stated)
    made.append_output_token_ids([11, 12])
    return made


class Batch:
    """The rows of a step, which a request enters as it is scheduled."""

    req_id_to_index: dict[str, int] = {}  # noqa: RUF012
    vocab_size = 1000
    block_table = SimpleNamespace(block_tables=[None])

    def add_request(self, state: Any) -> None:
        pass

    update_req_spec_token_ids = remove_request = condense = refresh_metadata = lambda self, *args: None


class Runner(gpu_model_runner.GPUModelRunner):
    """The host's runner with as much as it needs to take a new request."""

    def __init__(self, mrope: bool = True) -> None:
        self.requests = {}
        self.num_prompt_logprobs = {}
        self.encoder_cache, self.mamba_state_idx = {}, {}
        self.input_batch = Batch()
        self.device = torch.device("cpu")
        self.late_interaction_runner = LateInteractionRunner()
        self.speculative_config = None
        self.is_pooling_model = self.use_async_scheduling = self.use_async_spec_decode = False
        self.uses_mrope = mrope
        self.sampler = SimpleNamespace(topk_topp_sampler=SimpleNamespace(forward=lambda: None))
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 1000)

    def get_model(self) -> Any:
        def positions(tokens: list[int], features: list[Any]) -> tuple[torch.Tensor, int]:
            grids = [f.data["image_grid_thw"].data for f in features]
            return torch.tensor([tokens, [len(grids)] * len(tokens)]), int(grids[0].sum()) if grids else 0

        return SimpleNamespace(get_mrope_input_positions=positions)

    def _may_reorder_batch(self, step: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_model_runner, "get_pp_group", lambda: SimpleNamespace(is_last_rank=True))
    monkeypatch.setattr(gpu_model_runner, "supports_mrope", lambda model: True)


def as_new(wanted: Request, mrope: bool = True) -> Runner:
    """Give a runner the request by the host's own path."""
    runner = Runner(mrope)
    step = SchedulerOutput.make_empty()
    step.scheduled_new_reqs = [NewRequestData.from_request(wanted, ([],))]
    step.num_scheduled_tokens = {wanted.request_id: 1}
    runner._update_states(step)
    return runner


def as_restored(wanted: Request, mrope: bool = True) -> Runner:
    runner = Runner(mrope)
    add_requests(runner, decode_histories(encode_histories([history_of(wanted)])))
    return runner


REQUESTS = {
    "picture": {},
    "no picture": {"mm_features": None},
    "embeddings": {"prompt_token_ids": None, "prompt_embeds": torch.rand(6, 300), "mm_features": None},
    "tokens and embeddings": {"prompt_embeds": torch.rand(6, 300), "prompt_is_token_ids": [True] * 5 + [False]},
}


@pytest.mark.parametrize("mrope", [True, False])
@pytest.mark.parametrize("changed", REQUESTS.values(), ids=REQUESTS)
def test_a_restored_request_has_every_field_of_a_new_one(changed: dict[str, Any], mrope: bool) -> None:
    new, restored = (made(request(**changed), mrope) for made in (as_new, as_restored))
    assert new.requests.keys() == restored.requests.keys()
    for field in dataclasses.fields(CachedRequestState):
        a, b = (getattr(runner.requests["r"], field.name) for runner in (new, restored))
        if field.name == "output_token_ids":
            assert (a, b) == ([], [11, 12])
        elif field.name == "generator":
            b.set_state(a.get_state())  # both have one; the position after the output is a test of its own
        else:
            assert plain(a) == plain(b), field.name


@pytest.mark.parametrize("changed", REQUESTS.values(), ids=REQUESTS)
def test_a_request_that_moves_to_another_engine_core_is_the_same_there(changed: dict[str, Any]) -> None:
    """Through the encoding for the engine core, the host's own making of a request, and the call to the workers."""
    wanted = request(**changed)
    asked = EngineCoreRequest(
        request_id="r",
        prompt_token_ids=wanted.prompt_token_ids,
        mm_features=wanted.mm_features,
        sampling_params=wanted.sampling_params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=wanted.lora_request,
        cache_salt=None,
        data_parallel_rank=0,
        prompt_embeds=wanted.prompt_embeds,
        prompt_is_token_ids=wanted.prompt_is_token_ids,
    )
    assert unmovable(asked) == ""
    frames = MsgpackEncoder().encode(resumption(asked, [11, 12]))
    engine = SimpleNamespace(
        mm_receiver_cache=None,
        request_block_hasher=None,
        structured_output_manager=SimpleNamespace(accept_tokens=lambda *accepted: True),
    )
    arrived, _ = _make_request(
        EngineCore.preprocess_add_request, engine, MsgpackDecoder(EngineCoreRequest).decode(frames)
    )
    moved, stayed = (as_restored(one).requests["r"] for one in (arrived, wanted))
    for field in dataclasses.fields(CachedRequestState):
        if field.name not in ("generator", "sampling_params"):
            assert plain(getattr(moved, field.name)) == plain(getattr(stayed, field.name)), field.name


def test_a_history_carries_whatever_a_rank_is_told_of_a_new_request() -> None:
    told = {f.name.replace("req_id", "request_id") for f in dataclasses.fields(NewRequestData)}
    assert told - OF_THE_STEP - NEVER_RESTORED == set(RequestHistory.__struct_fields__) - {"output_token_ids", "drawn"}


def test_outputs_of_the_encoder_are_dropped_by_a_restore() -> None:
    runner = as_new(request())
    runner.encoder_cache["picture"] = torch.zeros(1)
    restore_runner(runner, [])
    assert runner.encoder_cache == {}


@pytest.mark.parametrize("mrope", [True, False])
@pytest.mark.parametrize("encodes_again", [True, False])
def test_a_rank_that_lacks_a_picture_asks_for_it_if_it_is_computed_again(encodes_again: bool, mrope: bool) -> None:
    position = RequestPosition("r", 2, (11, 12), encodes_again=encodes_again)
    for covered, lacking in ((0, ()), (4, ("r",))):
        runner = as_new(request(), mrope)
        state = runner.requests["r"]
        state.mm_features = strip_covered_mm_data(state.mm_features, covered, uses_mrope=mrope)
        assert restore_runner(runner, [position]) == (lacking if encodes_again else ())


def plain(value: Any) -> Any:
    """Return a value that compares by content."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), value.tolist())
    if isinstance(value, MultiModalFeatureSpec):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, MultiModalFieldElem):
        return (plain(value.data), repr(value.field))
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value
