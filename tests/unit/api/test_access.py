"""Who may call: the token opens from anywhere, and without the token only what the transport itself says counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.api.access import (
    UNKNOWN_USER,
    Access,
    Caller,
    Peer,
    Purpose,
    decide_access,
    find_credential,
    is_loopback,
)
from holdfast.core.protocol.commands import Credential

OWN_USER = 1000
GUARDED = Access.by_token(b"secret", uid=OWN_USER)
OPEN = Access.by_token(b"secret", uid=OWN_USER, is_open=True)
FAR = Peer(address="203.0.113.9")
NEAR = Peer(address="127.0.0.1")
PROTECTED = pytest.mark.parametrize("purpose", [Purpose.READ, Purpose.COMMAND])


def status(purpose: Purpose, caller: Caller, access: Access = GUARDED) -> int | None:
    refusal = decide_access(purpose, caller, access)
    return None if refusal is None else refusal.status


@pytest.mark.parametrize("access", [GUARDED, OPEN])
def test_probes_are_always_let_in(access: Access) -> None:
    assert status(Purpose.PROBE, Caller(peer=FAR), access) is None


@PROTECTED
def test_the_token_lets_in_from_anywhere(purpose: Purpose) -> None:
    caller = Caller(authorization=b"Bearer secret", peer=FAR, origin="https://foreign")
    assert status(purpose, caller) is None


@PROTECTED
@pytest.mark.parametrize("peer", [Peer(), NEAR, FAR, Peer(uid=OWN_USER + 1), Peer(uid=0)])
@pytest.mark.parametrize("authorization", [None, b"", b"Bearer", b"Bearer ", b"Basic secret", b"secret"])
def test_no_bearer_token_is_answered_with_a_challenge(
    purpose: Purpose, authorization: bytes | None, peer: Peer
) -> None:
    refusal = decide_access(purpose, Caller(authorization, peer), GUARDED)
    assert refusal is not None
    assert (refusal.status, refusal.challenge) == (401, True)
    for way in ("holdfast token", "HOLDFAST_API_KEY", "--control-token-file"):
        assert way in refusal.hint


@pytest.mark.parametrize("authorization", [b"Bearer wrong", b"Bearer secret2", b"Bearer secre", b"bearer SECRET"])
@pytest.mark.parametrize("access", [GUARDED, OPEN])
@pytest.mark.parametrize("peer", [NEAR, Peer(uid=OWN_USER)])
def test_a_wrong_token_is_refused_even_to_who_needs_none(authorization: bytes, access: Access, peer: Peer) -> None:
    assert status(Purpose.READ, Caller(authorization, peer), access) == 403


def test_the_scheme_is_read_in_any_case() -> None:
    assert status(Purpose.READ, Caller(b"bEaReR secret")) is None


@pytest.mark.parametrize("token", ["schlüssel".encode(), b"\xa0ends\xa0", b"\x85", b"a b", b"\xff\xfe"])
def test_a_token_may_be_of_any_bytes_and_end_with_any(token: bytes) -> None:
    assert status(Purpose.READ, Caller(b"Bearer " + token), Access.by_token(token)) is None


@given(st.binary(), st.binary(min_size=1))
def test_no_header_but_the_right_one_opens(authorization: bytes, token: bytes) -> None:
    assert status(Purpose.COMMAND, Caller(authorization), Access.by_token(b"\0" + token)) is not None


@PROTECTED
def test_a_process_of_the_same_user_on_a_unix_socket_needs_no_token(purpose: Purpose) -> None:
    assert status(purpose, Caller(peer=Peer(uid=OWN_USER))) is None


def test_a_user_of_another_namespace_is_no_user_even_when_the_server_is_called_the_same() -> None:
    access = Access.by_token(b"secret", uid=UNKNOWN_USER)
    assert status(Purpose.COMMAND, Caller(peer=Peer(uid=UNKNOWN_USER)), access) == 401


@PROTECTED
@pytest.mark.parametrize("peer", [NEAR, Peer(address="::1"), Peer(address="::ffff:127.0.0.1"), Peer(uid=7)])
def test_control_that_was_opened_is_open_to_this_machine(purpose: Purpose, peer: Peer) -> None:
    assert status(purpose, Caller(peer=peer), OPEN) is None


@pytest.mark.parametrize("peer", [Peer(), FAR, Peer(address=""), Peer(address="testclient"), Peer(address="127.1")])
def test_control_that_was_opened_stays_shut_to_the_far_and_the_unknown(peer: Peer) -> None:
    assert status(Purpose.COMMAND, Caller(peer=peer), OPEN) == 401


@pytest.mark.parametrize(
    "origin", ["https://foreign.example", "null", "", "http://127.0.0.1.foreign.example", "http://["]
)
def test_control_that_was_opened_takes_nothing_from_a_foreign_page(origin: str) -> None:
    assert status(Purpose.COMMAND, Caller(peer=NEAR, origin=origin), OPEN) == 401


@pytest.mark.parametrize("origin", ["http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000"])
def test_control_that_was_opened_takes_commands_from_a_page_of_this_machine(origin: str) -> None:
    assert status(Purpose.COMMAND, Caller(peer=NEAR, origin=origin), OPEN) is None


@pytest.mark.parametrize("source", [Credential.TOKEN_FROM_ENVIRONMENT, Credential.TOKEN_FROM_FILE])
@pytest.mark.parametrize("peer", [Peer(), NEAR, Peer(uid=OWN_USER)])
def test_a_token_is_named_by_its_source_wherever_a_call_comes_from(source: Credential, peer: Peer) -> None:
    access = Access.by_token(b"secret", uid=OWN_USER, is_open=True, source=source)
    assert find_credential(Caller(b"Bearer secret", peer), access) is source
    assert find_credential(Caller(b"Bearer wrong", peer), access) is None


@pytest.mark.parametrize(
    ("peer", "access", "credential"),
    [
        (Peer(uid=OWN_USER), GUARDED, Credential.SAME_USER),
        (Peer(uid=OWN_USER), OPEN, Credential.SAME_USER),
        (Peer(uid=7), OPEN, Credential.OPEN_TO_THIS_MACHINE),
        (NEAR, OPEN, Credential.OPEN_TO_THIS_MACHINE),
        (NEAR, GUARDED, None),
        (FAR, OPEN, None),
    ],
)
def test_without_a_token_the_connection_is_what_admits(
    peer: Peer, access: Access, credential: Credential | None
) -> None:
    assert find_credential(Caller(peer=peer), access) is credential


def test_tokens_are_not_shown() -> None:
    assert "secret" not in repr(GUARDED)


@given(st.none() | st.text())
def test_any_text_can_be_asked_whether_it_is_this_machine(text: str | None) -> None:
    assert is_loopback(text) in (True, False)
