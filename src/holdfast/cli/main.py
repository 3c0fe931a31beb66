"""The `holdfast` command: a table of subcommands, each loaded on use.

`holdfast --help` imports no subcommand and therefore never waits for the host.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import typer

import holdfast


@dataclass(frozen=True)
class _Command:
    """A subcommand: the module has a function named `attribute`, or a Typer app named `app`."""

    name: str
    help: str
    raw: bool = False  # the function takes all arguments unparsed, as a list

    @property
    def module(self) -> str:
        return f"holdfast.cli.{self.name}"


_COMMANDS = (
    _Command("serve", "Serve a model with vLLM, protected: takes every flag of `vllm serve`.", raw=True),
    _Command("status", "Show the state of a running server's engines."),
    _Command("apply", "Send a command to a running server."),
    _Command("events", "Show the events of a running server."),
    _Command("incidents", "Show the incidents of a running server, or of a folder: cause, decisions, cost."),
    _Command("inject", "Inject a fault into a server that was started with --enable-fault-injection."),
    _Command("token", "Print the control token of a running server of yours."),
    _Command("doctor", "Check the host, the hooks, the ports and the environment."),
    _Command("classify", "Show the class of a fault and the reason: of a text, an exit code, or the whole table."),
    _Command("demo", "Inject a fault into a real server during eight answers and compare every token."),
    _Command("bench", "Measure recovery and overhead."),
    _Command("chaos", "Kill processes of a real server at random under load and compare every answer."),
)

# Everything after the subcommand's name, --help included, is for the subcommand itself.
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}

app = typer.Typer(
    name="holdfast",
    help="Keep a vLLM server serving through faults.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the `holdfast` command."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"holdfast {holdfast.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


def _register(command: _Command) -> None:
    @app.command(command.name, help=command.help, add_help_option=False, context_settings=_PASS_ON)
    def run(context: typer.Context) -> None:
        _run(command, context.args)


def _run(command: _Command, arguments: list[str]) -> None:
    target = _load(command)
    if command.raw:
        sys.exit(target(arguments))
    typer.main.get_command(_as_app(target))(args=arguments, prog_name=f"holdfast {command.name}")


def _load(command: _Command) -> Any:
    try:
        module = importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        typer.echo(f"holdfast {command.name} cannot run: module {error.name!r} is not installed", err=True)
        raise typer.Exit(2) from None
    return getattr(module, command.name, None) or module.app


def _as_app(target: typer.Typer | Callable[..., Any]) -> typer.Typer:
    if isinstance(target, typer.Typer):
        return target
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command()(target)
    return single


for _command in _COMMANDS:
    _register(_command)


if __name__ == "__main__":
    main()
