from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from holdfast.api import openapi
from holdfast.api.requests import command_id_of
from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import HoldfastError
from holdfast.core.protocol import messages as m
from support.control_plane import MemoryControl
from support.http_app import BEARER, Connect, build_app

AWAITED = {"fault_tolerance_instruction": "retry", "fault_tolerance_timeout": 5, "fault_tolerance_params": {}}
ACCEPTED = {"instruction": "retry", "params": {}}
BOTH_FORMATS = pytest.mark.parametrize("body", [AWAITED, ACCEPTED], ids=["awaited", "accepted"])
BOTH_PREFIXES = pytest.mark.parametrize("prefix", ["/fault_tolerance", "/v1/fault_tolerance"])


def awaited(instruction: str, **params: object) -> dict[str, object]:
    return {**AWAITED, "fault_tolerance_instruction": instruction, "fault_tolerance_params": params}


def accepted(instruction: str, **params: object) -> dict[str, object]:
    return {"instruction": instruction, "params": params}


def pair() -> tuple[MemoryControl, TestClient]:
    """Two engines in lockstep that do what they are told at once, and a client of theirs."""
    control = MemoryControl(((0, 1),)).attach()
    control.obedient = True
    return control, TestClient(build_app(control), headers=BEARER)


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


# ---- what works


@BOTH_PREFIXES
def test_the_original_format_is_answered_when_the_retry_has_ended(
    client: TestClient, control: MemoryControl, prefix: str
) -> None:
    control.break_down()
    answer = client.post(f"{prefix}/apply", json=AWAITED)
    assert (answer.status_code, answer.json()) == (200, {"message": "Instruction executed successfully."})
    assert control.view().ready


@BOTH_PREFIXES
def test_the_hosts_format_is_answered_with_the_commands_id(
    client: TestClient, control: MemoryControl, prefix: str
) -> None:
    control.break_down()
    answer = client.post(f"{prefix}/apply", json=ACCEPTED)
    assert answer.status_code == 202
    assert answer.json() == {
        "message": "Request accepted; poll /fault_tolerance/status for updates.",
        "request_id": control.view().engines[0].last_command_id,
    }


def test_the_hosts_format_does_not_wait_for_a_retry_that_takes_its_time(
    client: TestClient, control: MemoryControl
) -> None:
    control.obedient = False
    control.break_down()
    assert client.post("/fault_tolerance/apply", json=ACCEPTED).status_code == 202
    assert control.view().engines[0].state == "recovering"


def test_the_hosts_format_accepts_a_retry_that_then_fails(
    client: TestClient, control: MemoryControl, background: ThreadPoolExecutor
) -> None:
    control.obedient = False
    control.break_down()
    answer = background.submit(client.post, "/fault_tolerance/apply", json=ACCEPTED)
    _await_order(control, answer)
    control.abort()
    assert answer.result().status_code == 202
    assert "injected fault" in client.get("/fault_tolerance/status").json()["engines"][0]["ft_error"]


def test_the_named_engine_is_the_one_that_is_retried() -> None:
    control = MemoryControl(((0,), (1,))).attach().break_down(0).break_down(1)
    control.obedient = True
    client = TestClient(build_app(control), headers=BEARER)
    client.post("/fault_tolerance/apply", json={"instruction": "retry", "params": {"engine_id": 1}})
    assert [e.state for e in control.view().engines] == ["paused", "healthy"]


def test_several_engines_can_be_named_at_once() -> None:
    control = MemoryControl(((0,), (1,), (2,))).attach().break_down(0).break_down(1).break_down(2)
    control.obedient = True
    client = TestClient(build_app(control), headers=BEARER)
    client.post("/fault_tolerance/apply", json={"instruction": "retry", "params": {"engine_ids": [2, 0]}})
    assert [e.state for e in control.view().engines] == ["healthy", "paused", "healthy"]


def test_a_retry_that_names_no_engine_is_for_all_that_stand_paused() -> None:
    control = MemoryControl(((0,), (1,), (2,))).attach().break_down(0).break_down(2)
    control.obedient = True
    TestClient(build_app(control), headers=BEARER).post("/fault_tolerance/apply", json=AWAITED)
    assert [(e.state, e.epoch) for e in control.view().engines] == [("healthy", 1), ("healthy", 0), ("healthy", 1)]


def test_each_command_has_an_id_of_its_own(client: TestClient, control: MemoryControl) -> None:
    answers = [client.post("/fault_tolerance/apply", json=ACCEPTED) for _ in range(2) if control.break_down()]
    ids = {a.json()["request_id"] for a in answers}
    assert len(ids) == 2
    assert all(len(i) == 32 for i in ids)


# ---- pausing by operator


@BOTH_PREFIXES
def test_the_original_format_is_answered_when_the_group_stands_paused(prefix: str) -> None:
    control, client = pair()
    answer = client.post(f"{prefix}/apply", json=awaited("pause", engine_id=1))
    assert (answer.status_code, answer.json()) == (200, {"message": "Instruction executed successfully."})
    assert [e.state for e in control.view().engines] == ["paused", "paused"]


def test_the_hosts_format_does_not_wait_for_a_pause_that_takes_its_time() -> None:
    control, client = pair()
    control.obedient = False
    assert client.post("/fault_tolerance/apply", json=accepted("pause")).status_code == 202
    assert [e.state for e in control.view().engines] == ["pausing", "pausing"]


@BOTH_PREFIXES
def test_what_was_paused_by_operator_goes_on_when_told(prefix: str) -> None:
    control, client = pair()
    client.post(f"{prefix}/apply", json=awaited("pause"))
    assert client.post(f"{prefix}/apply", json=awaited("resume")).status_code == 200
    assert control.view().ready


@pytest.mark.parametrize(("params", "soft"), [({}, False), ({"mode": "hard"}, False), ({"mode": "soft"}, True)])
def test_a_pause_is_as_hard_as_it_was_ordered(params: dict[str, object], soft: bool) -> None:
    control, client = pair()
    client.post("/fault_tolerance/apply", json=awaited("pause", **params))
    orders = [s.message for s in control.sent if isinstance(s.message, m.PauseEngine)]
    assert [order.soft for order in orders] == [soft, soft]


def test_a_pause_that_does_not_come_about_in_time_is_a_500() -> None:
    control, client = pair()
    control.obedient = False
    answer = client.post("/fault_tolerance/apply", json={**awaited("pause"), "fault_tolerance_timeout": 0.01})
    assert (answer.status_code, answer.json()["error"]["detail"]) == (500, "not finished within 0.01 s")


def test_a_pause_of_what_stands_paused_is_a_conflict_with_the_state() -> None:
    _, client = pair()
    client.post("/fault_tolerance/apply", json=awaited("pause"))
    answer = client.post("/fault_tolerance/apply", json=awaited("pause"))
    assert (answer.status_code, answer.json()["error"]["state"]) == (409, "paused")


def test_a_resume_of_what_faulted_is_a_conflict_that_names_retry(client: TestClient, control: MemoryControl) -> None:
    control.break_down()
    answer = client.post("/fault_tolerance/apply", json=awaited("resume"))
    assert (answer.status_code, answer.json()["error"]["hint"]) == (409, "use retry")


@pytest.mark.parametrize("instruction", ["resume", "retry"])
def test_only_a_pause_can_be_soft(client: TestClient, control: MemoryControl, instruction: str) -> None:
    control.break_down()
    answer = client.post("/fault_tolerance/apply", json=accepted(instruction, mode="soft"))
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, f"{instruction} cannot be soft")


# ---- what does not


def test_a_retry_that_fails_is_a_500_that_says_why(
    client: TestClient, control: MemoryControl, background: ThreadPoolExecutor
) -> None:
    control.obedient = False
    control.break_down()
    answer = background.submit(client.post, "/fault_tolerance/apply", json=AWAITED)
    _await_order(control, answer)
    control.abort()
    assert answer.result().status_code == 500
    error = answer.result().json()["error"]
    assert error["message"] == "Failed to handle fault."
    assert "injected fault" in error["detail"]


def test_a_retry_that_takes_too_long_is_a_500_and_goes_on(client: TestClient, control: MemoryControl) -> None:
    control.obedient = False
    control.break_down()
    answer = client.post("/fault_tolerance/apply", json={**AWAITED, "fault_tolerance_timeout": 0.01})
    assert answer.status_code == 500
    assert answer.json()["error"]["detail"] == "not finished within 0.01 s"
    control.recover()
    assert control.view().ready


@BOTH_FORMATS
def test_a_retry_of_a_healthy_engine_is_a_conflict_with_the_state(client: TestClient, body: dict[str, object]) -> None:
    answer = client.post("/fault_tolerance/apply", json=body)
    assert answer.status_code == 409
    assert answer.json()["error"]["state"] == "healthy"
    assert answer.json()["error"]["hint"]


@BOTH_FORMATS
def test_the_second_of_two_commands_at_once_is_a_conflict(
    client: TestClient, control: MemoryControl, background: ThreadPoolExecutor, body: dict[str, object]
) -> None:
    control.obedient = False
    control.break_down()
    first = background.submit(client.post, "/fault_tolerance/apply", json=AWAITED)
    _await_order(control, first)
    second = client.post("/fault_tolerance/apply", json=body)
    control.recover()
    assert (first.result().status_code, second.status_code) == (200, 409)
    assert second.json()["error"]["state"] == "recovering"


@pytest.mark.parametrize("engine_id", [1, -1, 2**31 - 1])
def test_an_unknown_engine_is_not_found(client: TestClient, control: MemoryControl, engine_id: int) -> None:
    control.break_down()
    answer = client.post("/fault_tolerance/apply", json={"instruction": "retry", "params": {"engine_id": engine_id}})
    assert answer.status_code == 404
    assert answer.json()["error"]["hint"] == "known: 0"


def test_a_command_whose_future_is_cancelled_ends_with_an_error(connect: Connect, control: MemoryControl) -> None:
    def cancelled(*_: object) -> Future[None]:
        ended: Future[None] = Future()
        ended.cancel()
        return ended

    control.submit = cancelled  # type: ignore[method-assign]
    answer = connect().post("/fault_tolerance/apply", json=AWAITED)
    assert (answer.status_code, answer.json()["error"]["detail"]) == (500, "the instance is ending")


@pytest.mark.parametrize("error", [RuntimeError("secret path /x"), HoldfastError("plain words")])
def test_an_error_of_ours_shows_no_stack(connect: Connect, control: MemoryControl, error: Exception) -> None:
    def broken() -> None:
        raise error

    control.view = broken  # type: ignore[assignment,method-assign]
    answer = connect().get("/fault_tolerance/status")
    assert answer.status_code == 500
    assert "Traceback" not in answer.text
    assert "secret" not in answer.text


# ---- faults to order


@BOTH_PREFIXES
def test_a_fault_is_armed_where_that_is_allowed(client: TestClient, control: MemoryControl, prefix: str) -> None:
    answer = client.post(f"{prefix}/inject", json={"phase": "forward", "after_steps": 3})
    assert answer.status_code == 200
    order = control.sent[-1].message
    assert isinstance(order, m.ArmFault)
    assert (order.command_id, order.spec.after_steps) == (answer.json()["request_id"], 3)


def test_injection_is_not_found_where_it_is_off() -> None:
    control = MemoryControl(config=HoldfastConfig()).attach()
    client = TestClient(build_app(control), headers=BEARER)
    answer = client.post("/fault_tolerance/inject", json={"phase": "forward"})
    assert answer.status_code == 404
    assert "--enable-fault-injection" in answer.json()["error"]["hint"]
    assert control.sent == []


def test_injection_into_an_unknown_engine_is_not_found(client: TestClient) -> None:
    assert client.post("/fault_tolerance/inject", json={"phase": "forward", "engine_id": 9}).status_code == 404


@pytest.mark.parametrize("rank", [1, -1])
def test_injection_into_an_unknown_rank_is_refused(client: TestClient, rank: int) -> None:
    answer = client.post("/fault_tolerance/inject", json={"phase": "forward", "rank": rank})
    assert answer.status_code == 400
    assert "no rank" in answer.json()["error"]["message"]


def test_injection_with_an_unknown_field_names_it(client: TestClient) -> None:
    answer = client.post("/fault_tolerance/inject", json={"phase": "forward", "steps": 3})
    assert answer.status_code == 400
    assert "steps" in answer.json()["error"]["message"]


def _await_order(control: MemoryControl, answer: Future[object]) -> None:
    assert control.ordered.wait(10), answer


# ---- restart-worker


@pytest.mark.parametrize("form", [awaited, accepted])
@pytest.mark.parametrize(("params", "ranks"), [({}, (0,)), ({"rank": 0}, (0,)), ({"ranks": [0]}, (0,))])
def test_workers_are_restarted_and_the_status_counts_them(form, params, ranks) -> None:  # type: ignore[no-untyped-def]
    control, client = pair()
    answer = client.post("/fault_tolerance/apply", json=form("restart-worker", engine_id=1, **params))
    assert answer.status_code == (200 if form is awaited else 202)
    orders = {s.engine_id: s.message.replace for s in control.sent if isinstance(s.message, m.RecoverEngine)}
    assert orders == {0: (), 1: ranks}
    engines = client.get("/fault_tolerance/status").json()["engines"]
    assert [(e["state"], e["worker_restarts"]) for e in engines] == [("healthy", 0), ("healthy", 1)]


@pytest.mark.parametrize(("params", "status"), [({"engine_id": 0, "rank": 7}, 400), ({}, 400), ({"engine_id": 7}, 404)])
def test_a_restart_of_who_does_not_exist_is_refused(params: dict[str, object], status: int) -> None:
    _, client = pair()
    assert client.post("/fault_tolerance/apply", json=awaited("restart-worker", **params)).status_code == status


def test_a_restart_of_an_engine_that_is_not_healthy_is_a_conflict(client: TestClient, control: MemoryControl) -> None:
    control.break_down()
    answer = client.post("/fault_tolerance/apply", json=awaited("restart-worker", engine_id=0))
    assert (answer.status_code, answer.json()["error"]["state"]) == (409, "paused")


def test_an_engine_core_is_restarted_and_the_status_counts_it() -> None:
    control = MemoryControl(((0,), (1,))).attach()
    client = TestClient(build_app(control), headers=BEARER)
    answer = client.post("/fault_tolerance/apply", json=accepted("restart-engine", engine_id=1))
    assert answer.status_code == 202
    states = [e["state"] for e in client.get("/fault_tolerance/status").json()["engines"]]
    assert states == ["healthy", "restarting"]
    control.return_engine(1)
    engines = client.get("/fault_tolerance/status").json()["engines"]
    assert [(e["state"], e["restarts"]) for e in engines] == [("healthy", 0), ("healthy", 1)]


def test_an_engine_core_that_is_being_restarted_is_not_restarted_again() -> None:
    client = TestClient(build_app(MemoryControl(((0,), (1,))).attach()), headers=BEARER)
    client.post("/fault_tolerance/apply", json=accepted("restart-engine", engine_id=1))
    answer = client.post("/fault_tolerance/apply", json=awaited("restart-engine", engine_id=1))
    assert (answer.status_code, answer.json()["error"]["state"]) == (409, "restarting")


def test_standbys_are_in_the_status_once_there_are_any(client: TestClient, control: MemoryControl) -> None:
    assert "standbys" not in client.get("/fault_tolerance/status").json()["engines"][0]
    control.standbys(wanted=2, ready=1, memory_bytes=5)
    [engine] = client.get("/fault_tolerance/status").json()["engines"]
    assert engine["standbys"] == {"wanted": 2, "ready": 1, "memory_bytes": 5}


def _unbounded_integers(schema: object, path: str = "") -> list[str]:
    """Paths of the integers of a schema that have no maximum or no minimum."""
    match schema:
        case {"type": "integer", **rest}:
            return [] if "maximum" in rest and "minimum" in rest else [path]
        case dict():
            return [found for key, value in schema.items() for found in _unbounded_integers(value, f"{path}/{key}")]
        case list():
            return [found for n, value in enumerate(schema) for found in _unbounded_integers(value, f"{path}/{n}")]
    return []


def test_every_integer_that_a_caller_sends_has_bounds() -> None:
    """A number that no process can decode would be accepted, and the command would be waited for in vain."""
    found = _unbounded_integers({"apply": openapi.APPLY_BODY, "inject": openapi.INJECT_BODY})
    assert [path for path in found if "propertyNames" not in path and "additionalProperties" not in path] == []


@pytest.mark.parametrize("huge", [2**31, 2**63, 2**70, -(2**70)])
@pytest.mark.parametrize("name", ["engine_id", "rank"])
def test_a_number_that_no_process_can_decode_is_refused_at_once(client: TestClient, name: str, huge: int) -> None:
    params = {"engine_id": 0, "rank": 0, name: huge}
    for body in (
        {"instruction": "restart-worker", "params": params},
        {"fault_tolerance_instruction": "restart-worker", "fault_tolerance_params": params},
    ):
        assert client.post("/fault_tolerance/apply", json=body).status_code == 400
    assert client.post("/fault_tolerance/inject", json={"phase": "forward", name: huge}).status_code in {400, 404}


def test_a_setting_that_no_process_can_decode_is_refused_at_once(client: TestClient) -> None:
    body = {"instruction": "configure", "params": {"max_retries": 2**70}}
    assert client.post("/fault_tolerance/apply", json=body).status_code == 400


def test_the_same_key_gives_the_same_command_id_and_no_key_a_new_one(client: TestClient) -> None:
    assert command_id_of("one") == command_id_of("one") != command_id_of("two")
    assert command_id_of(None) != command_id_of(None)
    headers = {"Idempotency-Key": "one"}
    answer = client.post("/fault_tolerance/apply", json={"instruction": "pause"}, headers=headers)
    assert answer.json()["request_id"] == command_id_of("one")


@pytest.mark.parametrize("key", ["", " ", "x" * 201])
def test_a_key_that_is_no_key_is_refused(client: TestClient, control: MemoryControl, key: str) -> None:
    answer = client.post("/fault_tolerance/apply", json={"instruction": "pause"}, headers={"Idempotency-Key": key})
    assert answer.status_code == 400
    assert control.sent == []
