"""An exception anywhere in a step: every stream goes on and ends with the tokens of a fault-free run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.chaos.control import FAULT, RECOVERED
from holdfast.chaos.history import History
from holdfast.chaos.loads import every_feature, few_tokens, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import FaultClass, Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec
from integration.helpers.servers import V1_ASYNC, V1_SYNC, V2_ASYNC, V2_SYNC, Kind, Servers, in_matrix, run
from integration.helpers.streams import assert_exact, faulted

pytestmark = [pytest.mark.host, pytest.mark.server]

# One engine alone agrees with nobody on its steps, and inside a recovery is another test's matter.
STEP_PHASES = [p for p in Phase if p not in (Phase.DP_SYNC, Phase.RECOVERY, Phase.REBUILD, Phase.RESUME)]
V1 = pytest.mark.parametrize("kind", [V1_SYNC, V1_ASYNC], ids=lambda k: k.name)
V1_ASYNC_FIRST = pytest.mark.parametrize("kind", [in_matrix(V1_SYNC), V1_ASYNC], ids=lambda k: k.name)
V2 = pytest.mark.parametrize("kind", [in_matrix(V2_SYNC), V2_ASYNC], ids=lambda k: k.name)
MakeLoad = Callable[[str], list[StreamSpec]]

_references: dict[tuple[str, str], list[History]] = {}


def reference(server: Server, kind: Kind, make_load: MakeLoad) -> list[History]:
    """The fault-free run of a load on a server, made once."""
    key = (kind.name, make_load.__name__)
    if key not in _references:
        _references[key] = run(Load(server.url, make_load(fresh_salt())).run())
    return _references[key]


def assert_recovered_from(events: list, phase: Phase) -> None:
    faults = [e["fault"] for e in events if e["kind"] == FAULT]
    assert faults, "the fault was never reported"
    assert faults[0]["error_type"] == "InjectedFault", faults
    if phase.in_worker:
        assert faults[0]["phase"] == phase
        assert faults[0]["rank"] == 0
    assert [e for e in events if e["kind"] == RECOVERED], "no recovery was reported"


def assert_exact_through(servers: Servers, kind: Kind, make_load: MakeLoad, *injections: InjectionSpec) -> list:
    """Run a load through faults, then once more into whatever the faults left in the prefix cache."""
    server = servers.shared(kind)
    expected = reference(server, kind, make_load)
    salt = fresh_salt()
    found, events = run(faulted(server, make_load(salt), *injections))
    assert_recovered_from(events, injections[0].phase)
    assert_exact(expected, found)
    assert_exact(expected, run(Load(server.url, make_load(salt)).run()))
    return events


@V1
@pytest.mark.parametrize("phase", STEP_PHASES)
def test_a_fault_in_the_middle_of_all_kinds_of_requests_changes_no_token(
    servers: Servers, kind: Kind, phase: Phase
) -> None:
    assert_exact_through(servers, kind, every_feature, InjectionSpec(phase=phase, after_steps=40))


@V1_ASYNC_FIRST
@pytest.mark.parametrize("phase", STEP_PHASES)
def test_a_fault_in_the_very_first_step_of_requests_changes_no_token(
    servers: Servers, kind: Kind, phase: Phase
) -> None:
    assert_exact_through(servers, kind, every_feature, InjectionSpec(phase=phase))


@V1_ASYNC_FIRST
@pytest.mark.parametrize("phase", [Phase.FORWARD, Phase.STEP_END, Phase.SCHEDULE_END, Phase.SAMPLE_END])
@pytest.mark.parametrize("chunk", [in_matrix(1), 2, 3])
def test_a_fault_in_a_chunked_prefill_changes_no_token(servers: Servers, kind: Kind, phase: Phase, chunk: int) -> None:
    assert_exact_through(servers, kind, every_feature, InjectionSpec(phase=phase, after_steps=chunk))


@V1
def test_the_same_fault_five_times_running_changes_no_token(servers: Servers, kind: Kind) -> None:
    assert_exact_through(servers, kind, every_feature, InjectionSpec(phase=Phase.FORWARD, after_steps=30, times=5))


@V1
def test_faults_at_several_phases_of_one_run_change_no_token(servers: Servers, kind: Kind) -> None:
    phases = (Phase.SAMPLE_END, Phase.OUTPUT_REQUEST, Phase.FORWARD, Phase.SCHEDULE_END, Phase.OUTPUT_END)
    injections = [InjectionSpec(phase=p, after_steps=12 * (i + 1)) for i, p in enumerate(phases)]
    events = assert_exact_through(servers, kind, every_feature, *injections)
    assert len([e for e in events if e["kind"] == FAULT]) >= 2


@V1
@pytest.mark.parametrize("request_index", [1, 3, 6])
def test_a_fault_before_any_request_of_a_batch_is_answered_loses_and_repeats_nothing(
    servers: Servers, kind: Kind, request_index: int
) -> None:
    injection = InjectionSpec(phase=Phase.OUTPUT_REQUEST, after_steps=25, request_index=request_index)
    assert_exact_through(servers, kind, every_feature, injection)


@V1
def test_a_fault_inside_the_recovery_changes_no_token(servers: Servers, kind: Kind) -> None:
    first = InjectionSpec(phase=Phase.FORWARD, after_steps=30)
    events = assert_exact_through(servers, kind, every_feature, first, InjectionSpec(phase=Phase.RECOVERY))
    assert [e for e in events if e["kind"] == "recovery-failed"]


def eight_greedy(salt: str) -> list[StreamSpec]:
    return [StreamSpec(f"s{i}", f"The keeper of boat {i}", max_tokens=60, cache_salt=salt) for i in range(8)]


def test_good_kv_is_kept_and_one_token_per_request_is_computed_again(servers: Servers) -> None:
    injection = InjectionSpec(phase=Phase.FORWARD, after_steps=30)
    events = assert_exact_through(servers, V1_SYNC, eight_greedy, injection)
    [report] = [e["report"] for e in events if e["kind"] == RECOVERED]
    assert (report["requests"], report["tokens_to_recompute"]) == (8, 8)
    assert report["kept_blocks"] >= 8


@V2
@pytest.mark.parametrize("phase", [Phase.SCHEDULE_END, Phase.FORWARD, Phase.SAMPLE_END, Phase.OUTPUT_REQUEST])
def test_runner_v2_goes_on_from_the_middle(servers: Servers, kind: Kind, phase: Phase) -> None:
    assert_exact_through(servers, kind, few_tokens, InjectionSpec(phase=phase, after_steps=7))


@V2
@pytest.mark.parametrize("phase", [Phase.FORWARD, Phase.SAMPLE_END])
def test_runner_v2_goes_on_from_the_first_step(servers: Servers, kind: Kind, phase: Phase) -> None:
    assert_exact_through(servers, kind, few_tokens, InjectionSpec(phase=phase))


def test_a_device_that_has_no_memory_left_is_tried_again_and_no_stream_notices(servers: Servers) -> None:
    server, kind = servers.shared(V1_ASYNC), V1_ASYNC
    expected = reference(server, kind, every_feature)
    spec = InjectionSpec(phase=Phase.FORWARD, kind=FaultKind.OOM, after_steps=30)
    found, events = run(faulted(server, every_feature(fresh_salt()), spec))
    [fault] = [e["fault"] for e in events if e["kind"] == FAULT]
    assert (fault["error_type"], fault["fault_class"], fault["phase"]) == (
        "OutOfMemoryError",
        FaultClass.TRANSIENT,
        Phase.FORWARD,
    )
    assert_exact(expected, found)
