"""Repetitions of a guilty request are known by a fingerprint, and answered before an engine core sees them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import numpy as np
from msgspec import structs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason

from holdfast.core.config import RuntimeSettings
from holdfast.core.poison.memory import GuiltKind, PoisonMemoryView, Remembered, adapter_error, poison_request_error
from holdfast.core.protocol.events import EngineStatus, InstanceView
from holdfast.core.protocol.link_messages import GuiltReported, RequestsRefused
from holdfast.core.states import EngineState
from holdfast.hosts.vllm.protocol import ON_TRIAL
from holdfast.hosts.vllm.serving.error_reasons import error_reason
from holdfast.hosts.vllm.serving.guilty_requests import GuiltyRequests, adapter_fingerprint, request_fingerprint
from holdfast.hosts.vllm.serving.request_router import RequestRouter

KEY = b"k" * 32
ERROR = poison_request_error("i1")


def request(
    request_id: str = "r",
    tokens: tuple[int, ...] = (1, 2, 3),
    lora: Any = None,
    cache_salt: str | None = None,
    **params: Any,
) -> Any:
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=list(tokens),
        mm_features=None,
        sampling_params=SamplingParams(**{"max_tokens": 8, "temperature": 0.0, **params}),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=lora,
        cache_salt=cache_salt,
        data_parallel_rank=None,
    )


def view(*entries: Remembered, **settings: Any) -> InstanceView:
    engine = EngineStatus(engine_id=0, status="", state=EngineState.HEALTHY)
    guilt = PoisonMemoryView(key=KEY, entries=entries)
    return InstanceView(engines=(engine,), settings=RuntimeSettings(**settings), guilt=guilt)


def entry(of: Any, **about: Any) -> Remembered:
    fingerprint = request_fingerprint(KEY, of)
    return Remembered(fingerprint=fingerprint, kind=GuiltKind.REQUEST, incident="i1", error=ERROR, **about)


# ---- fingerprints


def test_the_same_prompt_and_parameters_have_the_same_fingerprint_however_they_are_delivered() -> None:
    first = request_fingerprint(KEY, request(stop_token_ids=[7, 5, 9]))
    assert len(first) == 32
    again = request("other id", stop_token_ids=[7, 5, 9], output_kind=RequestOutputKind.DELTA)
    again.sampling_params.extra_args = {ON_TRIAL: True}
    assert request_fingerprint(KEY, again) == first


def test_whatever_is_computed_otherwise_has_another_fingerprint() -> None:
    lora = LoRARequest("a", 1, "/nowhere")
    others = [
        request(),
        request(tokens=(1, 2)),
        request(temperature=0.5),
        request(seed=1),
        request(max_tokens=9),
        request(extra_args={"a": 1}),
        request(lora=lora),
        request(cache_salt="of another tenant"),
    ]
    keyed = {request_fingerprint(key, other) for other in others for key in (KEY, b"other")}
    assert len(keyed) == 2 * len(others)


def test_biases_of_tokens_have_a_fingerprint_of_their_own() -> None:
    biased = [request(logit_bias=bias) for bias in (None, {1: 2.0}, {1: 3.0}, {2: 2.0}, {1: 2.0, 2: 2.0})]
    fingerprints = {request_fingerprint(KEY, one) for one in biased}
    assert len(fingerprints) == len(biased) and "" not in fingerprints
    swapped = request(logit_bias={2: 2.0, 1: 2.0})
    assert request_fingerprint(KEY, swapped) == request_fingerprint(KEY, biased[-1])


def test_what_prints_alike_is_not_taken_for_the_same() -> None:
    """The text of a large array is shortened: different ones look the same."""
    one, other = request(), request()
    for number, of in enumerate((one, other)):
        array = np.zeros(5000)
        array[2500] = number
        of.sampling_params.extra_args = {"array": array}
    assert request_fingerprint(KEY, one) == request_fingerprint(KEY, other) == ""


def test_a_request_that_cannot_be_hashed_has_no_fingerprint() -> None:
    broken = request()
    broken.mm_features = [object()]
    assert request_fingerprint(KEY, broken) == ""


def test_an_adapter_has_another_fingerprint_once_its_files_are_back(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    of = request(lora=LoRARequest("a", 1, str(folder)))
    gone = adapter_fingerprint(KEY, of)
    folder.mkdir()
    back = adapter_fingerprint(KEY, of)
    assert gone and back and gone != back
    assert adapter_fingerprint(KEY, request()) == ""


# ---- the memory of an API server


def judging() -> tuple[GuiltyRequests, list[Any]]:
    known, reports = GuiltyRequests(), []
    known.report = reports.append
    known.follow(view())
    return known, reports


def test_a_verdict_holds_here_before_the_owner_has_told_anybody() -> None:
    known, reports = judging()
    assert known.look_up(request()) is None
    assert known.judge(request(), ERROR, 3) is not None
    [report] = reports
    assert isinstance(report, GuiltReported)
    assert (report.guilty.incident, report.guilty.output_tokens) == ("i1", 3)
    found = known.look_up(request("again"))
    assert found is not None and found.is_refused and found.error == ERROR
    assert known.judge(request(), poison_request_error("i2"), 0) is None, "a copy that was on its way"
    known.follow(view(entry(request(), is_refused=False)))
    found = known.look_up(request())
    assert found is not None and not found.is_refused


def test_an_error_that_is_no_verdict_is_not_remembered_nor_any_without_a_memory() -> None:
    known, reports = judging()
    for error in ("Internal server error", None, 5):
        assert known.judge(request(), error, 0) is None
    known.follow(view(poison_memory_s=0.0))
    assert known.judge(request(), ERROR, 0) is None
    assert reports == []


def test_an_adapter_that_cannot_be_loaded_is_remembered_for_every_request_with_the_adapter() -> None:
    known, _ = judging()
    lora = LoRARequest("a", 1, "/nowhere")
    known.judge(request(lora=lora), adapter_error("i1"), 0)
    assert known.look_up(request(tokens=(9,), lora=lora)) is not None
    assert known.look_up(request(tokens=(9,), lora=LoRARequest("a", 2, "/nowhere"))) is None


def test_refusals_are_reported_in_steps_that_sum_up() -> None:
    known, reports = judging()
    known.follow(view(entry(request())))
    found = known.look_up(request())
    assert found is not None
    for _ in range(9):
        assert known.refuse(found) == ERROR
    assert [r.count for r in reports if isinstance(r, RequestsRefused)] == [1, 1, 2, 4]


# ---- the router


class Client:
    """The part of the host's client that the router uses."""

    def __init__(self) -> None:
        self.input_socket = SimpleNamespace(setsockopt=lambda option, value: None)
        self.core_engines = [b"\x00\x00"]
        self.core_engine = self.core_engines[0]
        self.engine_ranks_managed = [0]
        self.outputs_queue: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[Any] = []
        self.aborted: list[str] = []

    async def add(self, client: Any, request: Any) -> None:
        self.sent.append(request)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += request_ids

    def failed(self) -> list[str]:
        outputs = [self.outputs_queue.get_nowait() for _ in range(self.outputs_queue.qsize())]
        return [o.request_id for each in outputs for o in each.outputs if o.finish_reason is FinishReason.ERROR]


def error_output(request_id: str, why: str) -> Any:
    output = EngineCoreOutput(request_id, [], finish_reason=FinishReason.ERROR, stop_reason=why)
    return EngineCoreOutputs(outputs=[output], engine_index=0)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def made() -> tuple[Client, RequestRouter, list[Any]]:
    client, reports = Client(), []
    router = RequestRouter(client, detects_poison=True)
    router.bind(asyncio.get_running_loop())
    router.guilty.report = reports.append
    router.follow(view())
    return client, router, reports


def test_a_repetition_gets_the_same_error_and_never_reaches_an_engine_core() -> None:
    async def scenario() -> None:
        client, router, _ = await made()
        await router.add(client.add, client, request("first"))
        router.deliver(error_output("first", ERROR))
        await settle()
        for number in range(20):
            await router.add(client.add, client, request(f"again-{number}"))
        assert [r.request_id for r in client.sent] == ["first"]
        assert client.failed() == [f"again-{number}" for number in range(20)]
        assert error_reason("again-19") == ERROR
        assert list(router.journal) == []
        await router.add(client.add, client, request("other", tokens=(5,)))
        assert [r.request_id for r in client.sent] == ["first", "other"]

    asyncio.run(scenario())


def test_open_copies_end_with_the_guilty_request_but_for_those_that_got_further() -> None:
    async def scenario() -> None:
        client, router, _ = await made()
        for name in ("guilty", "copy", "further", "other"):
            await router.add(client.add, client, request(name, tokens=(7,) if name == "other" else (1,)))
        router.deliver(EngineCoreOutputs(outputs=[EngineCoreOutput("further", [4])], engine_index=0))
        router.deliver(error_output("guilty", ERROR))
        await settle()
        assert (client.failed(), client.aborted) == (["copy"], ["copy"])
        assert list(router.journal) == ["further", "other"]

    asyncio.run(scenario())


def test_a_verdict_of_another_api_server_ends_the_copies_here() -> None:
    async def scenario() -> None:
        client, router, reports = await made()
        await router.add(client.add, client, request("copy"))
        router.follow(view(entry(request())))
        await settle()
        assert client.failed() == ["copy"]
        assert [type(r) for r in reports] == [RequestsRefused]

    asyncio.run(scenario())


def test_a_request_on_trial_is_marked_for_the_engine_core_and_no_client_can_mark_or_unmark_one() -> None:
    async def scenario() -> None:
        client, router, _ = await made()
        await router.add(client.add, client, request("clever", extra_args={ON_TRIAL: True, "a": 1}))
        router.follow(view(entry(request(), is_refused=False)))
        await router.add(client.add, client, request("again"))
        assert [r.sampling_params.extra_args for r in client.sent] == [{"a": 1}, {ON_TRIAL: True}]

    asyncio.run(scenario())


def test_a_request_on_trial_that_is_lost_with_its_engine_core_ends_at_once() -> None:
    async def scenario() -> None:
        client, router, _ = await made()
        on_trial = view(entry(request(), is_refused=False))
        router.follow(on_trial)
        await router.add(client.add, client, request("again"))
        await router.add(client.add, client, request("other", tokens=(5,)))
        [engine] = on_trial.engines
        lost = structs.replace(engine, state=EngineState.RESTARTING, restarts=1)
        router.follow(structs.replace(on_trial, engines=(lost,)))
        await settle()
        assert client.failed() == ["again"]
        assert list(router.journal) == ["other"]

    asyncio.run(scenario())


def test_open_requests_for_an_adapter_that_one_engine_core_cannot_load_go_on_elsewhere() -> None:
    async def scenario() -> None:
        client, router, _ = await made()
        lora = LoRARequest("a", 1, "/nowhere")
        for name in ("first", "elsewhere"):
            await router.add(client.add, client, request(name, lora=lora))
        router.deliver(error_output("first", adapter_error("i1")))
        await settle()
        assert list(router.journal) == ["elsewhere"]
        await router.add(client.add, client, request("new", lora=lora))
        assert client.failed() == ["new"]

    asyncio.run(scenario())
