"""Streaming sessions of a serving process when engine cores are lost: the next turn knows all turns before it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason

from holdfast.core.config import RuntimeSettings
from holdfast.core.protocol.events import EngineStatus, InstanceView
from holdfast.core.requests.journal import RequestJournal
from holdfast.core.states import EngineState
from holdfast.hosts.vllm.protocol import DRAWN, HISTORY
from holdfast.hosts.vllm.serving.request_router import RequestRouter
from holdfast.hosts.vllm.serving.streaming_sessions import SessionLost

ENGINES = [b"\x00\x00", b"\x01\x00"]


class Client(SimpleNamespace):
    """The part of the host's client that the router uses."""


class Bench:
    """A router over two engine cores; `sent` is what engine cores were sent of session `s`, without the last message.

    An item is: prompt, history, tokens drawn in earlier turns, and whether more input may come.
    """

    def __init__(self) -> None:
        self.said: asyncio.Queue[list[bytes]] = asyncio.Queue()
        self.client = Client(
            input_socket=SimpleNamespace(setsockopt=lambda *_: None, recv_multipart=self.said.get),
            core_engines=ENGINES,
            engine_ranks_managed=[0, 1],
            reqs_in_flight={},
            engine_inflight={},
            outputs_queue=asyncio.Queue(),
        )
        self.router = RequestRouter(self.client, detects_poison=True)
        self.router.bind(asyncio.get_running_loop())
        self.sent: list[tuple[list[int], list[int] | None, int, bool]] = []
        self.losses, self.at = [0, 0], 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def _send(self, client: Any, request: Any) -> None:
        client.reqs_in_flight[request.request_id] = ENGINES[self.at]
        extra = request.sampling_params.extra_args or {}
        prompt = list(request.prompt_token_ids)
        self.sent.append((prompt, extra.get(HISTORY), extra.get(DRAWN, 0), request.resumable))
        await self.gate.wait()

    async def say(self, *prompt: int, resumable: bool = True, request_id: str = "s", picture: Any = None) -> None:
        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=list(prompt),
            mm_features=[feature(picture)] if picture is not None else None,
            sampling_params=SamplingParams(),
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            resumable=resumable,
        )
        await self.router.add(self._send, self.client, request)
        await settle()

    async def end(self) -> None:
        await self.say(0, resumable=False)

    def answer(self, *tokens: int, ends: FinishReason | None = None) -> list[Any]:
        output = EngineCoreOutput("s", list(tokens), finish_reason=ends)
        return list(self.router.deliver(EngineCoreOutputs(engine_index=self.at, outputs=[output])).outputs)

    async def lose_engine(self) -> None:
        """Lose the engine core of the session; the sibling is there, and sessions move to it."""
        self.losses[self.at] += 1
        self.at = 1 - self.at
        self.said.put_nowait([ENGINES[self.at], b""])
        states = [EngineState.HEALTHY if engine == self.at else EngineState.RESTARTING for engine in range(2)]
        views = (
            EngineStatus(engine_id=i, status="", state=state, epoch=0, restarts=self.losses[i])
            for i, state in enumerate(states)
        )
        self.router.follow(InstanceView(engines=tuple(views), settings=RuntimeSettings()))
        await settle()


def feature(picture: Any) -> MultiModalFeatureSpec:
    return MultiModalFeatureSpec(picture, "image", "name", PlaceholderRange(offset=1, length=1))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def scenario(run: Callable[[Bench], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    async def on_a_bench() -> None:
        await run(Bench())

    return lambda: asyncio.run(on_a_bench())


STOP, ERROR = FinishReason.STOP, FinishReason.ERROR


@scenario
async def test_an_engine_core_that_is_lost_between_two_turns_is_missed_by_none(bench: Bench) -> None:
    await bench.say(1, 2)
    bench.answer(11, 12)
    bench.answer(13, ends=STOP)
    await bench.lose_engine()
    assert len(bench.sent) == 1, "no engine core is needed before the next input"
    await bench.say(3, 4)
    assert bench.sent[1:] == [([1, 2, 11, 12, 3, 4], [], 3, True)]
    bench.answer(14, ends=STOP)
    await bench.say(5)
    assert bench.sent[2:] == [([5], None, 0, True)], "the engine core knows the session again"


@scenario
async def test_a_session_resumes_within_a_turn_with_the_inputs_that_wait(bench: Bench) -> None:
    await bench.say(1)
    await bench.say(2)
    bench.answer(11, ends=STOP)
    bench.answer(12)
    await bench.say(3)
    await bench.end()
    await bench.lose_engine()
    assert bench.sent[4:] == [([1, 2], [12], 1, True), ([3], None, 0, True), ([0], None, 0, False)]


@scenario
async def test_inputs_that_arrive_while_a_session_is_sent_again_come_behind_those_before(bench: Bench) -> None:
    await bench.say(1)
    await bench.say(2)
    bench.gate.clear()
    await bench.lose_engine()
    await bench.say(3)
    assert [prompt for prompt, *_ in bench.sent[2:]] == [[1]]
    bench.gate.set()
    await settle()
    assert [prompt for prompt, *_ in bench.sent[2:]] == [[1], [2], [3]]


@scenario
async def test_a_second_loss_while_a_session_is_sent_again_sends_all_of_it_anew(bench: Bench) -> None:
    await bench.say(1)
    await bench.say(2)
    bench.gate.clear()
    await bench.lose_engine()
    await bench.lose_engine()
    bench.gate.set()
    await settle()
    assert [prompt for prompt, *_ in bench.sent[2:]] == [[1], [1], [2]]


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize("ends_first", [False, True])
def test_a_finished_session_leaves_the_journal(is_lost: bool, ends_first: bool) -> None:
    async def run() -> None:
        bench = Bench()
        await bench.say(1)
        if ends_first:
            await bench.end()
        bench.answer(11, ends=STOP)
        if is_lost:
            await bench.lose_engine()
        if not ends_first:
            await bench.end()
        assert list(bench.router.journal) == []
        sent = len(bench.sent)
        await bench.lose_engine()
        assert len(bench.sent) == sent, "sent again as a ghost"

    asyncio.run(run())


@scenario
async def test_a_session_that_is_parked_as_engine_cores_die_is_no_suspect(bench: Bench) -> None:
    await bench.say(1)
    bench.answer(11, ends=STOP)
    for _ in range(6):
        await bench.lose_engine()
    await bench.say(2)
    assert bench.sent[-1] == ([1, 2], [], 1, True)


@scenario
async def test_the_trial_of_a_session_ends_with_its_turn(bench: Bench) -> None:
    """The other suspect does not wait for the next input of a client."""
    await bench.say(1)
    await bench.say(1, request_id="other")
    for _ in range(2):
        await bench.lose_engine()
    assert [prompt for prompt, *_ in bench.sent[4:]] == [[1]], "one at a time"
    bench.answer(11, ends=STOP)
    await settle()
    assert len(bench.sent) == 6


@scenario
async def test_a_session_that_ended_with_an_error_is_not_begun_anew_with_its_next_input(bench: Bench) -> None:
    await bench.say(1)
    await bench.say(2)
    ended = bench.answer(ends=ERROR)
    assert [str(output.finish_reason) for output in ended] == ["error", "error"], "one for each input"
    with pytest.raises(SessionLost):
        await bench.say(3)
    await bench.end()
    assert len(bench.sent) == 2
    await bench.say(4)
    assert bench.sent[2:] == [([4], None, 0, True)], "another session"


@scenario
async def test_pictures_of_later_turns_move_to_their_places_within_the_bound_of_the_journal(bench: Bench) -> None:
    first, second, third = torch.zeros(4), torch.ones(4), torch.ones(40)
    bench.router.journal = bench.router._sessions._journal = RequestJournal(max_input_bytes=40)
    await bench.say(1, 2, picture=first)
    bench.answer(11, 12, ends=STOP)
    await bench.say(3, 4, picture=second)
    await bench.lose_engine()
    [kept] = [bench.router.journal.get("s")]
    assert kept is not None
    assert [(f.data is picture, f.mm_position.offset) for f, picture in zip(
        kept.request.mm_features, (first, second), strict=True
    )] == [(True, 1), (True, 4)]  # fmt: skip
    assert bench.router.journal.input_bytes == 32
    assert bench.sent[2:] == [([1, 2, 11, 3, 4], [], 2, True)]
    bench.answer(13, ends=STOP)
    await bench.say(5, 6, picture=third)
    await bench.lose_engine()
    assert len(bench.sent) == 4, "the session has ended: its inputs did not fit"
    with pytest.raises(SessionLost):
        await bench.say(7)
    assert bench.router.journal.input_bytes == 0


@scenario
async def test_a_session_that_is_refused_at_its_first_input_stays_refused(bench: Bench) -> None:
    bench.router.guilty = SimpleNamespace(admit=lambda _: "refused")  # type: ignore[assignment]
    await bench.say(1)
    with pytest.raises(SessionLost):
        await bench.say(2)
    assert bench.sent == []


@scenario
async def test_an_aborted_session_is_forgotten(bench: Bench) -> None:
    async def abort(client: Any, request_ids: Any) -> None: ...

    await bench.say(1)
    bench.answer(ends=ERROR)
    await bench.router.abort(abort, bench.client, ["s"])
    await bench.say(2)
    await bench.lose_engine()
    assert [prompt for prompt, *_ in bench.sent] == [[1], [2], [2]]
