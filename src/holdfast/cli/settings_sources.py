"""Where Holdfast's settings come from beside flags: variables `HOLDFAST_<FLAG>`, and the host's `--config` file.

A flag has precedence over a variable, a variable over the file, and the file over `--additional-config`.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from holdfast.cli.serve_flags import flag_parser
from holdfast.core.errors import BadConfiguration

PREFIX = "HOLDFAST_"
NO_SETTINGS = frozenset({"HOLDFAST_NODE_SECRET"})  # variables that resemble a setting
CONFIG = "--config"
MAX_FILE_BYTES = 1 << 20
_WORDS = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}
_SIMILAR = 0.85


class _Parser:
    """Parser of the flags in which an error names the source. Raises `BadConfiguration`."""

    def __init__(self) -> None:
        self._parser = flag_parser()
        self.actions = {a.dest: a for a in self._parser._actions if a.option_strings}

    def parse(self, source: str, stated: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings, stated by key, as their flags would give them."""
        arguments = [argument for key, value in stated.items() for argument in self._as_flag(source, key, value)]

        def refuse(message: str) -> NoReturn:
            raise BadConfiguration(f"{source}: {message}")

        self._parser.error = refuse  # type: ignore[method-assign]
        return vars(self._parser.parse_args(arguments))

    def _as_flag(self, source: str, key: str, value: Any) -> Iterator[str]:
        action = self.actions[key]
        flag = action.option_strings[0]
        if not isinstance(action, argparse.BooleanOptionalAction):
            yield f"{flag}={json.dumps(value) if isinstance(value, (list, dict)) else value}"
            return
        wanted = value if isinstance(value, bool) else _WORDS.get(str(value).lower())
        if wanted is None:
            raise BadConfiguration(f"{source}: {flag} is on or off, not {str(value)[:80]!r}", hint="true or false")
        yield flag if wanted else "--no-" + flag.removeprefix("--")


def settings_from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of the variables `HOLDFAST_<FLAG>`. Raises `BadConfiguration`."""
    parser = _Parser()
    names = {PREFIX + key.upper(): key for key in parser.actions}
    for name in environment:
        is_unknown = name.startswith(PREFIX) and name not in names and name not in NO_SETTINGS
        if is_unknown and (near := _similar(name, names)):
            raise BadConfiguration(f"unknown variable {name}", hint=f"did you mean {near}?")
    settings: dict[str, Any] = {}
    for name, key in names.items():
        if environment.get(name, "") != "":
            settings |= parser.parse(f"variable {name}", {key: environment[name]})
    return settings


def _similar(name: str, names: Mapping[str, str]) -> str:
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=_SIMILAR)), "")


@contextlib.contextmanager
def split_config(arguments: Sequence[str]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yield the host's arguments and Holdfast's settings of a `--config` file.

    The host refuses keys that it does not know: where the file has settings of Holdfast, the host reads a copy
    without these, which lasts as long as the block. Raises `BadConfiguration`.
    """
    at, name = _config_in(arguments)
    found = {} if name is None else _read(Path(name))
    parser = _Parser()
    ours = {_key(key): value for key, value in found.items() if _key(key) in parser.actions}
    if not ours:
        yield list(arguments), {}
        return
    settings = parser.parse(f"{CONFIG} {name}", ours)
    rest = {key: value for key, value in found.items() if _key(key) not in parser.actions}
    with _copy_of(rest) as copy:
        yield [*arguments[:at], CONFIG, copy, *arguments[at + (1 if "=" in arguments[at] else 2) :]], settings


def _key(name: object) -> str:
    return str(name).removeprefix("--").replace("-", "_")


def _config_in(arguments: Sequence[str]) -> tuple[int, str | None]:
    for at, argument in enumerate(arguments):
        if argument.startswith(CONFIG + "="):
            return at, argument.partition("=")[2]
        if argument == CONFIG and at + 1 < len(arguments):
            return at, arguments[at + 1]
    return 0, None


def _read(path: Path) -> dict[str, Any]:
    """Return a file's keys and values; empty for a file that the host will refuse by itself."""
    import yaml

    with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        if path.stat().st_size <= MAX_FILE_BYTES:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
    return {}


@contextlib.contextmanager
def _copy_of(content: Mapping[str, Any]) -> Iterator[str]:
    import yaml

    handle, name = tempfile.mkstemp(prefix="holdfast-config-", suffix=".yaml")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yaml.safe_dump(dict(content), file)
        yield name
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
