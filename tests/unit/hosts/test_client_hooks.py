"""Death notices of engine cores, which clients ignore while the instance lives."""

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

DEATH_NOTICE = [zmq.Frame(EngineCoreProc.ENGINE_CORE_DEAD)]


@pytest.fixture
def resources() -> Iterator[BackgroundResources]:
    """The host's own resources; the state of this process is restored afterwards."""
    before = client_hooks._has_ended
    yield BackgroundResources(ctx=zmq.Context.instance())
    client_hooks._has_ended = before


def hear(resources: BackgroundResources, frames: list[zmq.Frame]) -> None:
    _validate_alive(BackgroundResources.validate_alive, resources, frames)


def test_the_client_lives_as_long_as_the_instance(resources: BackgroundResources) -> None:
    serve_until(lambda: False)
    hear(resources, DEATH_NOTICE)
    assert not resources.engine_dead


def test_the_client_ends_with_the_instance(resources: BackgroundResources) -> None:
    serve_until(lambda: True)
    with pytest.raises(EngineDeadError):
        hear(resources, DEATH_NOTICE)
    assert resources.engine_dead


def test_without_an_instance_the_host_decides(resources: BackgroundResources) -> None:
    serve_until(client_hooks._no_instance)
    with pytest.raises(EngineDeadError):
        hear(resources, DEATH_NOTICE)


def test_a_death_notice_decodes_to_empty_outputs() -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a death notice cannot be decoded")

    outputs = _Decoder(SimpleNamespace(decode=refuse), SimpleNamespace(deliver=refuse)).decode(DEATH_NOTICE)  # type: ignore[arg-type]
    assert not (outputs.outputs or outputs.finished_requests or outputs.scheduler_stats or outputs.utility_output)
