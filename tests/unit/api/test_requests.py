from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest

from holdfast.api import requests
from holdfast.api.requests import AppliedCommand, CommandName
from holdfast.core.errors import BadCommand
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol.commands import (
    Command,
    Configure,
    Credential,
    Giver,
    Pause,
    RestartEngine,
    RestartWorkers,
    Resume,
    Retry,
)

GIVER = Giver(credential=Credential.TOKEN_FROM_FILE, address="10.0.0.1")


def parse_apply(body: bytes) -> AppliedCommand:
    """The command of a body without what is drawn for each call."""
    applied = requests.parse_apply(body, GIVER)
    return replace(applied, command=msgspec.structs.replace(applied.command, command_id="c", given_by=None))


def parse_injection(body: bytes) -> InjectionSpec:
    return requests.parse_injection(body, GIVER).spec


TEMPLATES = (
    '{"instruction": "?", "params": {}}',
    '{"fault_tolerance_instruction": "?", "fault_tolerance_params": {}}',
)
PARAMS = (
    '"instruction": "retry", "params"',
    '"fault_tolerance_instruction": "retry", "fault_tolerance_params"',
)


def test_the_original_format_is_waited_for() -> None:
    body = b'{"fault_tolerance_instruction": "retry", "fault_tolerance_timeout": 7, "fault_tolerance_params": {}}'
    assert parse_apply(body) == AppliedCommand(Retry(command_id="c"), timeout_s=7.0)


def test_the_original_format_waits_thirty_seconds_unless_told() -> None:
    assert parse_apply(b'{"fault_tolerance_instruction": "retry"}').timeout_s == 30


def test_a_process_that_loads_a_model_is_waited_for_longer() -> None:
    body = b'{"fault_tolerance_instruction": "restart-engine", "fault_tolerance_params": {"engine_id": 0}}'
    assert parse_apply(body) == AppliedCommand(RestartEngine(command_id="c", engine_id=0), timeout_s=300)


def test_an_engine_core_is_restarted_with_all_its_ranks() -> None:
    for params, says in (("{}", "for one engine, 0 are named"), ('{"engine_id": 0, "rank": 0}', "whole engines")):
        with pytest.raises(BadCommand, match=says):
            parse_apply(f'{{"instruction": "restart-engine", "params": {params}}}'.encode())


def test_the_hosts_format_is_not_waited_for() -> None:
    assert parse_apply(b'{"instruction": "retry", "params": {}}') == AppliedCommand(Retry(command_id="c"))


@pytest.mark.parametrize("name", [i for i in CommandName if not i.is_for_one_engine])
@pytest.mark.parametrize("template", TEMPLATES)
def test_both_formats_know_every_instruction(template: str, name: str) -> None:
    assert parse_apply(template.replace("?", name).encode()).command.__struct_config__.tag == name


@pytest.mark.parametrize(
    ("params", "engine_ids"),
    [
        ("{}", ()),
        ('{"engine_id": 1}', (1,)),
        ('{"engine_id": null}', ()),
        ('{"engine_ids": []}', ()),
        ('{"engine_ids": [2, 0]}', (2, 0)),
        ('{"engine_id": 1, "engine_ids": null}', (1,)),
    ],
)
@pytest.mark.parametrize("key", PARAMS)
def test_both_formats_may_name_engines(key: str, params: str, engine_ids: tuple[int, ...]) -> None:
    assert parse_apply(f"{{{key}: {params}}}".encode()).command == Retry(command_id="c", engine_ids=engine_ids)


@pytest.mark.parametrize(("params", "soft"), [("{}", False), ('{"mode": "hard"}', False), ('{"mode": "soft"}', True)])
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_pause_is_hard_unless_told(template: str, params: str, soft: bool) -> None:
    body = template.replace("?", "pause").replace("{}", params)
    assert parse_apply(body.encode()).command == Pause(command_id="c", soft=soft)


@pytest.mark.parametrize("template", TEMPLATES)
def test_both_formats_may_change_settings(template: str) -> None:
    body = template.replace("?", "configure").replace("{}", '{"max_retries": 3, "max_ranks_out": "25%"}')
    changes = {"max_retries": 3, "max_ranks_out": "25%"}
    assert parse_apply(body.encode()).command == Configure(command_id="c", settings=changes)


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
    "unknown instruction": (b'{"instruction": "explode"}', "known: pause, resume, retry"),
    "unknown instruction of the original": (b'{"fault_tolerance_instruction": "explode"}', "known: pause, resume"),
    "instruction in capitals": (b'{"instruction": "RETRY"}', "known: pause, resume, retry"),
    "a very long instruction": (b'{"instruction": "' + b"x" * 5000 + b'"}', "known: pause, resume, retry"),
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
    "one engine and several": (
        b'{"instruction": "retry", "params": {"engine_id": 0, "engine_ids": [1]}}',
        "one of them",
    ),
    "one engine and none": (b'{"instruction": "retry", "params": {"engine_id": 0, "engine_ids": []}}', "one of them"),
    "an engine twice": (b'{"instruction": "retry", "params": {"engine_ids": [3, 4, 3]}}', "names engine 3 twice"),
    "too many engines": (
        b'{"instruction": "retry", "params": {"engine_ids": [' + b"0," * 1024 + b"0]}}",
        "length <= 1024 - at `$.params.engine_ids`",
    ),
    "engines are a number": (b'{"instruction": "retry", "params": {"engine_ids": 0}}', "$.params.engine_ids"),
    "an engine of several is a string": (
        b'{"instruction": "retry", "params": {"engine_ids": ["0"]}}',
        "$.params.engine_ids[0]",
    ),
    "unknown mode": (b'{"instruction": "pause", "params": {"mode": "gentle"}}', "unknown mode 'gentle'"),
    "unknown mode, the known ones": (b'{"instruction": "pause", "params": {"mode": ""}}', "known: hard, soft"),
    "mode is a boolean": (b'{"instruction": "pause", "params": {"mode": true}}', "$.params.mode"),
    "a setting that is a list": (b'{"instruction": "configure", "params": {"max_retries": [1]}}', "$.params[...]"),
    "a setting that is null": (b'{"instruction": "configure", "params": {"max_retries": null}}', "$.params[...]"),
    "settings are a list": (b'{"instruction": "configure", "params": []}', "$.params"),
    "soft retry": (b'{"instruction": "retry", "params": {"mode": "soft"}}', "retry cannot be soft"),
    "hard resume": (b'{"instruction": "resume", "params": {"mode": "hard"}}', "'mode' is for pause only"),
    "a field with a very long name": (b'{"instruction": "retry", "' + b"x" * 5000 + b'": 1}', "unknown field"),
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
    with pytest.raises(BadCommand) as caught:
        parse_apply(body)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_injection_is_read_with_its_defaults() -> None:
    spec = parse_injection(b'{"phase": "forward"}')
    assert (spec.phase, spec.times, spec.engine_id) == ("forward", 1, 0)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"phase": "lunch"}',
        b'{"phase": "forward", "kind": "explode"}',
        b'{"phase": "forward", "times": 0}',
        b'{"phase": "forward", "after_steps": -1}',
        b'{"phase": "forward", "where": "here"}',
        b'{"phase": "forward", "rank": "0"}',
        b'{"phase": "forward", "message": "' + b"x" * 201 + b'"}',
        b'{"phase": 3}',
        b"[]",
        b"nonsense",
    ],
)
def test_an_injection_that_makes_no_sense_is_refused(body: bytes) -> None:
    with pytest.raises(BadCommand):
        parse_injection(body)


def test_an_unknown_phase_is_answered_with_the_known_ones() -> None:
    with pytest.raises(BadCommand, match="unknown phase 'lunch'") as caught:
        parse_injection(b'{"phase": "lunch"}')
    assert [phase for phase in Phase if phase not in caught.value.hint] == []


@pytest.mark.parametrize(("text", "after"), [(None, 0), ("0", 0), ("17", 17), ("007", 7)])
def test_a_sequence_number_is_read(text: str | None, after: int) -> None:
    assert requests.parse_after(text) == after


@pytest.mark.parametrize("text", ["", "-1", "1.0", "x", "1e3", " 1", "1_0", "٣", "²", "9" * 16, "1\n"])
def test_what_is_no_sequence_number_is_refused(text: str) -> None:
    with pytest.raises(BadCommand):
        requests.parse_after(text)


@pytest.mark.parametrize("header", ["application/json", "Application/JSON; charset=utf-8", "application/json ;x=y"])
def test_json_is_recognised(header: str) -> None:
    assert requests.is_json(header)


@pytest.mark.parametrize("header", [None, "", "text/plain", "application/jsonp", "application/x-www-form-urlencoded"])
def test_other_content_is_not_json(header: str | None) -> None:
    assert not requests.is_json(header)


# ---- restart-worker

RESTART = (
    '"instruction": "restart-worker", "params"',
    '"fault_tolerance_instruction": "restart-worker", "fault_tolerance_params"',
)


@pytest.mark.parametrize(
    ("params", "ranks"),
    [
        ('{"engine_id": 1}', ()),
        ('{"engine_ids": [1]}', ()),
        ('{"engine_id": 1, "rank": 0}', (0,)),
        ('{"engine_id": 1, "ranks": [3, 2]}', (3, 2)),
        ('{"engine_id": 1, "rank": null, "ranks": null}', ()),
    ],
)
@pytest.mark.parametrize("key", RESTART)
def test_both_formats_may_name_the_ranks_of_one_engine_to_restart(
    key: str, params: str, ranks: tuple[int, ...]
) -> None:
    applied = parse_apply(f"{{{key}: {params}}}".encode())
    assert applied.command == RestartWorkers(command_id="c", engine_id=1, ranks=ranks)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ("{}", "for one engine, 0 are named"),
        ('{"engine_ids": []}', "for one engine, 0 are named"),
        ('{"engine_ids": [0, 1], "rank": 0}', "for one engine, 2 are named"),
        ('{"engine_id": 0, "rank": 0, "ranks": [1]}', "'rank' and 'ranks' say the same"),
        ('{"engine_id": 0, "ranks": [1, 1]}', "'ranks' names rank 1 twice"),
        ('{"engine_id": 0, "ranks": []}', "bad field"),
        ('{"engine_id": 0, "rank": -1}', "bad field"),
        ('{"engine_id": 0, "rank": "0"}', "bad field"),
        ('{"engine_id": 0, "mode": "soft"}', "cannot be soft"),
    ],
)
@pytest.mark.parametrize("key", RESTART)
def test_a_restart_that_does_not_say_whose_workers_is_refused(key: str, params: str, says: str) -> None:
    with pytest.raises(BadCommand, match=says):
        parse_apply(f"{{{key}: {params}}}".encode())


@pytest.mark.parametrize("name", ["pause", "resume", "retry"])
@pytest.mark.parametrize("ranks", ['"rank": 0', '"ranks": [0]'])
def test_ranks_are_for_restart_worker_only(name: str, ranks: str) -> None:
    with pytest.raises(BadCommand, match="is for whole engines"):
        parse_apply(f'{{"instruction": "{name}", "params": {{{ranks}}}}}'.encode())


# ---- idempotency keys and givers


BODIES = {
    "awaited": b'{"fault_tolerance_instruction": "pause"',
    "accepted": b'{"instruction": "pause"',
    "inject": b'{"phase": "forward"',
}
EVERY_BODY = pytest.mark.parametrize("name", BODIES)


def command_of(name: str, fields: bytes = b"", keys: Sequence[str] = ()) -> Command:
    body = BODIES[name] + fields + b"}"
    if name == "inject":
        return requests.parse_injection(body, GIVER, keys)
    return requests.parse_apply(body, GIVER, keys).command


@EVERY_BODY
def test_the_key_may_be_in_the_header_or_in_the_body_or_the_same_in_both(name: str) -> None:
    in_body = b', "idempotency_key": "one"'
    commands = [
        command_of(name, keys=["one"]),
        command_of(name, in_body),
        command_of(name, in_body, [" one "]),
        command_of(name, in_body, ["one", "one"]),
    ]
    assert {c.command_id for c in commands} == {requests.command_id_of("one")}
    assert {c.given_by for c in commands} == {msgspec.structs.replace(GIVER, idempotency_key="one")}


@EVERY_BODY
def test_a_command_without_a_key_has_an_id_of_its_own_and_a_giver_without_key(name: str) -> None:
    first, second = command_of(name), command_of(name)
    assert first.command_id != second.command_id
    assert first.given_by == second.given_by == GIVER


@EVERY_BODY
@pytest.mark.parametrize(("fields", "keys"), [(b', "idempotency_key": "one"', ["two"]), (b"", ["one", "two"])])
def test_two_different_keys_are_refused(name: str, fields: bytes, keys: list[str]) -> None:
    with pytest.raises(BadCommand, match="two idempotency keys"):
        command_of(name, fields, keys)


@EVERY_BODY
@pytest.mark.parametrize(
    "key", ['""', '" "', '"a b"', '"k\\n"', '"\\u001b[2J"', '"ü"', "null", "5", '["one"]', '"' + "x" * 201 + '"']
)
def test_a_key_in_the_body_that_is_no_key_is_refused(name: str, key: str) -> None:
    with pytest.raises(BadCommand, match="key"):
        command_of(name, f', "idempotency_key": {key}'.encode())


@pytest.mark.parametrize("key", ["instruction", "fault_tolerance_instruction"])
def test_continue_is_another_word_for_resume(key: str) -> None:
    assert isinstance(parse_apply(f'{{"{key}": "continue"}}'.encode()).command, Resume)
