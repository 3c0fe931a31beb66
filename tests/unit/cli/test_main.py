from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import typer

import holdfast

COMMANDS = ("serve", "status", "apply", "events", "inject", "doctor", "demo", "bench", "chaos")


@pytest.fixture
def install_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, Any], None]:
    """Put a module with one attribute in the place of a command's."""

    def install(name: str, attribute: str, value: Any) -> None:
        module = types.ModuleType(f"holdfast.cli.{name}")
        setattr(module, attribute, value)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


def test_help_lists_every_command(run: Callable[..., Any]) -> None:
    shown = run("--help").stdout
    assert [c for c in COMMANDS if c not in shown] == []


def test_help_imports_neither_host_nor_commands() -> None:
    script = (
        "import sys; from holdfast.cli.main import app; app(['--help'], standalone_mode=False); "
        "print([m for m in ('vllm', 'torch', 'fastapi', 'httpx', 'zmq', 'holdfast.api') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_shown(run: Callable[..., Any]) -> None:
    assert run("--version").stdout.strip() == f"holdfast {holdfast.__version__}"


def test_an_unknown_command_is_a_usage_error(run: Callable[..., Any]) -> None:
    assert run("explode").exit_code == 2


@pytest.mark.parametrize("name", ["status", "apply", "events", "inject"])
def test_help_of_a_command_is_its_own(run: Callable[..., Any], name: str) -> None:
    shown = run(name, "--help")
    assert shown.exit_code == 0
    assert f"Usage: holdfast {name}" in shown.stdout
    assert "--url" in shown.stdout


def test_serve_gets_its_arguments_as_they_stand(
    run: Callable[..., Any], install_command: Callable[[str, str, Any], None]
) -> None:
    seen: list[list[str]] = []
    install_command("serve", "serve", seen.append)
    given = ["model", "--port", "1", "--help", "-tp=2", "--", "--x", "--version"]
    assert run("serve", *given).exit_code == 0
    assert seen == [given]


def test_the_exit_code_of_serve_is_the_commands(
    run: Callable[..., Any], install_command: Callable[[str, str, Any], None]
) -> None:
    install_command("serve", "serve", lambda arguments: 7)
    assert run("serve", "model").exit_code == 7


def test_a_function_with_options_becomes_a_command(
    run: Callable[..., Any], install_command: Callable[[str, str, Any], None]
) -> None:
    def doctor(times: int = 1) -> None:
        typer.echo("well " * times)

    install_command("doctor", "doctor", doctor)
    assert run("doctor", "--times", "2").stdout == "well well \n"


def test_a_typer_app_becomes_a_group_of_commands(
    run: Callable[..., Any], install_command: Callable[[str, str, Any], None]
) -> None:
    bench = typer.Typer()

    @bench.command()
    def recovery() -> None:
        typer.echo("0.1 s")

    @bench.command()
    def overhead() -> None:
        raise typer.Exit(3)

    install_command("bench", "app", bench)
    assert run("bench", "recovery").stdout == "0.1 s\n"
    assert run("bench", "overhead").exit_code == 3


def test_a_command_that_is_not_installed_says_so_when_it_is_used(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "holdfast.cli.demo", None)
    shown = run("demo")
    assert shown.exit_code == 2
    assert "holdfast demo cannot run" in shown.stderr
