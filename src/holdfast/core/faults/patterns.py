"""Regular expressions of an operator, refused when matching could take exponential time.

Patterns are matched against texts of up to 2,000 characters, right after a rank has failed and while peers wait. Knows
nothing of faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

MAX_PATTERN_CHARS = 300
MAX_OPEN_REPEATS = 2  # two that may each take everything: millions of steps, and not billions
MANY = 64  # a repeat that may take more counts as one that may take everything

_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern that ignores case. Raises `ValueError` with the reason when the pattern is refused."""
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"{len(pattern)} characters are more than {MAX_PATTERN_CHARS}")
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"no regular expression: {error}") from None
    _refuse_endless(_parser.parse(pattern))
    if compiled.match(""):
        raise ValueError("it matches every text, also an empty one")
    return compiled


def _refuse_endless(parsed: Any) -> None:
    """Raise `ValueError` unless matching is bounded: no nested repeats or choices, few open repeats."""
    open_repeats = 0
    for inside, operation, argument in _operations(parsed):
        if operation is _constants.GROUPREF:
            raise ValueError("a reference to a group can take too long to match")
        if inside and operation in (*_REPEATS, _constants.BRANCH):
            raise ValueError("a repeat or a choice inside a repeat can take for ever to match; write it without")
        if operation in _REPEATS and argument[1] > MANY:
            open_repeats += 1
    if open_repeats > MAX_OPEN_REPEATS:
        raise ValueError(f"more than {MAX_OPEN_REPEATS} unbounded repeats (*, + or more than {MANY}) take too long")


def _operations(parsed: Any, inside: bool = False) -> Iterator[tuple[bool, Any, Any]]:
    """Yield every operation of a pattern, and whether the operation is inside a repeat."""
    for operation, argument in parsed:
        yield inside, operation, argument
        repeats = operation in _REPEATS and argument[1] > 1
        for below in _below(operation, argument):
            yield from _operations(below, inside or repeats)


def _below(operation: Any, argument: Any) -> list[Any]:
    """Return the patterns inside an operation."""
    if operation is _constants.BRANCH:
        return list(argument[1])
    if operation is _constants.GROUPREF_EXISTS:
        return [part for part in argument[1:] if part is not None]
    if operation is _constants.ATOMIC_GROUP:
        return [argument]
    if isinstance(argument, tuple) and argument and isinstance(argument[-1], _parser.SubPattern):
        return [argument[-1]]
    return []
