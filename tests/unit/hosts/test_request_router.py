"""The request router when engine cores are lost at awkward moments."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

from holdfast.core.config import RuntimeSettings
from holdfast.core.protocol.events import EngineStatus, InstanceView
from holdfast.core.protocol.link_messages import PoisonRequestEnded
from holdfast.core.requests.interruptions import Interruption
from holdfast.core.states import EngineState
from holdfast.hosts.vllm.serving.client_hooks import _set_every_state
from holdfast.hosts.vllm.serving.error_reasons import error_reason
from holdfast.hosts.vllm.serving.lost_engines import EngineLost
from holdfast.hosts.vllm.serving.request_router import RequestRouter

ENGINES = [b"\x00\x00", b"\x01\x00"]


class Socket:
    """Socket on which replacements report ready."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[list[bytes]] = asyncio.Queue()

    def setsockopt(self, option: int, value: int) -> None:
        pass

    async def recv_multipart(self) -> list[bytes]:
        return await self.said.get()


class Client:
    """The part of the host's client that the router uses."""

    def __init__(self) -> None:
        self.input_socket = Socket()
        self.core_engines = ENGINES
        self.engine_ranks_managed = [0, 1]
        self.reqs_in_flight: dict[str, bytes] = {}
        self.engine_inflight: dict[bytes, int] = {}
        self.outputs_queue: asyncio.Queue[Any] = asyncio.Queue()


def view(*engines: tuple[EngineState, int]) -> InstanceView:
    views = (EngineStatus(engine_id=i, status="", state=s, epoch=0, restarts=r) for i, (s, r) in enumerate(engines))
    return InstanceView(engines=tuple(views), settings=RuntimeSettings())


def request(request_id: str, rank: int | None = None) -> Any:
    return SimpleNamespace(
        request_id=request_id,
        sampling_params=None,
        mm_features=None,
        prompt_embeds=None,
        prompt_token_ids=[1],
        resumable=False,
        data_parallel_rank=rank,
        pooling_params=None,
        lora_request=None,
    )


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


UP, DOWN, OUT = EngineState.HEALTHY, EngineState.RESTARTING, EngineState.LEFT_OUT


async def both_lost_one_after_another() -> tuple[Client, RequestRouter]:
    """Lose the second engine core while the ready replacement of the first does not serve yet."""
    client = Client()
    router = RequestRouter(client)
    router.bind(asyncio.get_running_loop())
    router.follow(view((DOWN, 1), (UP, 0)))
    await settle()
    client.input_socket.said.put_nowait([ENGINES[0], b""])
    await settle()
    router.follow(view((DOWN, 1), (DOWN, 1)))
    await settle()
    return client, router


def test_a_loss_before_an_earlier_replacement_serves_is_handled() -> None:
    async def scenario() -> None:
        client, router = await both_lost_one_after_another()
        client.input_socket.said.put_nowait([ENGINES[1], b""])
        await settle()
        router.follow(view((UP, 1), (UP, 1)))
        await settle()
        assert not any(map(router.is_lost, ENGINES))

    asyncio.run(scenario())


def test_a_request_that_cannot_be_sent_again_ends_alone() -> None:
    async def scenario() -> None:
        sent: list[str] = []

        async def add(client: Any, request: Any) -> None:
            if client.is_hurt and request.request_id == "bad":
                raise ValueError("hurt")
            client.reqs_in_flight[request.request_id] = ENGINES[int(client.is_hurt)]
            sent.append(request.request_id)

        client = Client()
        client.is_hurt = False  # type: ignore[attr-defined]
        router = RequestRouter(client)
        router.bind(asyncio.get_running_loop())
        for name in ("bad", "good"):
            await router.add(add, client, request(name))
        client.is_hurt = True  # type: ignore[attr-defined]
        router.follow(view((DOWN, 1), (UP, 0)))
        await settle()
        assert sent == ["bad", "good", "good"]
        client.outputs_queue.get_nowait()  # that nothing runs on the lost one
        failed = client.outputs_queue.get_nowait()
        assert [o.request_id for o in failed.outputs] == ["bad"]
        assert list(router.journal) == ["good"]

    asyncio.run(scenario())


def test_a_request_whose_inputs_were_not_kept_ends_with_that_reason_and_costs_no_other() -> None:
    async def scenario() -> None:
        async def add(client: Any, request: Any) -> None:
            client.reqs_in_flight[request.request_id] = ENGINES[0]

        client = Client()
        router = RequestRouter(client, max_input_bytes=4)
        router.bind(asyncio.get_running_loop())
        large = request("large")
        large.prompt_embeds = SimpleNamespace(nbytes=5)
        for asked in (large, request("small")):
            await router.add(add, client, asked)
        router.follow(view((DOWN, 1), (UP, 0)))
        await settle()
        client.outputs_queue.get_nowait()  # that nothing runs on the lost one
        assert [o.request_id for o in client.outputs_queue.get_nowait().outputs] == ["large"]
        assert "--max-journal-mib" in str(error_reason("large"))
        assert list(router.journal) == ["small"]

    asyncio.run(scenario())


class Siblings:
    """Two engine cores, of which one is always up and dies of a deadly request."""

    def __init__(self) -> None:
        self.client = Client()
        self.router = RequestRouter(self.client, detects_poison=True)
        self.router.bind(asyncio.get_running_loop())
        self.up, self.lost, self.there = 0, [0, 0], [""]
        self.blamed: list[PoisonRequestEnded] = []
        self.router.on_poison = self.blamed.append

    async def add(self, client: Any, request: Any) -> None:
        client.reqs_in_flight[request.request_id] = ENGINES[self.up]
        self.there.append(request.request_id)

    async def send(self, *names: str) -> None:
        for name in names:
            params = SimpleNamespace(extra_args=None, clone=lambda: SimpleNamespace(extra_args=None))
            sent = request(name)
            sent.sampling_params = params
            await self.router.add(self.add, self.client, sent)

    async def die(self) -> None:
        self.lost[self.up] += 1
        self.there, self.up = [], 1 - self.up
        self.client.input_socket.said.put_nowait([ENGINES[self.up], b""])
        states = (UP if engine == self.up else DOWN for engine in range(2))
        self.router.follow(view(*zip(states, self.lost, strict=True)))
        await settle()

    async def get_on(self) -> None:
        outputs = [EngineCoreOutput(name, [1, 2, 3]) for name in self.there]
        self.router.deliver(EngineCoreOutputs(engine_index=self.up, outputs=outputs))
        await settle()


def test_a_request_that_kills_every_engine_core_ends_and_the_others_resume_one_by_one() -> None:
    async def scenario() -> None:
        siblings = Siblings()
        await siblings.send("good", "deadly", "fine")
        for _ in range(12):
            await (siblings.die() if "deadly" in siblings.there else siblings.get_on())
        said = [siblings.client.outputs_queue.get_nowait() for _ in range(siblings.client.outputs_queue.qsize())]
        assert [o.request_id for outputs in said for o in outputs.outputs] == ["deadly"]
        assert sum(siblings.lost) == 4
        assert sorted(siblings.router.journal) == sorted(siblings.there) == ["fine", "good"]
        [blamed] = siblings.blamed
        assert (blamed.request_id, blamed.engine_id) == ("deadly", 1)
        assert f"makes the server fail and was ended (incident {blamed.incident})" in str(error_reason("deadly"))

    asyncio.run(scenario())


def test_losses_before_this_process_started_are_ignored() -> None:
    async def scenario() -> None:
        client = Client()
        router = RequestRouter(client)
        router.assume_restarts({0: 3, 1: 0})
        router.bind(asyncio.get_running_loop())
        router.follow(view((UP, 3), (UP, 0)))
        await settle()
        assert not any(map(router.is_lost, ENGINES))
        router.follow(view((DOWN, 4), (UP, 0)))
        await settle()
        assert [router.is_lost(engine) for engine in ENGINES] == [True, False]

    asyncio.run(scenario())


class Sibling:
    """Sibling of a lost engine core, which takes requests that name no rank."""

    def __init__(self) -> None:
        self.client, self.sent = Client(), list[tuple[str, int | None]]()
        self.router = RequestRouter(self.client)
        self.router.bind(asyncio.get_running_loop())

    async def add(self, client: Any, request: Any) -> None:
        self.sent.append((request.request_id, request.data_parallel_rank))

    async def follow(self, state: EngineState, losses: int) -> None:
        self.router.follow(view((state, losses), (UP, 0)))
        await settle()


def test_requests_that_name_a_left_out_engine_core_go_to_a_sibling_even_from_waiting() -> None:
    async def scenario() -> None:
        sibling = Sibling()
        await sibling.follow(DOWN, 1)
        await sibling.router.add(sibling.add, sibling.client, request("waits", rank=0))
        assert sibling.sent == []
        await sibling.follow(OUT, 2)
        await sibling.router.add(sibling.add, sibling.client, request("comes", rank=0))
        await sibling.router.add(sibling.add, sibling.client, request("names the other", rank=1))
        assert sibling.sent == [("waits", None), ("comes", None), ("names the other", 1)]
        await sibling.follow(DOWN, 3)
        await sibling.router.add(sibling.add, sibling.client, request("waits again", rank=0))
        assert len(sibling.sent) == 3

    asyncio.run(scenario())


def test_an_engine_core_left_out_before_this_process_started_is_lost() -> None:
    async def scenario() -> None:
        sibling = Sibling()
        sibling.router.assume_restarts({0: 2, 1: 0})
        await sibling.follow(OUT, 2)
        await sibling.router.add(sibling.add, sibling.client, request("comes", rank=0))
        assert sibling.sent == [("comes", None)]
        sibling.client.input_socket.said.put_nowait([ENGINES[0], b""])
        await settle()
        await sibling.follow(UP, 2)
        assert not sibling.router.is_lost(ENGINES[0])

    asyncio.run(scenario())


def test_the_host_is_told_that_nothing_runs_or_waits_on_a_lost_engine_core() -> None:
    async def scenario() -> None:
        client = Client()
        router = RequestRouter(client)
        router.bind(asyncio.get_running_loop())
        router.follow(view((UP, 0), (DOWN, 1)))
        await settle()
        said = client.outputs_queue.get_nowait()
        assert (said.engine_index, said.outputs) == (1, [])
        assert (said.scheduler_stats.num_running_reqs, said.scheduler_stats.num_waiting_reqs) == (0, 0)
        assert client.outputs_queue.empty()

    asyncio.run(scenario())


def test_a_late_answer_to_a_greeting_is_no_ready_message() -> None:
    async def scenario() -> None:
        client, router = await both_lost_one_after_another()
        client.input_socket.said.put_nowait([ENGINES[1], b"4711", b""])
        await settle()
        router.follow(view((UP, 1), (UP, 1)))
        await settle()
        assert [router.is_lost(engine) for engine in ENGINES] == [False, True]

    asyncio.run(scenario())


@pytest.mark.parametrize(("call_id", "is_heard"), [(5, False), (6, True), (-2, True)])
def test_calls_of_a_dead_api_server_are_not_answered_to_its_replacement(call_id: int, is_heard: bool) -> None:
    from vllm.v1.engine import EngineCoreOutputs, UtilityOutput

    client = Client()
    client.utility_results = {6: None}  # type: ignore[attr-defined]
    taken = RequestRouter(client).deliver(EngineCoreOutputs(utility_output=UtilityOutput(call_id)))
    assert (taken.utility_output is not None) is is_heard


async def no_wait() -> str:
    return "set"


def test_a_call_that_sets_state_waits_for_the_replacement_of_a_lost_engine_core() -> None:
    async def scenario() -> None:
        client = Client()
        router = RequestRouter(client)
        router.bind(asyncio.get_running_loop())
        router.follow(view((DOWN, 1), (UP, 0)))
        await settle()
        calling = asyncio.create_task(router.set_state(no_wait, ENGINES[0]))
        await settle()
        assert not calling.done()
        client.input_socket.said.put_nowait([ENGINES[0], b""])
        await settle()
        router.follow(view((UP, 1), (UP, 0)))
        assert await calling == "set"

    asyncio.run(scenario())


def test_what_was_asked_before_a_call_reaches_the_replacement_before_the_call() -> None:
    """A pause that waits for the end of open answers must find them there."""

    async def scenario() -> None:
        order: list[str] = []

        async def add(client: Any, request: Any) -> None:
            client.reqs_in_flight[request.request_id] = ENGINES[0]
            order.append(request.request_id)
            await settle()

        async def pause() -> str:
            order.append("pause")
            return "paused"

        client = Client()
        router = RequestRouter(client)
        router.bind(asyncio.get_running_loop())
        for name in "abc":
            await router.add(add, client, request(name, rank=0))
        router.follow(view((DOWN, 1), (DOWN, 1)))
        await settle()
        calling = asyncio.create_task(router.set_state(pause, ENGINES[0]))
        await settle()
        client.input_socket.said.put_nowait([ENGINES[0], b""])
        await settle()
        router.follow(view((UP, 1), (DOWN, 1)))
        assert await calling == "paused"
        assert "".join(order) == "abcabcpause"

    asyncio.run(scenario())


def test_a_call_that_sets_state_and_meets_the_loss_is_made_again_with_the_replacement() -> None:
    async def scenario() -> None:
        client, calls = Client(), []

        async def call() -> str:
            calls.append("called")
            if len(calls) == 1:
                await asyncio.Event().wait()  # the lost engine core never answers
            return "set"

        router = RequestRouter(client)
        router.bind(asyncio.get_running_loop())
        calling = asyncio.create_task(router.set_state(call, ENGINES[0]))
        await settle()
        router.follow(view((DOWN, 1), (UP, 0)))
        await settle()
        client.input_socket.said.put_nowait([ENGINES[0], b""])
        await settle()
        router.follow(view((UP, 1), (UP, 0)))
        assert await calling == "set"
        assert len(calls) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(("state", "why"), [(OUT, "left out"), (DOWN, "not replaced within")])
def test_a_call_that_sets_state_ends_where_no_replacement_comes(state: EngineState, why: str) -> None:
    async def scenario() -> None:
        client = Client()
        router = RequestRouter(client, state_call_timeout_s=0.05)
        router.bind(asyncio.get_running_loop())
        router.follow(view((state, 1), (UP, 0)))
        await settle()
        with pytest.raises(EngineLost, match=why):
            await router.set_state(no_wait, ENGINES[0])

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({ENGINES[0]: "a", ENGINES[1]: "b"}, ["a", "b"]),
        ({ENGINES[0]: EngineLost("left out"), ENGINES[1]: "b"}, ["b"]),
        ({ENGINES[0]: EngineLost("left out"), ENGINES[1]: EngineLost("left out")}, EngineLost),
        ({ENGINES[0]: "a", ENGINES[1]: ValueError("no such method")}, ValueError),
    ],
    ids=["all", "one left out", "all left out", "an error"],
)
def test_state_is_set_in_every_engine_core_that_is_not_left_out(outcomes: dict[bytes, Any], expected: Any) -> None:
    async def call(method: str, *args: Any, engine: bytes) -> Any:
        if isinstance(outcomes[engine], Exception):
            raise outcomes[engine]
        return outcomes[engine]

    client = SimpleNamespace(core_engines=ENGINES, _call_utility_async=call)
    if isinstance(expected, list):
        assert asyncio.run(_set_every_state(client, "sleep", 1)) == expected
    else:
        with pytest.raises(expected):
            asyncio.run(_set_every_state(client, "sleep", 1))


# ---- what a repair costs the requests


class Costs:
    """Listener that keeps what it is told."""

    def __init__(self) -> None:
        self.interruptions: list[Interruption] = []
        self.moved_tokens: list[int] = []
        self.failures = 0

    def interrupted(self, interruption: Interruption) -> None:
        self.interruptions.append(interruption)

    def moved(self, tokens: int) -> None:
        self.moved_tokens.append(tokens)

    def failed(self) -> None:
        self.failures += 1


def token(request_id: str, engine: int, ends: bool = False) -> EngineCoreOutputs:
    reason = FinishReason.STOP if ends else None
    return EngineCoreOutputs(engine_index=engine, outputs=[EngineCoreOutput(request_id, [7], finish_reason=reason)])


async def served(costs: Costs) -> tuple[Client, RequestRouter]:
    """Serve a request that has a token."""

    async def add(client: Any, request: Any) -> None:
        client.reqs_in_flight[request.request_id] = ENGINES[client.engine]

    client = Client()
    client.engine = 0  # type: ignore[attr-defined]
    router = RequestRouter(client)
    router.bind(asyncio.get_running_loop())
    router.watch.report = costs
    await router.add(add, client, request("a"))
    router.deliver(token("a", 0))
    return client, router


def test_a_moved_request_is_counted_and_its_interruption_ends_with_its_next_token() -> None:
    async def scenario() -> None:
        costs = Costs()
        client, router = await served(costs)
        client.engine = 1  # type: ignore[attr-defined]
        router.follow(view((DOWN, 1), (UP, 0)))
        await settle()
        assert (costs.moved_tokens, costs.interruptions) == ([2], [])  # a prompt of one token, and the one delivered
        router.deliver(token("a", 1))
        assert len(costs.interruptions) == 1
        router.deliver(token("a", 1))
        assert len(costs.interruptions) == 1

    asyncio.run(scenario())


def test_a_request_that_ends_before_the_repair_is_not_interrupted() -> None:
    async def scenario() -> None:
        costs = Costs()
        _, router = await served(costs)
        router.deliver(token("a", 0, ends=True))
        router.follow(view((EngineState.FAULTED, 0), (UP, 0)))
        router.follow(view((UP, 1), (UP, 0)))
        await settle()
        assert costs.interruptions == []

    asyncio.run(scenario())


def test_a_pause_that_an_operator_ordered_interrupts_nothing() -> None:
    async def scenario() -> None:
        costs = Costs()
        _, router = await served(costs)
        paused = EngineStatus(engine_id=0, status="", state=EngineState.PAUSED, paused_by_operator=True)
        router.follow(InstanceView(engines=(paused,), settings=RuntimeSettings()))
        await settle()
        router.follow(view((UP, 0), (UP, 0)))
        await settle()
        router.deliver(token("a", 0))
        assert costs.interruptions == []

    asyncio.run(scenario())
