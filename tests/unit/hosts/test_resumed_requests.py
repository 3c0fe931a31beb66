"""A request that is sent again waits for the end of a caller's pause; a new one gets the host's answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.engine.resumed_requests import _make_request, _refuse_while_paused
from holdfast.hosts.vllm.protocol import HISTORY


def made(extra_args: dict[str, Any] | None) -> Any:
    """Make the scheduler's request of a request with these private values."""
    params = SimpleNamespace(extra_args=extra_args)
    request = SimpleNamespace(request_id="a", sampling_params=params)
    engine = SimpleNamespace(structured_output_manager=None)
    return _make_request(lambda engine, request: (SimpleNamespace(request_id="a"), 0), engine, request)[0]


@pytest.mark.parametrize(
    ("extra_args", "is_refused"),
    [(None, True), ({"other": 1}, True), ({HISTORY: []}, False)],
    ids=["new", "new with arguments", "sent again before its first token"],
)
def test_a_paused_host_refuses_new_requests_only(extra_args: dict[str, Any] | None, is_refused: bool) -> None:
    """The client of a request that is sent again was promised an answer before the pause."""
    assert _refuse_while_paused(lambda engine, request: True, None, made(extra_args)) is is_refused


def test_a_host_that_is_not_paused_refuses_nothing() -> None:
    """The host's own judgement of a new request stays."""
    assert _refuse_while_paused(lambda engine, request: False, None, made(None)) is False
