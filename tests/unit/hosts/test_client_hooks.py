"""An engine core that raises tells its clients that it is dead: no news while another one takes its place."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

pytest.importorskip("vllm")

from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.core_client import BackgroundResources
from vllm.v1.engine.exceptions import EngineDeadError

from holdfast.hosts.vllm.serving import client_hooks
from holdfast.hosts.vllm.serving.client_hooks import _Decoder, _validate_alive, serve_until

LAST_WORD = [zmq.Frame(EngineCoreProc.ENGINE_CORE_DEAD)]


@pytest.fixture
def resources() -> Iterator[BackgroundResources]:
    """The host's own; what is kept of this process is forgotten afterwards."""
    before = client_hooks._has_ended
    yield BackgroundResources(ctx=zmq.Context.instance())
    client_hooks._has_ended = before


def hear(resources: BackgroundResources, frames: list[zmq.Frame]) -> None:
    _validate_alive(BackgroundResources.validate_alive, resources, frames)


def test_the_client_lives_on_while_the_instance_does(resources: BackgroundResources) -> None:
    serve_until(lambda: False)
    hear(resources, LAST_WORD)
    assert not resources.engine_dead


def test_it_ends_with_the_instance(resources: BackgroundResources) -> None:
    serve_until(lambda: True)
    with pytest.raises(EngineDeadError):
        hear(resources, LAST_WORD)
    assert resources.engine_dead


def test_before_anybody_knows_of_an_instance_the_host_decides(resources: BackgroundResources) -> None:
    serve_until(client_hooks._no_instance)
    with pytest.raises(EngineDeadError):
        hear(resources, LAST_WORD)


def test_to_whoever_reads_outputs_it_says_nothing() -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("it is no message that could be decoded")

    outputs = _Decoder(SimpleNamespace(decode=refuse), SimpleNamespace(deliver=refuse)).decode(LAST_WORD)  # type: ignore[arg-type]
    assert not (outputs.outputs or outputs.finished_requests or outputs.scheduler_stats or outputs.utility_output)
