"""Commands: how long each may take, and how errors of commands cross the wire."""

import pytest

from holdfast.core.config import HoldfastConfig, runtime_settings
from holdfast.core.errors import BadCommand, CommandConflict, RecoveryFailed, UnknownEngine
from holdfast.core.faults.redaction import WITHHELD
from holdfast.core.protocol import commands as c
from holdfast.core.protocol import link_messages as lm
from holdfast.core.protocol.events import DecisionRecord

SETTINGS = runtime_settings(
    HoldfastConfig(
        containment_timeout_s=1.0,
        drain_timeout_s=10.0,
        rebuild_timeout_s=100.0,
        worker_start_timeout_s=1000.0,
        engine_start_timeout_s=10_000.0,
    )
)


@pytest.mark.parametrize(
    ("command", "longest_s"),
    [
        (c.Pause(command_id="x"), 111.0),
        (c.Retry(command_id="x"), 1111.0),
        (c.Resume(command_id="x"), 1111.0),
        (c.RestartWorkers(command_id="x", engine_id=0), 1111.0),
        (c.RestartEngine(command_id="x", engine_id=0), 10_112.0),
    ],
)
def test_a_command_may_take_as_long_as_the_processes_that_it_starts(command, longest_s):
    assert command.longest_s(SETTINGS) == longest_s


@pytest.mark.parametrize(
    "error",
    [
        BadCommand("no such key", hint="look at the reference"),
        UnknownEngine("there is no engine 9", hint="there are 0 and 1"),
        CommandConflict("the engine is recovering", state="recovering", hint="wait"),
        RecoveryFailed("rank 1 did not come back", hint="look at the log"),
    ],
)
def test_an_error_of_a_command_arrives_as_it_was_raised(error):
    arrived = lm.as_error(lm.describe(error))
    assert (type(arrived), str(arrived), vars(arrived)) == (type(error), str(error), vars(error))


def test_an_error_that_is_not_our_own_arrives_as_a_failure_with_its_type_and_without_its_text():
    arrived = lm.as_error(lm.describe(ValueError("boom")))
    assert (type(arrived), str(arrived)) == (RecoveryFailed, f"ValueError: {WITHHELD}")


def test_messages_of_a_link_arrive_as_they_were_sent():
    reported = lm.LinkReported(link_id=1, pid=2, hooks=("h",), sequence=3)
    settled = lm.Settled(submission="x", error=lm.describe(BadCommand("no")))
    submitted = lm.Submitted(submission="x", command=c.Pause(command_id="c", engine_ids=(1,), soft=True))
    assert lm.decode_from_link(lm.encode(reported)) == reported
    assert lm.decode_from_link(lm.encode(submitted)) == submitted
    assert lm.decode_to_link(lm.encode(settled)) == settled


def test_the_facts_of_a_decision_are_keys_and_values_without_those_that_are_unknown():
    record = DecisionRecord(action="retry", rung=1, policy="auto", fault_class="transient", rank=0, tries=1, limit=3)
    assert str(record) == "action=retry rung=1 try=1/3 class=transient rank=0 policy=auto"
    assert str(DecisionRecord(action="exit", rung=5, policy="auto")) == "action=exit rung=5 policy=auto"
