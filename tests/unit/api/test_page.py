"""The page: files for everybody, data for a session, commands for a session with its CSRF token."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from holdfast.api.page import routes, session, stream
from holdfast.api.page.session import CSRF_HEADER, LIFETIME_S, MAX_WRONG_TOKENS, PageCall, begin_session, find_session
from holdfast.core.protocol.commands import Credential
from support.control_plane import MemoryControl
from support.http_app import PAGE_KEY, TOKEN, Connect

PREFIX = "/fault_tolerance"
OTHER_PAGE = "http://localhost:3000"
NOW = 1_700_000_000.0


@pytest.fixture
def browser(connect: Connect) -> TestClient:
    """A browser without a token."""
    return connect(authorized=False)


@pytest.fixture
def csrf(browser: TestClient) -> dict[str, str]:
    """The header of a browser that has logged in."""
    answer = browser.post(f"{PREFIX}/login", json={"token": TOKEN})
    assert answer.status_code == 200
    return {CSRF_HEADER: answer.json()["csrf"]}


# ---- files


def test_the_page_and_its_files_need_no_token_and_hold_nothing_of_the_instance(
    browser: TestClient, control: MemoryControl
) -> None:
    control.break_down()
    for name in ("", *(f"page/{name}" for name in routes._files())):
        answer = browser.get(f"{PREFIX}/{name}")
        assert answer.status_code == 200, name
        assert control.view().instance_id not in answer.text
        assert "InjectedFault" not in answer.text


def test_every_file_of_the_page_forbids_other_hosts_frames_and_scripts_in_the_page(browser: TestClient) -> None:
    for name in ("/", "/page/app.js", "/page/app.css"):
        headers = browser.get(PREFIX + name).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert {policy[f"{kind}-src"] for kind in ("script", "style", "connect", "img")} == {"'self'"}
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_no_file_of_the_page_names_another_host_or_has_a_script_or_a_style_of_its_own() -> None:
    html = routes._files()["index.html"].decode()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", html) == []
    ours = [
        text.decode().replace("http://www.w3.org/2000/svg", "")  # a name, which nothing is loaded from
        for name, text in routes._files().items()
        if name.rpartition(".")[0] not in VENDORED
    ]
    assert [t for t in ours if re.search(r"[\"'(]\s*(https?:)?//", t)] == []


VENDORED = ("preact", "htm", "uPlot", "preact.LICENSE", "htm.LICENSE", "uPlot.LICENSE")


def test_a_vendored_file_comes_with_its_licence() -> None:
    assert {name for name in VENDORED if f"{name}.LICENSE.txt" in routes._files()} == {"preact", "htm", "uPlot"}


@pytest.mark.parametrize("name", ["..%2Fsession.py", "%2e%2e%2f__init__.py", "nothing.js", "vendor%2Fpreact.js"])
def test_only_files_of_the_page_are_read(browser: TestClient, name: str) -> None:
    assert browser.get(f"{PREFIX}/page/{name}").status_code == 404


# ---- login


def test_the_token_is_exchanged_for_a_cookie_that_scripts_cannot_read(browser: TestClient) -> None:
    assert browser.get(f"{PREFIX}/status").status_code == 401
    answer = browser.post(f"{PREFIX}/login", json={"token": TOKEN})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert f"max-age={LIFETIME_S}" in cookie
    assert "path=" not in cookie
    assert "secure" not in cookie
    assert TOKEN not in cookie
    assert answer.headers["cache-control"] == "no-store"
    assert browser.get(f"{PREFIX}/status").status_code == 200
    assert browser.get(f"{PREFIX}/session").json()["csrf"] == answer.json()["csrf"]


def test_over_tls_the_cookie_is_for_tls_only(connect: Connect) -> None:
    browser = connect(authorized=False)
    browser.base_url = "https://testserver"
    assert "secure" in browser.post(f"{PREFIX}/login", json={"token": TOKEN}).headers["set-cookie"].lower()


def test_a_wrong_token_opens_nothing_and_ten_of_them_close_the_login_for_a_while(
    browser: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(MAX_WRONG_TOKENS):
        answer = browser.post(f"{PREFIX}/login", json={"token": "wrong"})
        assert (answer.status_code, answer.headers.get("set-cookie")) == (403, None)
    refused = browser.post(f"{PREFIX}/login", json={"token": TOKEN})
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= session.WINDOW_S
    assert [r.message for r in caplog.records if "refuses logins" in r.message] != []
    assert "wrong" not in caplog.text.replace("wrong tokens", "")


def test_wrong_tokens_are_counted_for_each_network_and_forgotten_after_the_window() -> None:
    wrong = session.WrongTokens()
    for _ in range(MAX_WRONG_TOKENS):
        wrong.note("2001:db8::1", 0.0)
    assert wrong.wait_s("2001:db8::ffff", 1.0) == session.WINDOW_S - 1.0
    assert wrong.wait_s("2001:db8:1::1", 1.0) == 0.0
    assert wrong.wait_s("2001:db8::1", session.WINDOW_S) == 0.0


def test_addresses_with_wrong_tokens_are_bounded() -> None:
    wrong = session.WrongTokens()
    for index in range(3 * session.MAX_ADDRESSES):
        wrong.note(f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}", 0.0)
    assert len(wrong._tried_at) == session.MAX_ADDRESSES


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": "x", "y": 1}', b"\xff"])
def test_a_login_that_is_not_understood_is_refused(browser: TestClient, body: bytes) -> None:
    answer = browser.post(f"{PREFIX}/login", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def test_a_form_of_another_page_cannot_log_in(browser: TestClient) -> None:
    assert browser.post(f"{PREFIX}/login", data={"token": TOKEN}).status_code == 415
    answer = browser.post(f"{PREFIX}/login", json={"token": TOKEN}, headers={"Origin": OTHER_PAGE})
    assert answer.status_code == 403


def test_logout_takes_the_cookie_back(browser: TestClient, csrf: dict[str, str]) -> None:
    assert browser.post(f"{PREFIX}/logout").status_code == 403
    assert browser.post(f"{PREFIX}/logout", headers=csrf).status_code == 204
    assert browser.get(f"{PREFIX}/status").status_code == 401


# ---- what a session may


def test_a_command_of_a_session_needs_the_csrf_token(
    browser: TestClient, csrf: dict[str, str], control: MemoryControl
) -> None:
    pause = {"instruction": "pause"}
    for headers in ({}, {CSRF_HEADER: "0" * 64}, {CSRF_HEADER: "é".encode()}):
        assert browser.post(f"{PREFIX}/apply", json=pause, headers=headers).status_code == 403  # type: ignore[arg-type]
    assert control.sent == []
    assert browser.post(f"{PREFIX}/apply", json=pause, headers=csrf).status_code == 202
    givers = [e.given_by.credential for e in control.events if e.given_by is not None]
    assert set(givers) == {Credential.PAGE_SESSION}


@pytest.mark.parametrize("headers", [{"Origin": OTHER_PAGE}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "null"}])
def test_a_page_of_another_port_cannot_use_the_cookie(
    browser: TestClient, csrf: dict[str, str], headers: dict[str, str]
) -> None:
    assert browser.get(f"{PREFIX}/session", headers=headers).json()["csrf"] == ""
    assert browser.get(f"{PREFIX}/status", headers=headers).status_code == 401
    assert browser.post(f"{PREFIX}/apply", json={"instruction": "pause"}, headers=csrf | headers).status_code == 401


def test_the_page_of_the_server_itself_may(browser: TestClient, csrf: dict[str, str]) -> None:
    headers = csrf | {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}
    assert browser.post(f"{PREFIX}/apply", json={"instruction": "pause"}, headers=headers).status_code == 202


def test_a_session_ends_after_an_hour(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = begin_session(PAGE_KEY, time.time() - LIFETIME_S - 1)
    browser.cookies.set(session.cookie_name(PAGE_KEY), begun.cookie)
    answer = browser.get(f"{PREFIX}/status")
    assert answer.status_code == 401
    assert "session has ended" in answer.json()["error"]["message"]


def test_a_wrong_token_in_the_header_is_not_made_good_by_a_cookie(browser: TestClient, csrf: dict[str, str]) -> None:
    assert browser.get(f"{PREFIX}/status", headers={"Authorization": "Bearer wrong"}).status_code == 403


def test_servers_on_one_machine_have_cookies_of_different_names() -> None:
    assert session.cookie_name(b"a") != session.cookie_name(b"b")


@given(st.binary(max_size=40), st.integers(0, 200), st.integers(0, 255))
def test_a_session_is_of_its_key_and_of_every_byte(key: bytes, place: int, byte: int) -> None:
    cookie = begin_session(PAGE_KEY, NOW).cookie
    changed = cookie[: place % len(cookie)] + chr(byte) + cookie[place % len(cookie) + 1 :]
    assert find_session(PAGE_KEY, PageCall(cookie, now=NOW), None) is not None
    assert (find_session(PAGE_KEY, PageCall(changed, now=NOW), None) is not None) == (changed == cookie)
    assert find_session(key, PageCall(cookie, now=NOW), None) is None
    assert find_session(PAGE_KEY, PageCall(cookie, now=NOW + LIFETIME_S), None) is None


# ---- the stream


def _data(message: bytes | None) -> dict[str, Any]:
    assert message is not None
    found = re.search(rb"^data: (.*)$", message, re.MULTILINE)
    assert found is not None
    decoded: dict[str, Any] = json.loads(found[1])
    return decoded


def test_the_stream_begins_with_everything_and_goes_on_with_what_changed() -> None:
    control = MemoryControl(((0,), (1,))).attach()
    reader = stream.Following(control, None, 0)
    first = _data(reader.next_message(0.0, NOW))
    assert [e["id"] for e in first["status"]["engines"]] == [0, 1]
    assert [e["sequence"] for e in first["events"]] == [1, 2]
    assert reader.next_message(1.0, NOW) is None
    control.break_down(1)
    changed = _data(reader.next_message(2.0, NOW))
    assert [e["id"] for e in changed["status"]["engines"]] == [1]
    assert [e["kind"] for e in changed["events"]] == ["fault-reported", "engine-paused", "decision-made"]


def test_events_are_told_at_once_and_the_status_once_a_second() -> None:
    control = MemoryControl().attach()
    reader = stream.Following(control, None, 0)
    reader.next_message(0.0, NOW)
    control.break_down()
    early = _data(reader.next_message(0.2, NOW))
    assert early["status"] is None
    assert len(early["events"]) == 3
    assert reader.next_message(0.4, NOW) is None
    assert _data(reader.next_message(1.1, NOW))["status"]["engines"][0]["state"] == "paused"


def test_a_reader_that_comes_back_misses_nothing_and_sees_nothing_twice() -> None:
    control = MemoryControl().attach().break_down()
    first = stream.Following(control, None, 0).next_message(0.0, NOW)
    assert first is not None
    place = stream.parse_event_id(first.split(b"\n")[0].removeprefix(b"id: ").decode())
    assert place == (control.view().instance_id, 4)
    control.standbys()
    again = _data(stream.Following(control, *place).next_message(0.0, NOW))
    assert [e["sequence"] for e in again["events"]] == [5]
    assert again["restarted"] is False


def test_another_instance_is_told_from_the_first_event() -> None:
    control = MemoryControl().attach()
    told = _data(stream.Following(control, "0" * 32, 900).next_message(0.0, NOW))
    assert told["restarted"] is True
    assert [e["sequence"] for e in told["events"]] == [1]


def test_a_silent_stream_has_a_sign_of_life() -> None:
    control = MemoryControl().attach()
    reader = stream.Following(control, None, 0)
    reader.next_message(0.0, NOW)
    assert reader.next_message(9.0, NOW) is None
    assert reader.next_message(10.0, NOW) == b"event: alive\ndata: {}\n\n"


@pytest.mark.parametrize("text", ["", "x", "1", "0" * 32, "0" * 32 + ":-1", "0" * 32 + ":" + "9" * 20])
def test_a_foreign_id_of_an_event_begins_at_the_beginning(text: str) -> None:
    assert stream.parse_event_id(text) == (None, 0)


class _Counter:
    streams = 0


def _read(control: MemoryControl, expires_at: float, endings: Iterator[bool]) -> list[bytes]:
    async def read() -> list[bytes]:
        reading = stream.follow(control, (None, 0), expires_at, counter, lambda: next(endings))
        return [message async for message in reading]

    counter = _Counter()
    try:
        return asyncio.run(read())
    finally:
        assert counter.streams == 0


def test_a_stream_ends_with_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LOOK_S", 0.0)
    messages = _read(MemoryControl().attach(), time.time() + 0.02, iter(lambda: False, True))
    assert messages[-1].startswith(b"event: expired")


def test_a_stream_ends_when_the_server_is_about_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server waits for open answers before it ends."""
    monkeypatch.setattr(stream, "LOOK_S", 0.0)
    messages = _read(MemoryControl().attach(), time.time() + 60, iter([False, False, True]))
    assert len(messages) == 2


def test_the_number_of_streams_is_bounded(browser: TestClient, csrf: dict[str, str], monkeypatch: Any) -> None:
    monkeypatch.setattr(stream, "MAX_STREAMS", 0)
    assert browser.get(f"{PREFIX}/stream").status_code == 503


def test_the_stream_needs_a_session(browser: TestClient) -> None:
    assert browser.get(f"{PREFIX}/stream").status_code == 401
