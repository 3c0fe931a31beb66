"""Effects of an injected fault on a real process, as seen by the watch of the ranks."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from holdfast.core.faults.classification import default_classifier, fault_of
from holdfast.core.faults.faults import FaultClass, Phase
from holdfast.core.faults.injection import FaultKind, InjectedFault, InjectionSpec, UncontainedFault
from holdfast.hosts.vllm.injection import ArmedFaults, trigger
from holdfast.progress import look_at

VICTIM = """
import sys
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec
from holdfast.hosts.vllm.injection import trigger
print("about to", flush=True)
trigger(InjectionSpec(phase=Phase.FORWARD, kind=FaultKind(sys.argv[1])))
"""


def victim(kind: FaultKind) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", VICTIM, kind], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"about to\n"
    return process


def in_state(process: subprocess.Popen[bytes], states: str, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while (there := look_at(process.pid).state in states) is False and time.monotonic() < deadline:
        time.sleep(0.01)
    return there


@pytest.mark.parametrize(
    ("kind", "states"),
    [(FaultKind.STOP, "T"), (FaultKind.HANG, "S"), (FaultKind.DEADLOCK, "S"), (FaultKind.SPIN, "R")],
)
def test_a_silent_process_stays_alive_in_the_state_of_the_fault(kind: FaultKind, states: str) -> None:
    with victim(kind) as process:
        try:
            assert in_state(process, states)
            assert process.poll() is None
        finally:
            process.kill()


def test_a_killed_process_ends() -> None:
    with victim(FaultKind.KILL) as process:
        assert process.wait(5) == -signal.SIGKILL


def test_an_injected_exception_has_its_phase() -> None:
    with pytest.raises(InjectedFault) as raised:
        trigger(InjectionSpec(phase=Phase.FORWARD, message="here"))
    assert raised.value.phase is Phase.FORWARD


def test_a_crash_is_an_exception_that_nothing_may_contain() -> None:
    with pytest.raises(UncontainedFault):
        trigger(InjectionSpec(phase=Phase.SCHEDULE_END, kind=FaultKind.CRASH))


def test_only_an_engine_core_can_crash() -> None:
    with pytest.raises(ValueError, match="crash is of an engine core's phase, not of forward"):
        InjectionSpec(phase=Phase.FORWARD, kind=FaultKind.CRASH)


def test_a_slow_step_continues_after_its_time() -> None:
    began = time.monotonic()
    trigger(InjectionSpec(phase=Phase.FORWARD, kind=FaultKind.SLOW, seconds=0.05))
    assert time.monotonic() - began >= 0.05


@pytest.mark.host
def test_an_out_of_memory_fault_raises_torchs_error_and_is_transient() -> None:
    pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as raised:
        trigger(InjectionSpec(phase=Phase.FORWARD, kind=FaultKind.OOM))
    fault = fault_of(raised.value, default_classifier(), engine_id=0)
    assert (fault.error_type, fault.fault_class) == ("OutOfMemoryError", FaultClass.TRANSIENT)
    assert getattr(raised.value, "phase", None) is Phase.FORWARD


def test_a_fault_counts_lines_of_the_hosts_code_and_raises_at_one() -> None:
    """Lines of other code do not count, and a step without so many lines leaves the rest to the next part."""
    code = compile("a = 1\nb = 2\nc = 3\n", "/vllm/step.py", "exec")
    reached: dict[str, int] = {}
    faults = ArmedFaults()
    faults.arm(InjectionSpec(phase=Phase.STEP_START, lines=5))
    faults.reach(Phase.STEP_START)
    faults.around(lambda: exec(code, reached))
    assert "c" in reached
    with pytest.raises(InjectedFault, match=r"at step\.py:2"):
        faults.around(lambda: exec(code, reached))
    faults.around(lambda: exec(code, reached))
    assert sys.gettrace() is None
