"""`vllm serve` with Holdfast's settings: the host's own parser and its own command."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.core.config import parse_config
from holdfast.core.errors import BadConfiguration, HookNotAttached, PortInUse, WorldError
from holdfast.hosts.vllm.contract.front_end_touchpoints import (
    CLIENT_INIT,
    LAUNCH_IN_CLIENT,
    LAUNCH_IN_LAUNCHER,
    PREPARE_COMMAND,
)
from holdfast.hosts.vllm.contract.hooks import attached, look_up, missing
from holdfast.hosts.vllm.contract.plugin_names import VARIABLE, extended_allow_list
from holdfast.hosts.vllm.contract.topology import refuse_grpc
from holdfast.hosts.vllm.contract.versions import OVERRIDE, refuse_unknown_host
from holdfast.hosts.vllm.cpu.enablement import SWITCH
from holdfast.hosts.vllm.process.bootstrap import importing
from holdfast.hosts.vllm.process.settings import KEY, asks_for_protection, with_files_read
from holdfast.progress.room import ELSEWHERE


def prepare(*, allow_unknown_host: bool) -> None:
    """Refuse an unknown host, and have the host load the plugin. Called before any import of the host."""
    refuse_unknown_host(allowed=allow_unknown_host)
    refuse_full_disk()
    if allow_unknown_host:
        os.environ[OVERRIDE] = "1"
    os.environ[VARIABLE] = extended_allow_list(os.environ)


def refuse_full_disk() -> None:
    """Raise `WorldError` when no temporary folder can be written: the host could not even be imported."""
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise WorldError(f"no temporary folder can be written: {error.strerror}", hint=ELSEWHERE) from None


def serve(arguments: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Run the host's serve command, after `prepare`. Ends by `SystemExit` or an exception of the host's.

    Args:
        arguments: what `vllm serve` would be given.
        settings: Holdfast's settings from flags; they win over those in `--additional-config`.
    """
    command, args = _parse(arguments)
    args.additional_config = _merged(args.additional_config, settings)
    _pass_on_switch(args.additional_config[KEY])
    refuse_unhooked()
    if args.grpc and asks_for_protection(args):
        refuse_grpc()
    try:
        command.cmd(args)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _in_use(args) from error
        raise


def _in_use(args: argparse.Namespace) -> PortInUse:
    if args.uds:
        return PortInUse(
            f"the socket {args.uds} is there already",
            hint="choose another one with --uds, or remove that of a dead server",
        )
    return PortInUse(f"port {args.port} is in use", hint="choose another one with --port")


def refuse_unhooked() -> None:
    """Raise `HookNotAttached` when the host has loaded all plugins and Holdfast was not among them."""
    if absent := missing((LAUNCH_IN_CLIENT, LAUNCH_IN_LAUNCHER, CLIENT_INIT), attached()):
        raise HookNotAttached(
            f"the plugin did not load: {', '.join(absent)} is not attached", hint="see the host's log above"
        )


def known_flags() -> frozenset[str]:
    """Return every flag of the host's serve command."""
    return frozenset(_parser()[1]._option_string_actions)


def _parse(arguments: Sequence[str]) -> tuple[Any, argparse.Namespace]:
    from vllm.logger import configure_logging_from_args

    look_up(*PREPARE_COMMAND)()
    command, _, root = _parser()
    sys.argv = ["vllm", "serve", *arguments]  # the host's parser reads it, for its help and its checks
    args = root.parse_args(["serve", *arguments])
    configure_logging_from_args(args)
    command.validate(args)
    return command, args


def _parser() -> tuple[Any, Any, Any]:
    with importing():
        from vllm.entrypoints.cli.serve import ServeSubcommand
        from vllm.utils.argparse_utils import FlexibleArgumentParser

    root = FlexibleArgumentParser(prog="holdfast", description="vLLM, protected by Holdfast")
    command = ServeSubcommand()
    parser = command.subparser_init(root.add_subparsers(required=True, dest="subparser"))
    return command, parser, root


def _merged(additional: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(additional, dict):
        raise BadConfiguration("--additional-config must be a JSON object")
    stated = additional.get(KEY, {})
    if not isinstance(stated, dict):
        raise BadConfiguration(f'--additional-config: "{KEY}" must be an object of settings')
    merged = with_files_read({**stated, **settings})
    parse_config(merged)  # report wrong settings before any process is started
    return {**additional, KEY: merged}


def _pass_on_switch(settings: Mapping[str, Any]) -> None:
    """Pass the switch on in the environment: processes of an unprotected server inherit no settings."""
    if not parse_config(settings).cpu_enablement:
        os.environ[SWITCH] = "0"
