from __future__ import annotations

import msgspec
import pytest

from holdfast.api import formats
from holdfast.api.formats import ApplyCommand, Instruction
from holdfast.core.errors import BadInstruction
from holdfast.core.faults import FaultClass
from holdfast.core.states import EngineState
from support.control_plane import MemoryControl


def test_the_original_format_is_waited_for() -> None:
    body = b'{"fault_tolerance_instruction": "retry", "fault_tolerance_timeout": 7, "fault_tolerance_params": {}}'
    assert formats.parse_apply(body) == ApplyCommand(Instruction.RETRY, None, 7.0)


def test_the_original_format_waits_thirty_seconds_unless_told() -> None:
    assert formats.parse_apply(b'{"fault_tolerance_instruction": "retry"}').timeout_s == 30


def test_the_hosts_format_is_not_waited_for() -> None:
    assert formats.parse_apply(b'{"instruction": "retry", "params": {}}') == ApplyCommand(Instruction.RETRY, None, None)


@pytest.mark.parametrize(
    "body",
    [
        b'{"instruction": "retry", "params": {"engine_id": 1}}',
        b'{"fault_tolerance_instruction": "retry", "fault_tolerance_params": {"engine_id": 1}}',
    ],
)
def test_both_formats_may_name_an_engine(body: bytes) -> None:
    assert formats.parse_apply(body).engine_id == 1


BAD_BODIES = {
    "empty": (b"", "not valid JSON"),
    "not JSON": (b"{retry}", "not valid JSON"),
    "two objects": (b"{}{}", "not valid JSON"),
    "not text": (b"\xff\xfe\x00", "not valid JSON"),
    "not UTF-8 inside": (b'{"instruction": "\xff"}', "not valid JSON"),
    "half a character": (b'{"instruction": "\\ud800"}', ""),
    "too deep": (b"[" * 30_000, "not valid JSON"),
    "a list": (b'["retry"]', "must be a JSON object"),
    "a string": (b'"retry"', "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "no instruction": (b"{}", "names no instruction"),
    "both formats": (b'{"instruction": "retry", "fault_tolerance_instruction": "retry"}', "two formats"),
    "mixed formats": (b'{"instruction": "retry", "fault_tolerance_timeout": 3}', "fault_tolerance_timeout"),
    "unknown instruction": (b'{"instruction": "explode"}', "known: retry"),
    "the original's pause": (b'{"fault_tolerance_instruction": "pause"}', "known: retry"),
    "instruction in capitals": (b'{"instruction": "RETRY"}', "known: retry"),
    "a very long instruction": (b'{"instruction": "' + b"x" * 5000 + b'"}', "known: retry"),
    "instruction is a number": (b'{"instruction": 5}', "$.instruction"),
    "instruction is null": (b'{"instruction": null}', "$.instruction"),
    "unknown field": (b'{"instruction": "retry", "colour": "red"}', "colour"),
    "params is a list": (b'{"instruction": "retry", "params": []}', "$.params"),
    "params is null": (b'{"instruction": "retry", "params": null}', "$.params"),
    "unknown parameter": (b'{"instruction": "retry", "params": {"ranks": [1]}}', "ranks"),
    "engine is a string": (b'{"instruction": "retry", "params": {"engine_id": "0"}}', "$.params.engine_id"),
    "engine is a boolean": (b'{"instruction": "retry", "params": {"engine_id": true}}', "$.params.engine_id"),
    "engine is a fraction": (b'{"instruction": "retry", "params": {"engine_id": 0.5}}', "$.params.engine_id"),
    "engine is a list": (b'{"instruction": "retry", "params": {"engine_id": [0]}}', "$.params.engine_id"),
    "timeout is zero": (b'{"fault_tolerance_instruction": "retry", "fault_tolerance_timeout": 0}', "> 0"),
    "timeout is negative": (b'{"fault_tolerance_instruction": "retry", "fault_tolerance_timeout": -1}', "> 0"),
    "timeout is too long": (b'{"fault_tolerance_instruction": "retry", "fault_tolerance_timeout": 3601}', "<= 3600"),
    "timeout is a string": (b'{"fault_tolerance_instruction": "retry", "fault_tolerance_timeout": "30"}', "timeout"),
    "timeout is null": (b'{"fault_tolerance_instruction": "retry", "fault_tolerance_timeout": null}', "timeout"),
    "timeout is a boolean": (b'{"fault_tolerance_instruction": "retry", "fault_tolerance_timeout": true}', "timeout"),
    "timeout is not a number": (b'{"fault_tolerance_instruction": "retry", "fault_tolerance_timeout": NaN}', "JSON"),
    "timeout is infinite": (b'{"fault_tolerance_instruction": "retry", "fault_tolerance_timeout": 1e999}', ""),
}


@pytest.mark.parametrize(("body", "says"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_body_that_makes_no_sense_is_refused_with_the_reason(body: bytes, says: str) -> None:
    with pytest.raises(BadInstruction) as caught:
        formats.parse_apply(body)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_injection_is_read_with_its_defaults() -> None:
    spec = formats.parse_injection(b'{"phase": "forward"}')
    assert (spec.phase, spec.times, spec.engine_id) == ("forward", 1, 0)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"phase": "lunch"}',
        b'{"phase": "forward", "kind": "kill"}',
        b'{"phase": "forward", "times": 0}',
        b'{"phase": "forward", "after_steps": -1}',
        b'{"phase": "forward", "where": "here"}',
        b'{"phase": "forward", "rank": "0"}',
        b'{"phase": "forward", "message": "' + b"x" * 201 + b'"}',
        b"[]",
        b"nonsense",
    ],
)
def test_an_injection_that_makes_no_sense_is_refused(body: bytes) -> None:
    with pytest.raises(BadInstruction):
        formats.parse_injection(body)


@pytest.mark.parametrize(("text", "after"), [(None, 0), ("0", 0), ("17", 17), ("007", 7)])
def test_a_sequence_number_is_read(text: str | None, after: int) -> None:
    assert formats.parse_after(text) == after


@pytest.mark.parametrize("text", ["", "-1", "1.0", "x", "1e3", " 1", "1_0", "٣", "²", "9" * 16, "1\n"])
def test_what_is_no_sequence_number_is_refused(text: str) -> None:
    with pytest.raises(BadInstruction):
        formats.parse_after(text)


@pytest.mark.parametrize("header", ["application/json", "Application/JSON; charset=utf-8", "application/json ;x=y"])
def test_json_is_recognised(header: str) -> None:
    assert formats.is_json(header)


@pytest.mark.parametrize("header", [None, "", "text/plain", "application/jsonp", "application/x-www-form-urlencoded"])
def test_other_content_is_not_json(header: str | None) -> None:
    assert not formats.is_json(header)


def test_a_healthy_instance_looks_as_the_hosts_own_status_does_with_our_additions() -> None:
    status = msgspec.to_builtins(formats.render_status(MemoryControl((0, 1)).attach().view()))
    engine = status["engines"][1]
    assert status["schema_version"] == 1
    assert status["total_engines"] == 2
    assert engine.items() >= {"id": 1, "status": "healthy", "state": "healthy", "epoch": 0, "pid": 4001}.items()
    assert not {"fault_info", "ft_error", "last_ft_request_id", "defeat"} & (engine.keys() | status.keys())
    assert status["notify_address"] == "tcp://127.0.0.1:22867"


def test_a_paused_engine_is_unhealthy_and_says_why() -> None:
    status = formats.render_status(MemoryControl((0, 1)).attach().break_down(1).view())
    engine = status.engines[1]
    assert (status.ready, status.engines[0].status) == (False, "healthy")
    assert (engine.status, engine.state) == ("unhealthy", EngineState.PAUSED)
    assert engine.fault_info == "InjectedFault in engine 1, rank 0 at forward: injected fault"


def test_readiness_names_the_state_that_holds_things_up() -> None:
    view = MemoryControl((0, 1)).attach().break_down(1).view()
    assert formats.render_readiness(view) == formats.Readiness(ready=False, state=EngineState.PAUSED)


def test_a_defeated_instance_is_dead_whatever_its_engines_do() -> None:
    view = MemoryControl((0, 1)).attach().break_down(0).break_down(1, FaultClass.DEVICE).view()
    assert formats.instance_state(view) is EngineState.DEAD


def test_a_status_reads_back_as_it_was_written() -> None:
    status = formats.render_status(MemoryControl().attach().break_down().view())
    assert msgspec.json.decode(msgspec.json.encode(status), type=formats.Status) == status
