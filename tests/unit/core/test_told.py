"""Errors, decisions and foreign bytes, as they are told to people and between processes."""

import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import RecoveryFailed
from holdfast.core.faults.redaction import WITHHELD
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.decoding import MAX_MESSAGE_BYTES, Undecodable
from holdfast.core.protocol.events import DecisionRecord
from holdfast.core.protocol.link_messages import CommandError, ErrorKind, describe
from support.instance_bench import Bench


def test_an_error_of_no_known_kind_is_a_failure_with_its_type_and_without_its_text():
    assert describe(ValueError("boom")) == CommandError(kind=ErrorKind.FAILED, message=f"ValueError: {WITHHELD}")


def test_an_error_of_a_recovery_keeps_its_hint():
    assert describe(RecoveryFailed("no", hint="try again")) == CommandError(
        kind=ErrorKind.FAILED, message="no", hint="try again"
    )


def test_a_message_of_the_largest_size_is_looked_at_and_a_larger_one_is_not():
    with pytest.raises(Undecodable) as looked_at:
        m.decode_from_worker(bytes(MAX_MESSAGE_BYTES))
    with pytest.raises(Undecodable) as too_large:
        m.decode_from_worker(bytes(MAX_MESSAGE_BYTES + 1))
    assert str(looked_at.value) == "Expected `object`, got `int`"
    assert str(too_large.value) == f"{MAX_MESSAGE_BYTES + 1} bytes are more than {MAX_MESSAGE_BYTES}"


def test_a_decision_is_told_in_a_log_line_by_its_figures():
    decision = DecisionRecord(
        action="await-instruction",
        rung=2,
        policy="dry-run",
        fault_class="device",
        rank=1,
        tries=1,
        limit=3,
        ranks_out=4,
        would="restart-workers",
    )
    assert str(decision) == (
        "action=await-instruction would=restart-workers rung=2 try=1/3 class=device rank=1 ranks_out=4 policy=dry-run"
    )
    assert str(DecisionRecord(action="retry", rung=1, policy="auto")) == "action=retry rung=1 policy=auto"


def test_an_instance_shows_no_engine_core_that_it_does_not_have():
    assert Bench(HoldfastConfig()).instance.view().engine(7) is None
