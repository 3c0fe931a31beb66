"""Bodies and queries of the control endpoints: commands in both formats, faults to inject, places in the events.

Pure: bytes in, structs out, or a `BadCommand` that names the field. Nothing here knows a web framework.
"""

from __future__ import annotations

import enum
import hashlib
import re
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from holdfast.core.config import SettingValue, changeable_keys
from holdfast.core.errors import BadCommand
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import MAX_ID, InjectionSpec
from holdfast.core.protocol.commands import (
    Command,
    Configure,
    Giver,
    InjectFault,
    Pause,
    RestartEngine,
    RestartWorkers,
    Resume,
    Retry,
)

MAX_BODY_BYTES = 64 * 1024
MAX_TIMEOUT_S = 3600
MAX_ENGINE_IDS = 1024
MAX_RANKS = 1024
MAX_KEY_CHARS = 200
MAX_SHOWN_CHARS = 300
INSTANCE_ID = "[0-9a-f]{32}"
IDEMPOTENCY_KEY = f"[!-~]{{1,{MAX_KEY_CHARS}}}"
KEY_FIELD = "idempotency_key"
MAX_SEQUENCE = 10**15 - 1


T = TypeVar("T")
P = TypeVar("P")
Name = TypeVar("Name", bound=enum.StrEnum)


def command_id_of(idempotency_key: str | None) -> str:
    """Return the id of a command: drawn anew, or made from the caller's key, so that a repetition has the same id.

    Raises:
        BadCommand: the key is blank, too long, or no visible ASCII.
    """
    if idempotency_key is None:
        return uuid.uuid4().hex
    if not re.fullmatch(IDEMPOTENCY_KEY, idempotency_key):
        text = f"an idempotency key has 1 to {MAX_KEY_CHARS} visible ASCII characters"
        raise BadCommand(text, hint="a UUID, for instance")
    return hashlib.sha256(b"idempotency-key:" + idempotency_key.encode()).hexdigest()[:32]


def _identify(fields: dict[str, Any], giver: Giver, keys: Sequence[str]) -> tuple[str, Giver]:
    """Take the idempotency key out of a body; return the id of the command, and the giver with the key.

    `keys` are those of the call's headers.
    """
    found = {key.strip() for key in keys}
    if KEY_FIELD in fields:
        in_body = fields.pop(KEY_FIELD)
        if not isinstance(in_body, str):
            raise BadCommand(f"bad field: {KEY_FIELD!r} must be a text")
        found.add(in_body)
    if len(found) > 1:
        raise BadCommand("the call has two idempotency keys", hint="send one, in the header or in the body")
    key = found.pop() if found else None
    return command_id_of(key), msgspec.structs.replace(giver, idempotency_key=key)


class CommandName(enum.StrEnum):
    """The commands of `/apply`, by the names that the wire formats call instructions."""

    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    RESTART_WORKER = "restart-worker"
    RESTART_ENGINE = "restart-engine"
    CONFIGURE = "configure"

    @property
    def is_for_one_engine(self) -> bool:
        return self in (CommandName.RESTART_WORKER, CommandName.RESTART_ENGINE)

    @property
    def wait_s(self) -> float:
        """Seconds to wait for the end when the caller names no time; a process that loads a model takes long."""
        return 300.0 if self.is_for_one_engine else 30.0


# Words of other servers that speak the same wire format.
OTHER_WORDS = {"continue": CommandName.RESUME}


class PauseMode(enum.StrEnum):
    """Mode of a pause."""

    HARD = "hard"  # at once, with broken collectives
    SOFT = "soft"  # at the next step boundary


TimeoutS = Annotated[float, msgspec.Meta(gt=0, le=MAX_TIMEOUT_S)]
EngineId = Annotated[int, msgspec.Meta(ge=-MAX_ID, le=MAX_ID)]  # an id that no engine has is not found
EngineIds = Annotated[
    tuple[EngineId, ...], msgspec.Meta(max_length=MAX_ENGINE_IDS, extra_json_schema={"uniqueItems": True})
]
Rank = Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)]
Ranks = Annotated[
    tuple[Rank, ...], msgspec.Meta(min_length=1, max_length=MAX_RANKS, extra_json_schema={"uniqueItems": True})
]
# Texts, not enums: an unknown name is answered with the known names, and never repeated in full.
InstructionName = Annotated[str, msgspec.Meta(extra_json_schema={"enum": [*CommandName, *OTHER_WORDS]})]
ModeName = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(PauseMode)})]
Changes = Annotated[
    dict[str, SettingValue],
    msgspec.Meta(extra_json_schema={"propertyNames": {"enum": list(changeable_keys())}, "minProperties": 1}),
]


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Engines and ranks of a command; without engines, all engines that the command applies to.

    `rank` or `ranks` name the workers of one engine to restart; without ranks, every worker.
    """

    engine_id: EngineId | None = None
    engine_ids: EngineIds | None = None
    mode: ModeName | None = None
    rank: Rank | None = None
    ranks: Ranks | None = None


class AwaitedRequest(msgspec.Struct, Generic[P], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The original format: the answer comes when the command has ended."""

    fault_tolerance_instruction: InstructionName
    fault_tolerance_timeout: TimeoutS | msgspec.UnsetType = msgspec.UNSET
    fault_tolerance_params: P | msgspec.UnsetType = msgspec.UNSET


class AcceptedRequest(msgspec.Struct, Generic[P], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The host's own format: the answer comes when the command is accepted."""

    instruction: InstructionName
    params: P | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True)
class AppliedCommand:
    """A command, in either request format; `timeout_s` is set when the caller waits for the end."""

    command: Command
    timeout_s: float | None = None


_AWAITED_KEY = "fault_tolerance_instruction"
_ACCEPTED_KEY = "instruction"


def parse_apply(body: bytes, giver: Giver, keys: Sequence[str] = ()) -> AppliedCommand:
    """Return the command in a request's body; `keys` are the idempotency keys of the headers. Raises `BadCommand`."""
    fields = _parse_object(body)
    command_id, giver = _identify(fields, giver, keys)
    applied = _parse_formats(fields, command_id)
    return replace(applied, command=msgspec.structs.replace(applied.command, given_by=giver))


def _parse_formats(fields: dict[str, Any], command_id: str) -> AppliedCommand:
    match _AWAITED_KEY in fields, _ACCEPTED_KEY in fields:
        case True, False:
            return _parse_awaited(fields, command_id)
        case False, True:
            return _parse_accepted(fields, command_id)
        case True, True:
            raise BadCommand(f"{_AWAITED_KEY!r} and {_ACCEPTED_KEY!r} are two formats", hint="send one of them")
    raise BadCommand("the body names no instruction", hint=f"send {_ACCEPTED_KEY!r} or {_AWAITED_KEY!r}")


def _parse_awaited(fields: dict[str, Any], command_id: str) -> AppliedCommand:
    request: AwaitedRequest[Params] | AwaitedRequest[Changes]
    if fields[_AWAITED_KEY] == CommandName.CONFIGURE:
        request = _convert(fields, AwaitedRequest[Changes])
    else:
        request = _convert(fields, AwaitedRequest[Params])
    name = _instruction(request.fault_tolerance_instruction)
    given_s = request.fault_tolerance_timeout
    timeout_s = name.wait_s if given_s is msgspec.UNSET else given_s
    return AppliedCommand(_command(command_id, name, request.fault_tolerance_params), timeout_s)


def _parse_accepted(fields: dict[str, Any], command_id: str) -> AppliedCommand:
    request: AcceptedRequest[Params] | AcceptedRequest[Changes]
    if fields[_ACCEPTED_KEY] == CommandName.CONFIGURE:
        request = _convert(fields, AcceptedRequest[Changes])
    else:
        request = _convert(fields, AcceptedRequest[Params])
    name = _instruction(request.instruction)
    return AppliedCommand(_command(command_id, name, request.params))


def _instruction(name: str) -> CommandName:
    return OTHER_WORDS.get(name) or _known(name, CommandName, "instruction")


def parse_injection(body: bytes, giver: Giver, keys: Sequence[str] = ()) -> InjectFault:
    """Return the command to inject the fault that a body describes, as `parse_apply` does. Raises `BadCommand`."""
    fields = _parse_object(body)
    command_id, giver = _identify(fields, giver, keys)
    if isinstance(phase := fields.get("phase"), str):
        _known(phase, Phase, "phase")
    return InjectFault(command_id=command_id, given_by=giver, spec=_convert(fields, InjectionSpec))


def parse_after(text: str | None) -> int:
    """Return the sequence number of `?after=`, 0 without `after`. Raises `BadCommand`."""
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_SEQUENCE))):
        raise BadCommand("'after' must be a sequence number", hint="a whole number from 0 up")
    return int(text)


def parse_instance_id(text: str | None) -> str | None:
    """Return the instance of `?instance_id=`, None without one. Raises `BadCommand`."""
    if text is not None and not re.fullmatch(INSTANCE_ID, text):
        raise BadCommand("'instance_id' must be that of a status or of an event", hint="32 digits and letters a to f")
    return text


def parse_flag(name: str, text: str | None) -> bool:
    """Return the value of a query parameter, False without a value. Raises `BadCommand`."""
    if text not in (None, "true", "false"):
        raise BadCommand(f"{name!r} must be true or false")
    return text == "true"


def is_json(content_type: str | None) -> bool:
    """Return whether a Content-Type header names JSON."""
    return (content_type or "").partition(";")[0].strip().lower() == "application/json"


def _command(command_id: str, name: CommandName, given: Params | Changes | msgspec.UnsetType) -> Command:
    if name is CommandName.CONFIGURE:
        return Configure(command_id=command_id, settings=given if isinstance(given, dict) else {})
    params = given if isinstance(given, Params) else Params()
    engine_ids, ranks, soft = _engine_ids(params), _ranks(name, params), _is_soft(name, params.mode)
    if name.is_for_one_engine and len(engine_ids) != 1:
        raise BadCommand(f"{name} is for one engine, {len(engine_ids)} are named", hint="name one engine")
    match name:
        case CommandName.PAUSE:
            return Pause(command_id=command_id, engine_ids=engine_ids, soft=soft)
        case CommandName.RESUME:
            return Resume(command_id=command_id, engine_ids=engine_ids)
        case CommandName.RETRY:
            return Retry(command_id=command_id, engine_ids=engine_ids)
        case CommandName.RESTART_WORKER:
            return RestartWorkers(command_id=command_id, engine_id=engine_ids[0], ranks=ranks)
        case CommandName.RESTART_ENGINE:
            return RestartEngine(command_id=command_id, engine_id=engine_ids[0])


def _engine_ids(params: Params) -> tuple[int, ...]:
    match params.engine_id, params.engine_ids:
        case None, named:
            _refuse_repeated(named or (), "engine")
            return named or ()
        case int(engine_id), None:
            return (engine_id,)
    raise BadCommand("'engine_id' and 'engine_ids' say the same", hint="send one of them")


def _ranks(name: CommandName, params: Params) -> tuple[int, ...]:
    ranks = params.ranks or ()
    if params.rank is not None:
        if ranks:
            raise BadCommand("'rank' and 'ranks' say the same", hint="send one of them")
        ranks = (params.rank,)
    if ranks and name is not CommandName.RESTART_WORKER:
        raise BadCommand(
            f"{name} is for whole engines", hint=f"'rank' and 'ranks' are for {CommandName.RESTART_WORKER} only"
        )
    _refuse_repeated(ranks, "rank")
    return ranks


def _refuse_repeated(ids: Sequence[int], what: str) -> None:
    if repeated := [named for named, times in Counter(ids).items() if times > 1]:
        field = "ranks" if what == "rank" else "engine_ids"
        raise BadCommand(f"{field!r} names {what} {repeated[0]} twice", hint=f"name every {what} once")


def _is_soft(command: CommandName, mode_name: str | None) -> bool:
    if mode_name is None:
        return False
    mode = _known(mode_name, PauseMode, "mode")
    if command is not CommandName.PAUSE:
        raise BadCommand(f"{command} cannot be {mode}", hint="'mode' is for pause only")
    return mode is PauseMode.SOFT


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadCommand(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadCommand("the body must be a JSON object")
    return value


def _convert(fields: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise BadCommand(f"bad field: {_shortened(str(error), MAX_SHOWN_CHARS)}") from None


def _known(name: str, kind: type[Name], field: str) -> Name:
    try:
        return kind(name)
    except ValueError:
        raise BadCommand(f"unknown {field} {_shortened(name, 40)!r}", hint="known: " + ", ".join(kind)) from None


def _shortened(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[:chars] + "…"
