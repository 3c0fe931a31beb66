"""Whatever is sent, the answer is one of those that the reference documents, and the server goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import status_code_conformance
from starlette.testclient import TestClient

from support.control_plane import MemoryControl
from support.http_app import BEARER, TOKEN, build_app

JSON = {"Content-Type": "application/json"}


def _obedient_control() -> MemoryControl:
    control = MemoryControl(((0, 1), (2,))).attach()
    control.obedient = True
    return control


@pytest.fixture(scope="module")
def control() -> MemoryControl:
    return _obedient_control()


@pytest.fixture(scope="module")
def client(control: MemoryControl) -> Iterator[TestClient]:
    # One event loop for all examples: a new one for each request would take most of the time.
    with TestClient(build_app(control), headers=BEARER) as client:
        yield client


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
INSTRUCTIONS = st.sampled_from(["pause", "resume", "retry", "restart-worker", "restart-engine"])
PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "engine_id": st.integers(0, 2) | ANY_JSON,
        "engine_ids": st.lists(st.integers(0, 2), max_size=3) | ANY_JSON,
        "rank": st.integers(-1, 2) | ANY_JSON,
        "ranks": st.lists(st.integers(-1, 2), max_size=3) | ANY_JSON,
        "mode": st.sampled_from(["hard", "soft"]) | ANY_JSON,
        "x": ANY_JSON,
    },
)
ALMOST_RIGHT = st.fixed_dictionaries(
    {},
    optional={
        "instruction": INSTRUCTIONS | ANY_JSON,
        "params": PARAMS | ANY_JSON,
        "fault_tolerance_instruction": INSTRUCTIONS | ANY_JSON,
        "fault_tolerance_timeout": st.floats(0, 0.01) | ANY_JSON,
        "fault_tolerance_params": PARAMS | ANY_JSON,
        "phase": st.just("forward") | ANY_JSON,
        "times": ANY_JSON,
        "message": st.text(max_size=250),
    },
)
PATHS = st.sampled_from(["/fault_tolerance/apply", "/v1/fault_tolerance/apply", "/fault_tolerance/inject"])
DOCUMENTED = {200, 202, 400, 404, 409, 413}
BRIEF = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@BRIEF
@given(path=PATHS, body=st.binary(max_size=200))
def test_random_bytes_get_a_documented_answer(client: TestClient, path: str, body: bytes) -> None:
    assert client.post(path, content=body, headers=JSON).status_code in DOCUMENTED


@BRIEF
@given(path=PATHS, body=ALMOST_RIGHT)
def test_bodies_that_are_almost_right_get_a_documented_answer(
    client: TestClient, control: MemoryControl, path: str, body: dict[str, object]
) -> None:
    if control.view().engines[0].state == "healthy":
        control.break_down()
    assert client.post(path, content=json.dumps(body), headers=JSON).status_code in DOCUMENTED
    assert client.get("/fault_tolerance/status").status_code == 200


served = _obedient_control()
schema = schemathesis.openapi.from_asgi("/openapi.json", build_app(served))


@schema.include(path_regex="^/fault_tolerance").parametrize()
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_openapi_document_tells_the_truth(case: schemathesis.Case) -> None:
    case.call_and_validate(
        headers={"Authorization": f"Bearer {TOKEN}"}, checks=[not_a_server_error, status_code_conformance]
    )


@schema.include(path_regex="^/fault_tolerance/(status|events|apply|inject)$").parametrize()
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_generated_call_without_the_token_or_with_a_wrong_one_reads_or_changes_anything(
    case: schemathesis.Case,
) -> None:
    before = served.view()
    for headers, refusal in (({}, 401), ({"Authorization": "Bearer wrong"}, 403)):
        answer = case.call(headers=headers)
        assert answer.status_code == (refusal if case.method == case.operation.method.upper() else 405)
        assert "engines" not in answer.text
        assert "events" not in answer.text
    assert served.view() is before
