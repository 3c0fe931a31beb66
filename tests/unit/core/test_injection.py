"""An armed fault counts passages and goes off when it is time."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import MAX_TIMES, ArmedFault, FaultKind, InjectedFault, InjectionSpec


@given(after=st.integers(0, 20), times=st.integers(1, 20), passages=st.integers(0, 60))
def test_a_trap_skips_its_steps_then_goes_off_so_many_times_in_a_row(after, times, passages):
    fault = ArmedFault(InjectionSpec(phase=Phase.FORWARD, after_steps=after, times=times))
    went_off = [fault.is_due() for _ in range(passages)]
    assert went_off == [after <= i < after + times for i in range(passages)]
    assert fault.spent == (passages >= after + times)


@pytest.mark.parametrize(
    "wrong",
    [
        {"phase": "lunch"},
        {"phase": "forward", "kind": "explode"},
        {"phase": "forward", "times": 0},
        {"phase": "forward", "times": MAX_TIMES + 1},
        {"phase": "forward", "after_steps": -1},
        {"phase": "forward", "lines": 1},
        {"phase": "step-start", "kind": "kill", "lines": 1},
        {"phase": "forward", "message": "x" * 201},
        {"phase": "forward", "unknown": 1},
        {"phase": "sample-end", "kind": "nan"},
        {"phase": "schedule-end", "kind": "oom"},
        {"phase": "forward", "kind": "crash"},
        {"phase": "forward", "kind": "slow", "seconds": 0},
        {"phase": "forward", "kind": "slow", "seconds": 601},
        {},
    ],
)
def test_a_specification_is_from_a_closed_list_and_bounded(wrong):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, InjectionSpec)


@pytest.mark.parametrize(
    ("batch", "together", "goes_off"),
    [
        (("cmpl-bad-0",), 1, True),
        (("cmpl-good-0",), 1, False),
        ((), 1, False),
        (("cmpl-bad-0", "cmpl-good-0"), 2, False),
        (("cmpl-bad-0", "cmpl-bad-1"), 2, True),
    ],
)
def test_a_trap_of_a_request_goes_off_in_its_steps_only(batch, together, goes_off):
    fault = ArmedFault(InjectionSpec(phase=Phase.FORWARD, request="bad", together=together))
    assert fault.is_due(batch) is goes_off


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"phase": Phase.SAMPLE_END, "kind": FaultKind.NAN}, "nan is of the phase forward, not of sample-end"),
        ({"phase": Phase.FORWARD, "kind": FaultKind.CRASH}, "crash is of an engine core's phase, not of forward"),
        (
            {"phase": Phase.SCHEDULE_END, "kind": FaultKind.OOM},
            "oom is of a device, which only workers use; schedule-end is a phase of an engine core",
        ),
    ],
)
def test_a_kind_of_fault_in_the_wrong_phase_is_refused_with_the_reason(wrong, why):
    with pytest.raises(ValueError) as caught:
        InjectionSpec(**wrong)
    assert str(caught.value) == why


def test_an_injected_fault_says_its_message_phase_and_kind():
    fault = InjectedFault(InjectionSpec(phase=Phase.FORWARD, kind=FaultKind.RAISE, message="as ordered"))
    assert (str(fault), fault.phase, fault.kind) == ("as ordered", Phase.FORWARD, FaultKind.RAISE)


def test_a_trap_that_skips_one_step_goes_off_at_the_second():
    fault = ArmedFault(InjectionSpec(phase=Phase.FORWARD, after_steps=1, times=1))
    assert [fault.is_due() for _ in range(3)] == [False, True, False]


def test_a_trap_that_skips_two_steps_goes_off_at_the_third():
    fault = ArmedFault(InjectionSpec(phase=Phase.FORWARD, after_steps=2, times=1))
    assert [fault.is_due() for _ in range(4)] == [False, False, True, False]


def test_only_missing_progress_shows_a_process_that_stops_hangs_spins_or_deadlocks():
    silent = {kind for kind in FaultKind if kind.is_silent}
    assert silent == {FaultKind.STOP, FaultKind.HANG, FaultKind.SPIN, FaultKind.DEADLOCK}


@pytest.mark.parametrize(
    ("phase", "kind", "kills"),
    [
        (Phase.SCHEDULE_START, FaultKind.KILL, True),
        (Phase.SCHEDULE_START, FaultKind.CRASH, True),
        (Phase.SCHEDULE_START, FaultKind.RAISE, False),
        (Phase.FORWARD, FaultKind.KILL, False),
    ],
)
def test_an_engine_core_ends_by_a_kill_or_a_crash_in_its_own_phases(phase, kind, kills):
    assert InjectionSpec(phase=phase, kind=kind).kills_engine_core is kills
