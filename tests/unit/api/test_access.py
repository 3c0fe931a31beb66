from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.api.access import Access, Caller, Purpose, decide_access, is_local_host

WITH_TOKEN = Access.from_tokens(["secret"])
WITHOUT_TOKEN = Access()


@pytest.mark.parametrize("access", [WITH_TOKEN, WITHOUT_TOKEN])
def test_probes_are_always_let_in(access: Access) -> None:
    assert decide_access(Purpose.PROBE, Caller(host="203.0.113.9"), access) is None


@pytest.mark.parametrize("purpose", [Purpose.READ, Purpose.COMMAND])
def test_the_token_lets_in_from_anywhere(purpose: Purpose) -> None:
    caller = Caller(authorization="Bearer secret", host="203.0.113.9", forwarded=True, origin="https://foreign")
    assert decide_access(purpose, caller, WITH_TOKEN) is None


@pytest.mark.parametrize("purpose", [Purpose.READ, Purpose.COMMAND])
@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic secret", "secret"])
def test_no_bearer_token_is_answered_with_a_challenge(purpose: Purpose, authorization: str | None) -> None:
    refusal = decide_access(purpose, Caller(authorization=authorization, host="127.0.0.1"), WITH_TOKEN)
    assert refusal is not None
    assert (refusal.status, refusal.challenge) == (401, True)


@pytest.mark.parametrize("authorization", ["Bearer wrong", "Bearer secret2", "Bearer secre", "bearer SECRET"])
def test_a_wrong_token_is_refused_even_from_this_machine(authorization: str) -> None:
    refusal = decide_access(Purpose.READ, Caller(authorization=authorization, host="127.0.0.1"), WITH_TOKEN)
    assert refusal is not None
    assert refusal.status == 403


def test_the_scheme_is_read_in_any_case() -> None:
    assert decide_access(Purpose.READ, Caller(authorization="bEaReR secret"), WITH_TOKEN) is None


def test_each_of_several_tokens_opens() -> None:
    access = Access.from_tokens(["one", "two"])
    assert [access.knows(t) for t in (b"one", b"two", b"three", b"")] == [True, True, False, False]


def test_a_token_beyond_ascii_is_compared_as_the_bytes_that_were_sent() -> None:
    as_header = "Bearer " + "schlüssel".encode().decode("latin-1")
    access = Access.from_tokens(["schlüssel"])
    assert decide_access(Purpose.READ, Caller(authorization=as_header), access) is None


@given(st.text(), st.text(min_size=1).filter(str.strip))
def test_no_header_but_the_right_one_opens(authorization: str, token: str) -> None:
    caller = Caller(authorization=authorization)
    refusal = decide_access(Purpose.COMMAND, caller, Access.from_tokens(["\0" + token]))
    assert refusal is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1", None])
def test_without_a_token_commands_are_taken_from_this_machine(host: str | None) -> None:
    assert decide_access(Purpose.COMMAND, Caller(host=host), WITHOUT_TOKEN) is None


@pytest.mark.parametrize("host", ["10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "0.0.0.0", "testclient", "", "127.1"])
def test_without_a_token_commands_from_elsewhere_are_refused_with_a_hint(host: str) -> None:
    refusal = decide_access(Purpose.COMMAND, Caller(host=host), WITHOUT_TOKEN)
    assert refusal is not None
    assert refusal.status == 403
    assert "HOLDFAST_API_KEY" in refusal.hint


def test_without_a_token_anyone_may_read() -> None:
    assert decide_access(Purpose.READ, Caller(host="203.0.113.9"), WITHOUT_TOKEN) is None


def test_without_a_token_a_command_that_a_proxy_sent_on_is_refused() -> None:
    refusal = decide_access(Purpose.COMMAND, Caller(host="127.0.0.1", forwarded=True), WITHOUT_TOKEN)
    assert refusal is not None
    assert refusal.status == 403


@pytest.mark.parametrize(
    "origin", ["https://foreign.example", "null", "", "http://127.0.0.1.foreign.example", "http://["]
)
def test_without_a_token_a_command_from_a_foreign_page_is_refused(origin: str) -> None:
    refusal = decide_access(Purpose.COMMAND, Caller(host="127.0.0.1", origin=origin), WITHOUT_TOKEN)
    assert refusal is not None
    assert refusal.status == 403


@pytest.mark.parametrize("origin", ["http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000"])
def test_without_a_token_a_command_from_a_page_of_this_machine_is_taken(origin: str) -> None:
    assert decide_access(Purpose.COMMAND, Caller(host="127.0.0.1", origin=origin), WITHOUT_TOKEN) is None


def test_the_variable_takes_the_place_of_the_servers_keys() -> None:
    access = Access.from_settings(["server-key"], {"HOLDFAST_API_KEY": "own\n"})
    assert access.knows(b"own")
    assert not access.knows(b"server-key")


@pytest.mark.parametrize("environ", [{}, {"HOLDFAST_API_KEY": ""}, {"HOLDFAST_API_KEY": "  "}])
def test_without_the_variable_the_servers_keys_count(environ: dict[str, str]) -> None:
    assert Access.from_settings(["server-key"], environ).knows(b"server-key")


def test_blank_keys_are_no_keys() -> None:
    assert Access.from_settings(["", " "], {}) == WITHOUT_TOKEN


def test_tokens_are_not_shown() -> None:
    assert "secret" not in repr(WITH_TOKEN)


@given(st.text())
def test_any_text_can_be_asked_whether_it_is_local(text: str) -> None:
    assert is_local_host(text) in (True, False)
