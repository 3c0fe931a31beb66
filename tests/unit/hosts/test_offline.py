"""The client of `vllm.LLM` waits for no engine core that has ended."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine.exceptions import EngineDeadError

from holdfast.core.config import RuntimeSettings
from holdfast.core.protocol.events import InstanceView
from holdfast.hosts.vllm.serving.offline import end_with_instance, say_why

WHY = "no engine core is left"


class Client(SimpleNamespace):
    """The part of the host's client that is used."""


def view(defeat: str | None) -> InstanceView:
    return InstanceView(engines=(), settings=RuntimeSettings(), defeat=defeat)


@pytest.fixture
def told() -> tuple[Client, Callable[[InstanceView], None]]:
    calls: list[Callable[[InstanceView], None]] = []
    client = Client(
        outputs_queue=queue.Queue(), utility_results={1: Future()}, resources=SimpleNamespace(engine_dead=False)
    )
    end_with_instance(client, calls.append)
    return client, calls[0]


def test_waits_for_outputs_and_answers_end_with_the_reason(told: tuple[Client, Any]) -> None:
    client, tell = told
    tell(view(None))
    assert client.outputs_queue.empty()
    tell(view(WHY))
    tell(view(WHY))
    with pytest.raises(EngineDeadError, match=WHY):
        raise client.outputs_queue.get_nowait()
    assert client.outputs_queue.empty()
    with pytest.raises(EngineDeadError, match=WHY):
        client.utility_results[1].result(0)
    assert client.resources.engine_dead, "later calls raise at once"


def test_the_error_of_the_host_names_the_reason_of_the_end(told: tuple[Client, Any]) -> None:
    """The host replaces every error by its own once an engine core is dead."""

    def dead(client: Any) -> Any:
        raise EngineDeadError()

    client, tell = told
    with pytest.raises(EngineDeadError, match="See stack trace"):
        say_why(dead, client)
    tell(view(WHY))
    with pytest.raises(EngineDeadError, match=WHY):
        say_why(dead, client)
    assert say_why(lambda client: 5, client) == 5
