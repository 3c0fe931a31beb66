"""The error tree is the one drawn at the head of its file."""

import inspect

import pytest

from holdfast.core import errors

ALL = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.HoldfastError)]
FAULT_OF = (errors.OperatorError, errors.HostError, errors.WorldError, errors.RecoveryError)


@pytest.mark.parametrize("error", [c for c in ALL if c is not errors.HoldfastError])
def test_every_error_is_exactly_one_party_s_fault(error):
    assert sum(issubclass(error, party) for party in FAULT_OF) == 1


@pytest.mark.parametrize("error", ALL)
def test_the_head_of_the_file_draws_every_error(error):
    assert f" {error.__name__}" in (errors.__doc__ or "")


def test_an_error_says_what_to_do_in_brackets():
    error = errors.PortInUse("port 80 is taken", hint="choose another")
    assert (str(error), error.message, error.hint) == (
        "port 80 is taken (choose another)",
        "port 80 is taken",
        "choose another",
    )


def test_an_error_without_a_hint_is_its_message():
    assert str(errors.PeerSilent("rank 1 is silent")) == "rank 1 is silent"


def test_a_conflict_carries_the_state_it_was_in():
    assert errors.CommandConflict("no", state="healthy").state == "healthy"


def test_an_error_that_knows_no_remedy_names_none():
    for error in (errors.HoldfastError("no"), errors.CommandConflict("no", state="healthy")):
        assert (str(error), error.hint) == ("no", "")


def test_a_silent_peer_is_named_with_its_rank_and_a_remedy():
    error = errors.PeerSilent("rank 1 is silent", hint="restart the server", rank=1)
    assert (str(error), error.rank) == ("rank 1 is silent (restart the server)", 1)


def test_non_finite_logits_are_an_error_with_a_message_and_requests():
    error = errors.NonFiniteLogits("NaN at row 3", request_ids=["a", "b"])
    assert (str(error), error.request_ids, error.phase) == ("NaN at row 3", ("a", "b"), None)
