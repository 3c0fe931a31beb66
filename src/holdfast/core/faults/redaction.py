"""Texts of exceptions without user data, by an allow-list: what is not known to be harmless is replaced by `<...>`.

Three things are kept: string constants of the code that raised, each once and in the order of the code; sentences of
the system, from the closed list in `known_sentences`; values of a harmless shape whose expression has a harmless name.
So prompts and tokens never pass, whatever an exception formats. Needs no source file: reads the code object of the
last frame. Must never raise, and takes less than 5 ms.
"""

from __future__ import annotations

import dis
import re
from collections import deque
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, TracebackType
from typing import NamedTuple

from holdfast.core.faults.known_sentences import HELD_BACK, known_sentence

WITHHELD = "<text withheld>"
NO_MESSAGE = "no message"
MAX_TEXT_CHARS = 2000
MAX_NAME_CHARS = 100
MAX_CONSTANTS = 200
MAX_STATEMENT_UNITS = 4000  # of code, of two bytes
MAX_CAUSES = 3
MAX_FRAMES = 24
MIN_CONSTANT_CHARS = 8  # of a constant from elsewhere in the function: shorter ones occur in any text


class PublicText(str):
    """Text of an exception that holds no user data, as the code that raises promises."""

    __slots__ = ()


class Account(NamedTuple):
    """An exception in words that anybody may read; `full_text` is the text as it is, empty when nothing is withheld."""

    error_type: str
    message: str
    place: str = ""
    full_text: str = ""

    def __str__(self) -> str:
        return f"{self.error_type}: {self.message}"


def account_of(error: BaseException) -> Account:
    """Return type, text and place of an exception without user data, all bounded and on one line. Never raises."""
    full = text_of(error)
    try:
        message = redact(error, full)
    except Exception:
        message = WITHHELD
    return Account(_name_of(type(error)), message, place_of(error), "" if message == full else full)


def text_of(error: BaseException) -> str:
    """Return the text of an exception as it is, on one line, bounded and safe to send. Never raises."""
    try:
        text = " ".join(str(error)[: 4 * MAX_TEXT_CHARS].split()) or NO_MESSAGE
    except Exception as broken:
        text = f"no message: its text raises {_name_of(type(broken))}"
    return text[:MAX_TEXT_CHARS].encode(errors="replace").decode()


def place_of(error: BaseException) -> str:
    """Return where an exception was raised, as `file:line function`; empty when that is unknown. Never raises."""
    last = _last_frame(error)
    return "" if last is None else _place_in(last)


def stack_of(error: BaseException) -> tuple[str, ...]:
    """Return the place in each frame of an exception, outermost first; the last `MAX_FRAMES`. Never raises."""
    places: deque[str] = deque(maxlen=MAX_FRAMES)
    frame = error.__traceback__
    while frame is not None:
        places.append(_place_in(frame))
        frame = frame.tb_next
    return tuple(places)


def _place_in(frame: TracebackType) -> str:
    code = frame.tb_frame.f_code
    parts = code.co_filename.replace("\\", "/").split("/")
    below = parts.index("site-packages") + 1 if "site-packages" in parts else -3
    place = f"{'/'.join(parts[below:])}:{frame.tb_lineno} {code.co_name}"
    return place[-MAX_NAME_CHARS * 2 :].encode(errors="replace").decode()


def redact(error: BaseException, text: str, depth: int = 0) -> str:
    """Return `text`, which is that of `error`, with everything held back that may be user data."""
    if text == NO_MESSAGE or (error.args and isinstance(error.args[0], PublicText) and text == text_of(error)):
        return text
    cause = error.__cause__ or error.__context__
    if cause is not None and depth < MAX_CAUSES and text == text_of(cause):
        return redact(cause, text, depth + 1)
    last = _last_frame(error)
    code = None if last is None else last.tb_frame.f_code
    statement = None if last is None else _raise_statement(last)
    names = () if code is None else (*code.co_names, *code.co_varnames)
    if code is None or statement is None:
        return known_sentence(text, names, by_code=code is None) or WITHHELD
    template = _template_of(statement)
    exact = _match_exactly(template, text)
    if exact is not None:
        return _fill(template, exact, cause, depth)
    constants = [part for part in template if isinstance(part, str)]
    said = known_sentence(text, names, by_code=True)
    return said or _keep(constants, text) or _keep(_constants_around(error, code), text) or WITHHELD


def _name_of(kind: type) -> str:
    name = kind.__name__
    return name if name.isascii() and name.isidentifier() and len(name) <= MAX_NAME_CHARS else "Exception"


def _last_frame(error: BaseException) -> TracebackType | None:
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last


# ---- the statement that raised: string constants and values in between


class Hole(NamedTuple):
    """A value between the constants of a message; `name` of its expression, where that is a simple one."""

    name: str | None = None


Part = str | Hole


def _raise_statement(frame: TracebackType) -> Sequence[dis.Instruction] | None:
    """Return the instructions of the statement that raised; None when the frame's code did not raise itself."""
    code, at = frame.tb_frame.f_code, frame.tb_lasti // 2
    if at < 0 or dis.opname[code.co_code[2 * at]] != "RAISE_VARARGS":
        return None
    positions = [p for p, _ in zip(code.co_positions(), range(at + 1), strict=False)]
    line, end_line, column, end_column = positions[at]
    first = at
    if None not in (line, end_line, column, end_column):
        while first > max(0, at - MAX_STATEMENT_UNITS) and _is_within(positions[first - 1], positions[at]):
            first -= 1
    part = code.replace(co_code=code.co_code[2 * first : 2 * at + 2], co_linetable=b"", co_exceptiontable=b"")
    return list(dis.get_instructions(part))


_Position = tuple[int | None, int | None, int | None, int | None]


def _is_within(inner: _Position, outer: _Position) -> bool:
    starts, ends = (inner[0], inner[2]), (inner[1], inner[3])
    return None not in inner and starts >= (outer[0], outer[2]) and ends <= (outer[1], outer[3])


_LOADS = frozenset({"LOAD_FAST", "LOAD_DEREF", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW"})
_CALLS = frozenset({"PRECALL", "CALL", "PUSH_NULL", "CACHE", "NOP", "EXTENDED_ARG"})
_FORMATS = frozenset({"FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC"})


def _template_of(statement: Sequence[dis.Instruction]) -> list[Part]:
    """Return the parts of the message that a statement builds, as far as its instructions tell."""
    parts: list[Part] = []
    name: str | None = ""  # of the expression so far: empty at its beginning, None when it is no simple one
    for each in statement:
        if each.opname == "LOAD_CONST" and isinstance(each.argval, str):
            parts += _constant(each.argval)
            name = ""
        elif each.opname in _FORMATS:
            if each.opname == "FORMAT_WITH_SPEC" or (each.opname == "FORMAT_VALUE" and (each.arg or 0) & 4):
                del parts[-1:]  # how the value is to be formatted
                name = None
            parts.append(Hole(name or None))
            name = ""
        else:
            name = _named(name, each)
    return _merged(parts)


def _named(name: str | None, each: dis.Instruction) -> str | None:
    """Return the name of an expression after another instruction of it."""
    if each.opname in _LOADS:
        return {"": str(each.argval), "len": "len"}.get(name or "") if name is not None else None
    if each.opname == "LOAD_ATTR" and name:
        return name if name == "len" else str(each.argval)
    return name if each.opname in _CALLS and name in ("", "len") else None


_FIELD = re.compile(r"%[-#0 +]*(?:\d+|\*)?(?:\.\d+)?[sdrfxiegc%]|\{[^{}]*\}")


def _constant(text: str) -> Iterator[Part]:
    """Yield the parts of a constant, which may have fields of its own for `%` or `format`."""
    for index, literal in enumerate(_FIELD.split(text)):
        if index:
            yield Hole()
        if literal:
            yield literal


def _merged(parts: Sequence[Part]) -> list[Part]:
    """Return the parts with values that follow each other in one, and a value between constants that do.

    Such constants are no neighbours in the message: one of them is, for instance, the key of a dictionary.
    """
    merged: list[Part] = []
    for part in parts:
        if isinstance(part, Hole):
            after_hole = bool(merged) and isinstance(merged[-1], Hole)
            merged[-1:] = [Hole()] if after_hole else [*merged[-1:], part]
        else:
            between = [Hole()] if merged and isinstance(merged[-1], str) else []
            merged += [*between, re.sub(r"\s+", " ", part)]
    return merged


# ---- texts against constants


def _match_exactly(template: Sequence[Part], text: str) -> list[str] | None:
    """Return the values of a text that the template has made, when there is one way only to divide the text."""
    constants = [part for part in template if isinstance(part, str)]
    if not any(map(_has_words, constants)):
        return None
    lefts, at = [], 0
    for constant in constants:
        found = text.find(constant, at)
        if found < 0:
            return None
        lefts.append(found)
        at = found + len(constant)
    rights, end = [], len(text)
    for constant in reversed(constants):
        found = text.rfind(constant, 0, end)
        rights.append(found)
        end = found
    begins_with_value, ends_with_value = isinstance(template[0], Hole), isinstance(template[-1], Hole)
    if lefts != rights[::-1] or (lefts[0] and not begins_with_value) or (at < len(text) and not ends_with_value):
        return None
    starts = [0, *(left + len(c) for left, c in zip(lefts, constants, strict=True))]
    values = [text[start:stop] for start, stop in zip(starts, [*lefts, len(text)], strict=True)]
    return values[0 if begins_with_value else 1 : None if ends_with_value else -1]


def _fill(template: Sequence[Part], values: Sequence[str], cause: BaseException | None, depth: int) -> str:
    left = iter(values)
    return "".join(p if isinstance(p, str) else _shown(p, next(left), cause, depth) for p in template)


def _shown(hole: Hole, value: str, cause: BaseException | None, depth: int) -> str:
    """Return a value when its name and its shape are harmless, and the account of a cause in place of its text."""
    if not value or (hole.name is not None and _NAME.fullmatch(hole.name) and _SHAPE.fullmatch(value)):
        return value
    if cause is not None and depth < MAX_CAUSES and value == text_of(cause):
        return redact(cause, value, depth + 1)
    return known_sentence(value, (), by_code=True) or HELD_BACK


_NAME = re.compile(
    r"len|num_\w+|count|attempts?|(?:\w+_)?(?:ranks?|epoch|steps?|size|ndim|dim|dtype|device|shape|port|pid|errno|"
    r"timeout|timeout_s|exitcode|exit_code|bytes|blocks|layers|heads)"
)
_NUMBER = r"-?\d{1,9}"
_SHAPE = re.compile(
    rf"{_NUMBER}|-?\d{{1,9}}\.\d{{1,9}}|None|True|False|(?:cpu|cuda|xpu|hip|npu)(?::\d{{1,3}})?|"
    r"torch\.(?:bfloat16|float(?:16|32|64)|u?int(?:8|16|32|64)|bool|float8_e[45]m[23](?:fn|fnuz)?)|"
    rf"torch\.Size\(\[(?:{_NUMBER}(?:, {_NUMBER}){{0,7}})?\]\)"
)


def _keep(constants: Sequence[str], text: str) -> str:
    """Return the constants that occur in the text, each once and in their order; empty when none has a word."""
    kept, at, has_words = "", 0, False
    for constant in constants:
        found = text.find(constant, at)
        if found < 0:
            continue
        kept += (HELD_BACK if found > at else "") + constant
        at = found + len(constant)
        has_words = has_words or _has_words(constant)
    return kept + (HELD_BACK if at < len(text) else "") if has_words else ""


def _has_words(constant: str) -> bool:
    return sum(map(str.isalpha, constant)) > 2


def _constants_around(error: BaseException, code: CodeType) -> list[str]:
    """Return the constants of the function that raised, and of the exception's own methods: a message made before."""
    methods = (vars(kind).get(name) for kind in type(error).__mro__ for name in ("__init__", "__str__"))
    codes = [code, *(method.__code__ for method in methods if isinstance(method, FunctionType))]
    found = [c for each in codes for c in each.co_consts[:MAX_CONSTANTS] if isinstance(c, str)]
    parts = [re.sub(r"\s+", " ", p) for c in found for p in _constant(c) if isinstance(p, str)]
    return [part for part in parts if len(part) >= MIN_CONSTANT_CHARS]
