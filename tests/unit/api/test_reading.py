from __future__ import annotations

import re

import msgspec
import pytest
from starlette.testclient import TestClient

from support.control_plane import MemoryControl, some_fault
from support.http_app import Connect

BOTH_PREFIXES = pytest.mark.parametrize("prefix", ["/fault_tolerance", "/v1/fault_tolerance"])


@BOTH_PREFIXES
def test_status_shows_every_engine(client: TestClient, prefix: str) -> None:
    answer = client.get(f"{prefix}/status")
    assert answer.status_code == 200
    assert [e["status"] for e in answer.json()["engines"]] == ["healthy"]


@BOTH_PREFIXES
def test_ready_is_200_while_healthy(client: TestClient, prefix: str) -> None:
    answer = client.get(f"{prefix}/ready")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "state": "healthy"})


def test_ready_is_503_with_the_state_while_paused(client: TestClient, control: MemoryControl) -> None:
    control.break_down()
    answer = client.get("/fault_tolerance/ready")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "state": "paused"})
    assert answer.headers["retry-after"] == "1"


def test_ready_says_dead_after_a_defeat(client: TestClient, control: MemoryControl) -> None:
    control.defeat()
    assert client.get("/fault_tolerance/ready").json()["state"] == "dead"


def test_a_defeat_stands_in_the_status(client: TestClient, control: MemoryControl) -> None:
    control.defeat()
    status = client.get("/fault_tolerance/status").json()
    assert status["engines"][0]["status"] == "dead"
    assert "did not answer in time" in status["defeat"]


@BOTH_PREFIXES
def test_events_come_in_order_with_where_to_go_on(client: TestClient, control: MemoryControl, prefix: str) -> None:
    control.break_down()
    page = client.get(f"{prefix}/events").json()
    assert [e["kind"] for e in page["events"]] == [
        "engine-attached",
        "fault-reported",
        "engine-paused",
        "decision-made",
    ]
    assert page["next"] == 4


def test_events_begin_after_the_given_number(client: TestClient, control: MemoryControl) -> None:
    control.break_down()
    page = client.get("/fault_tolerance/events?after=3").json()
    assert [e["sequence"] for e in page["events"]] == [4]


def test_no_new_events_lead_to_the_same_place(client: TestClient) -> None:
    page = client.get("/fault_tolerance/events?after=1").json()
    assert (page["events"], page["next"], page["restarted"]) == ([], 1, False)


def test_a_number_from_an_earlier_life_of_the_server_leads_back(client: TestClient) -> None:
    page = client.get("/fault_tolerance/events?after=900").json()
    assert (page["events"], page["next"], page["restarted"]) == ([], 1, False)


def test_status_and_events_name_the_instance_and_another_life_has_another_name(
    client: TestClient, control: MemoryControl
) -> None:
    name = client.get("/fault_tolerance/status").json()["instance_id"]
    page = client.get("/fault_tolerance/events").json()
    assert {name, page["instance_id"], *(e["instance_id"] for e in page["events"])} == {name}
    assert re.fullmatch("[0-9a-f]{32}", name)
    assert MemoryControl().attach().view().instance_id != name


def test_events_after_a_number_of_another_life_are_those_of_this_one_from_the_first(
    client: TestClient, control: MemoryControl
) -> None:
    control.break_down()
    own = {"after": 3, "instance_id": control.view().instance_id}
    page = client.get("/fault_tolerance/events", params=own).json()
    assert ([e["sequence"] for e in page["events"]], page["restarted"]) == ([4], False)
    page = client.get("/fault_tolerance/events", params={**own, "instance_id": "0" * 32}).json()
    assert ([e["sequence"] for e in page["events"]], page["next"], page["restarted"]) == ([1, 2, 3, 4], 4, True)


def test_an_api_server_that_is_behind_leads_nobody_back(client: TestClient, control: MemoryControl) -> None:
    """Several API servers answer at one address, and one may have seen an event before another."""
    seen_elsewhere = {"after": 2, "instance_id": control.view().instance_id}
    page = client.get("/fault_tolerance/events", params=seen_elsewhere).json()
    assert (page["events"], page["next"], page["restarted"]) == ([], 2, False)


@pytest.mark.parametrize("instance_id", ["", "x", "0" * 31, "0" * 33, "A" * 32, "0" * 32 + "\n", "٣" * 32])
def test_events_of_a_nonsensical_instance_are_refused(client: TestClient, instance_id: str) -> None:
    answer = client.get("/fault_tolerance/events", params={"instance_id": instance_id})
    assert answer.status_code == 400
    assert "'instance_id'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "", "99999999999999999999"])
def test_events_after_nonsense_are_refused(client: TestClient, after: str) -> None:
    answer = client.get("/fault_tolerance/events", params={"after": after})
    assert answer.status_code == 400
    assert "sequence number" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["status", "events"])
@BOTH_PREFIXES
def test_reading_asks_for_the_token_where_there_is_one(connect: Connect, prefix: str, path: str) -> None:
    client = connect(authorized=False)
    none = client.get(f"{prefix}/{path}")
    wrong = client.get(f"{prefix}/{path}", headers={"Authorization": "Bearer wrong"})
    right = client.get(f"{prefix}/{path}", headers={"Authorization": "Bearer secret"})
    assert (none.status_code, wrong.status_code, right.status_code) == (401, 403, 200)
    assert none.headers["www-authenticate"] == "Bearer"


@BOTH_PREFIXES
def test_probes_need_no_token(connect: Connect, prefix: str) -> None:
    assert connect(authorized=False).get(f"{prefix}/ready").status_code == 200


@pytest.mark.parametrize("path", ["status", "events", "ready"])
def test_what_is_read_cannot_be_posted(client: TestClient, path: str) -> None:
    assert client.post(f"/fault_tolerance/{path}", json={}).status_code == 405


def test_every_endpoint_describes_itself_under_both_prefixes(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    incidents = ("incidents", "incidents/{incident_id}", "incidents/{incident_id}.tar")
    names = ("status", "events", "ready", "apply", "inject", *incidents)
    assert set(paths) == {f"{prefix}/{n}" for prefix in ("/fault_tolerance", "/v1/fault_tolerance") for n in names}


def test_full_texts_are_shown_on_request_only(client: TestClient, control: MemoryControl) -> None:
    secret = "the prompt of somebody"
    fault = msgspec.structs.replace(some_fault(), message="<...>", full_text=secret)
    control.attach().hold(0, fault)
    for path in ("status", "events", "status?full_texts=false"):
        assert secret not in client.get(f"/fault_tolerance/{path}").text
    assert [t["text"] for t in client.get("/fault_tolerance/status?full_texts=true").json()["full_texts"]] == [secret]
    assert client.get("/fault_tolerance/status?full_texts=yes").status_code == 400
