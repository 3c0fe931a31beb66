"""What the documents say exists, exists; and what exists, the documents say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from holdfast.api import routes
from holdfast.cli import main as cli
from holdfast.cli.serve_flags import flag_parser

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]

# Flags of other programs that the documents mention.
FOREIGN_FLAGS = frozenset({"--help", "--install-completion"})  # of Typer

pytestmark = pytest.mark.skipif(not README.exists(), reason="there is no README yet")


@pytest.fixture(scope="module")
def documents() -> str:
    return "\n".join(document.read_text() for document in DOCUMENTS if document.exists())


@pytest.fixture(scope="module")
def serve_flags() -> set[str]:
    """Every flag of `holdfast serve` that its help lists."""
    return set(re.findall(r"--[a-z][a-z-]+", flag_parser().format_help()))


@pytest.fixture(scope="module")
def command_flags() -> set[str]:
    """Every flag of every other command."""
    commands = [command for command in cli._COMMANDS if not command.raw]
    return {flag for command in commands for flag in flags_of(typer.main.get_command(cli._as_app(cli._load(command))))}


def flags_of(command: Any) -> set[str]:
    """Long options of a command and its subcommands."""
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    below = [flags_of(child) for child in getattr(command, "commands", {}).values()]
    return {name for name in own if name.startswith("--")}.union(*below)


def mentions(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


@pytest.fixture(scope="module")
def script_flags() -> set[str]:
    """Every flag that a script of the repository, or a program of the tests, adds to its parser."""
    files = [*(ROOT / "scripts").iterdir(), *(ROOT / "tests" / "support").rglob("__main__.py")]
    scripts = (path.read_text() for path in files if path.is_file())
    return {flag for text in scripts for flag in re.findall(r"add_argument\(\"(--[a-z-]+)\"", text)}


@pytest.mark.host
def test_every_documented_flag_exists(
    documents: str, serve_flags: set[str], command_flags: set[str], script_flags: set[str]
) -> None:
    """No document names a flag that no command, no script and not the host knows."""
    pytest.importorskip("vllm", reason="vLLM is not installed here")
    from holdfast.hosts.vllm.serving.serve_command import known_flags

    known = serve_flags | command_flags | script_flags | known_flags() | FOREIGN_FLAGS
    assert mentions(documents) - known == set()


def test_every_serve_flag_is_documented(documents: str, serve_flags: set[str]) -> None:
    """A flag of `holdfast serve` is worth a line in the documents; `--no-…` goes with its positive."""
    ours = {flag for flag in serve_flags if not flag.startswith("--no-")} - FOREIGN_FLAGS
    assert ours - mentions(documents) == set()


def test_every_endpoint_is_documented(documents: str) -> None:
    """Every path under the short prefix, and both prefixes, are in the documents."""
    endpoints = {f"{routes.PREFIXES[0]}{route.path}" for route in routes._ROUTES}
    assert {name for name in (*endpoints, *routes.PREFIXES) if name not in documents} == set()


def test_every_command_is_documented_and_listed(documents: str) -> None:
    """`holdfast --help` lists every command, and the documents name it."""
    listed = CliRunner().invoke(cli.app, ["--help"]).output
    names = {command.name for command in cli._COMMANDS}
    assert {name for name in names if name not in listed or f"holdfast {name}" not in documents} == set()
