"""Every number on a command line has bounds, and a number beyond its bounds is a usage error that names the option."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from holdfast.cli import main
from support.control_plane import MemoryControl

Run = Callable[..., Any]
NUMBERS = (int, float)
ARGUMENTS = {"apply": ["pause"], "inject": ["--phase", "forward"]}


class Option(typing.NamedTuple):
    """Option of a command that takes a number."""

    line: tuple[str, ...]
    name: str
    kind: type
    info: Any

    def __str__(self) -> str:
        return " ".join((*self.line, self.name))


def functions() -> Iterator[tuple[tuple[str, ...], Callable[..., Any]]]:
    for command in main._COMMANDS:
        if command.raw:
            continue
        target = main._load(command)
        if isinstance(target, typer.Typer):
            for registered in target.registered_commands:
                assert registered.callback is not None
                yield (command.name, registered.callback.__name__), registered.callback
        else:
            yield (command.name,), target


def number_in(annotation: Any) -> type | None:
    """The number that `int`, `int | None` or `list[int] | None` holds; None for another type."""
    if typing.get_origin(annotation) in {types.UnionType, typing.Union, list}:
        return next((found for part in typing.get_args(annotation) if (found := number_in(part))), None)
    return annotation if annotation in NUMBERS else None


def options() -> Iterator[Option]:
    for line, function in functions():
        hints = typing.get_type_hints(function, include_extras=True)
        for name in inspect.signature(function).parameters:
            annotation, *infos = typing.get_args(hints[name]) or (hints[name],)
            if typing.get_origin(hints[name]) is not typing.Annotated or (kind := number_in(annotation)) is None:
                continue
            [info] = infos
            flag = next(iter(info.param_decls or ()), "--" + name.replace("_", "-"))
            yield Option(line, flag, kind, info)


OPTIONS = tuple(options())
EVERY_NUMBER = pytest.mark.parametrize("option", OPTIONS, ids=str)


def test_the_numbers_of_every_command_are_found() -> None:
    commands = {option.line[0] for option in OPTIONS}
    assert commands == {"apply", "bench", "chaos", "classify", "demo", "doctor", "events", "inject", "status"}
    assert "apply --engine" in {str(option) for option in OPTIONS}


@EVERY_NUMBER
def test_a_number_beyond_its_bounds_is_a_usage_error_that_names_the_option(
    run: Run, control: MemoryControl, option: Option
) -> None:
    assert None not in (option.info.min, option.info.max)
    for value in (str(2**70), str(-(2**70)), *(("nan", "inf") if option.kind is float else ())):
        shown = run(*option.line, *ARGUMENTS.get(option.line[0], ()), f"{option.name}={value}")
        assert (shown.exit_code, shown.exception.__class__) == (2, SystemExit), value
        assert f"'{option.name}'" in shown.stderr, value
    assert control.sent == []


@pytest.mark.parametrize("value", [str(2**70), str(-(2**70)), "9" * 5000, "nan", "inf", "-inf", "1e999"])
def test_a_setting_beyond_every_bound_is_a_usage_error_that_names_the_setting(
    run: Run, control: MemoryControl, value: str
) -> None:
    before = control.view()
    for name in ("max_retries", "retry_window"):
        shown = run("apply", "configure", "--set", f"{name}={value}")
        assert (shown.exit_code, shown.exception.__class__) == (2, SystemExit)
        assert name in shown.stderr
    assert control.view() == before
