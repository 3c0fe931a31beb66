"""The error of a grammar names the request."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from holdfast.core.faults.classification import default_classifier, fault_of
from holdfast.hosts.vllm.engine.grammar_errors import name_requests_of_grammar_errors


def test_the_fault_of_a_grammar_that_raises_names_the_request_as_the_cause() -> None:
    def accept(request: object, tokens: object) -> bool:
        if tokens:
            raise RuntimeError("no such state")
        return True

    manager, request = SimpleNamespace(accept_tokens=accept), SimpleNamespace(request_id="r")
    name_requests_of_grammar_errors(manager)
    assert manager.accept_tokens(request, [])
    with pytest.raises(RuntimeError) as raised:
        manager.accept_tokens(request, [5])
    fault = fault_of(raised.value, default_classifier(), engine_id=0)
    assert (fault.request_ids, fault.names_cause) == (("r",), True)
