"""`holdfast serve MODEL`: every flag of `vllm serve`, and Holdfast's own."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.cli.serve_flags import NO_PORT, flag_parser
from holdfast.cli.settings_sources import settings_from_environment, split_config
from holdfast.core.errors import BadConfiguration, HoldfastError, OperatorError

EXIT_USAGE = 2
EXIT_CANNOT_START = 3


def serve(arguments: Sequence[str]) -> int:
    """Serve a model, protected. The exit code of a server that did not start, or was defeated, is not 0."""
    if list(arguments) in ([], ["--help"], ["-h"]):
        flag_parser().print_help()
        return 0
    try:
        from_environment = settings_from_environment(os.environ)
        with split_config(arguments) as (for_host, from_file):
            return _serve(for_host, {**from_file, **from_environment})
    except HoldfastError as error:
        print(f"holdfast: cannot start: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, OperatorError) else EXIT_CANNOT_START


def _serve(arguments: Sequence[str], stated: Mapping[str, Any]) -> int:
    """Serve; `stated` are settings from elsewhere, over which flags have precedence."""
    flags, rest = split_flags(arguments)
    settings = settle_upstream_flags({**stated, **flags})
    from holdfast.hosts.vllm.process.logs import write_as, write_log_beside
    from holdfast.hosts.vllm.process.output import never_block_output
    from holdfast.hosts.vllm.serving.serve_command import known_flags, prepare
    from holdfast.hosts.vllm.serving.serve_command import serve as serve_with_host

    if settings.get("enable_fault_tolerance") is not False:
        never_block_output()
    prepare(allow_unknown_host=bool(settings.get("allow_unknown_host")))
    if log_format := settings.get("log_format"):
        write_log_beside()
        write_as(log_format)
    refuse_misspelt(rest, known_flags())
    serve_with_host(rest, settings)
    return 0


def split_flags(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Split the arguments into Holdfast's settings and the host's arguments."""
    parsed, rest = flag_parser().parse_known_args(list(arguments))
    return vars(parsed), rest


def settle_upstream_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags without those of the original design that have no setting here.

    Raises `BadConfiguration` for a flag that asks for unsupported behaviour.
    """
    settings = dict(flags)
    if settings.pop("internal_fault_report_port", None) is not None:
        print("holdfast: --internal-fault-report-port has no effect: " + NO_PORT, file=sys.stderr)
    if not settings.pop("shutdown_on_fault_tolerance_failure", True):
        raise BadConfiguration(
            "--no-shutdown-on-fault-tolerance-failure: a server that cannot be repaired always ends",
            hint="leave it out; to wait for a command, --fault-policy external and --engine-recovery-timeout",
        )
    return settings


def refuse_misspelt(rest: Sequence[str], host_flags: frozenset[str]) -> None:
    """Raise `BadConfiguration` for an unknown flag that resembles a flag of Holdfast."""
    ours = [o for a in flag_parser()._actions for o in a.option_strings]
    for argument in rest:
        name = argument.split("=", 1)[0].split(".", 1)[0].replace("_", "-")
        if not name.startswith("--") or name in host_flags:
            continue
        if near := difflib.get_close_matches(name, ours, n=1, cutoff=0.75):
            raise BadConfiguration(f"unknown flag {name}", hint=f"did you mean {near[0]}?")
