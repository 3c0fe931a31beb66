from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from support.control_plane import MemoryControl
from support.http_app import Connect

COMMANDS = pytest.mark.parametrize(
    "path", ["/fault_tolerance/apply", "/v1/fault_tolerance/apply", "/fault_tolerance/inject"]
)
JSON = {"Content-Type": "application/json"}
LARGE = b'{"instruction": "' + b"x" * 65_536 + b'"}'


@pytest.fixture(autouse=True)
def _server_goes_on(client: TestClient) -> Iterator[None]:
    """Whatever was sent, the server answers afterwards."""
    yield
    assert client.get("/fault_tolerance/ready").status_code == 200


@COMMANDS
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\x00\xff", b'{"nonsense": 1}'])
def test_a_malformed_body_is_refused(client: TestClient, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@COMMANDS
def test_an_announced_oversized_body_is_refused(client: TestClient, path: str) -> None:
    assert client.post(path, content=LARGE, headers=JSON).status_code == 413


@COMMANDS
def test_an_oversized_body_without_a_length_is_refused(client: TestClient, path: str) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(9):
            yield b" " * 8192

    assert client.post(path, content=pieces(), headers=JSON).status_code == 413


@COMMANDS
@pytest.mark.parametrize("length", ["10", "-5", "ten", "", "²"])
def test_an_oversized_body_with_a_lying_length_is_refused(client: TestClient, path: str, length: str) -> None:
    headers = {**JSON, "Content-Length": length.encode("latin-1")}
    assert client.post(path, content=LARGE, headers=headers).status_code == 413


def test_a_small_body_that_claims_to_be_large_is_refused(client: TestClient) -> None:
    headers = {**JSON, "Content-Length": "9" * 400}
    assert client.post("/fault_tolerance/apply", content=b"{}", headers=headers).status_code == 413


def test_a_body_just_within_the_bound_is_read(client: TestClient) -> None:
    body = b'{"instruction": "retry"}'.ljust(65_536)
    assert client.post("/fault_tolerance/apply", content=body, headers=JSON).status_code == 409


@COMMANDS
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_not_json_is_an_unsupported_type(client: TestClient, path: str, content_type: str) -> None:
    answer = client.post(path, content=b'{"instruction": "retry"}', headers={"Content-Type": content_type})
    assert answer.status_code == 415


@COMMANDS
def test_commands_cannot_be_fetched(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 405


@COMMANDS
def test_no_token_and_a_wrong_token_are_refused_before_the_body_is_read(connect: Connect, path: str) -> None:
    client = connect(authorized=False)
    none = client.post(path, content=LARGE)
    wrong = client.post(path, content=LARGE, headers={"Authorization": "Bearer wrong"})
    assert (none.status_code, wrong.status_code) == (401, 403)
    assert none.headers["www-authenticate"] == "Bearer"


@COMMANDS
@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "Host"])
def test_no_header_takes_the_place_of_the_token(
    connect: Connect, control: MemoryControl, path: str, header: str
) -> None:
    """A proxy on this machine may leave any trace, or none."""
    answer = connect(authorized=False).post(path, json={"instruction": "retry"}, headers={header: "127.0.0.1"})
    assert answer.status_code == 401
    assert "holdfast token" in answer.json()["error"]["hint"]
    assert control.sent == []


def test_a_control_path_that_does_not_exist_is_not_found(client: TestClient) -> None:
    assert client.get("/v1/fault_tolerance/nothing").status_code == 404
