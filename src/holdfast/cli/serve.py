"""`holdfast serve MODEL`: every flag of `vllm serve`, and Holdfast's own."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.core.errors import BadConfiguration, HoldfastError, OperatorError

EXIT_USAGE = 2
EXIT_CANNOT_START = 3

_NO_PORT = "sentinels meet on sockets in a private folder"
_EPILOG = "All other flags are those of `vllm serve`; `holdfast serve MODEL --help=all` lists them."


def serve(arguments: Sequence[str]) -> int:
    """Serve, protected. The exit code of a server that did not start, or was defeated, is not 0."""
    if list(arguments) in ([], ["--help"], ["-h"]):
        flag_parser().print_help()
        return 0
    try:
        flags, rest = split_flags(arguments)
        settings = settle_upstream_flags(flags)
        from holdfast.hosts.vllm.serving import known_flags, prepare
        from holdfast.hosts.vllm.serving import serve as serve_with_host

        prepare(allow_unknown_host=bool(settings.get("allow_unknown_host")))
        refuse_misspelt(rest, known_flags())
        serve_with_host(rest, settings)
    except HoldfastError as error:
        print(f"holdfast: cannot start: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, OperatorError) else EXIT_CANNOT_START
    return 0


def split_flags(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Holdfast's settings that were given as flags, and everything else."""
    parsed, rest = flag_parser().parse_known_args(list(arguments))
    return vars(parsed), rest


def settle_upstream_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags without those that only the original design has use for.

    Raises `BadConfiguration` for one that asks for what is not done here.
    """
    settings = dict(flags)
    if settings.pop("internal_fault_report_port", None) is not None:
        print("holdfast: --internal-fault-report-port has no effect: " + _NO_PORT, file=sys.stderr)
    if not settings.pop("shutdown_on_fault_tolerance_failure", True):
        raise BadConfiguration(
            "--no-shutdown-on-fault-tolerance-failure: a server that cannot be repaired always ends",
            hint="leave it out; to wait for an instruction, --fault-policy external and --engine-recovery-timeout",
        )
    return settings


def refuse_misspelt(rest: Sequence[str], host_flags: frozenset[str]) -> None:
    """Raises `BadConfiguration` for a flag that is nobody's and close to one of ours."""
    ours = [o for a in flag_parser()._actions for o in a.option_strings]
    for argument in rest:
        name = argument.split("=", 1)[0].split(".", 1)[0].replace("_", "-")
        if not name.startswith("--") or name in host_flags:
            continue
        if near := difflib.get_close_matches(name, ours, n=1, cutoff=0.75):
            raise BadConfiguration(f"unknown flag {name}", hint=f"did you mean {near[0]}?")


def flag_parser() -> argparse.ArgumentParser:
    """Holdfast's own flags; a flag that is not given leaves no trace, so defaults stand in one place."""
    parser = argparse.ArgumentParser(
        prog="holdfast serve",
        usage="holdfast serve MODEL [any `vllm serve` flag] [holdfast flags]",
        description="Serve a model with vLLM so that it goes on through faults.",
        epilog=_EPILOG,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("--enable-fault-tolerance", action=switch, help="protect the server (default: on)")
    add("--fault-policy", choices=["auto", "external", "dry-run"], help="who decides on a repair (default: auto)")
    add("--external-fallback", choices=["none", "auto"], help="with external, when nobody did in time (default: none)")
    add("--max-ranks-out", type=_count_or_share, metavar="N|N%%", help="at once, else one rung up (default: 100%%)")
    add("--max-retries", type=int, metavar="N", help="retries within --retry-window, then the end (default: 10)")
    add("--retry-window", type=float, metavar="S", help="seconds (default: 60)")
    add("--engine-recovery-timeout", type=float, metavar="S", help="wait for an instruction, seconds (default: 120)")
    add("--containment-timeout", type=float, metavar="S", help="until a faulty engine stands still (default: 30)")
    add("--acknowledge-timeout", type=float, metavar="S", help="until a rank says that it has stopped (default: 5)")
    add("--drain-timeout", type=float, metavar="S", help="until a rank answers in a recovery (default: 10)")
    add("--rebuild-timeout", type=float, metavar="S", help="until broken collectives are rebuilt (default: 30)")
    add("--max-engine-restarts", type=int, metavar="N", help="of each engine core within the window (default: 5)")
    add("--engine-restart-window", type=float, metavar="S", help="seconds (default: 600)")
    add("--engine-start-timeout", type=float, metavar="S", help="until a new engine core serves (default: 600)")
    add("--min-engines", type=int, metavar="N", help="that serve on when one is left out, else the end (default: 1)")
    add("--max-api-server-restarts", type=int, metavar="N", help="of each, and of the DP coordinator (default: 5)")
    add("--api-server-restart-window", type=float, metavar="S", help="seconds (default: 600)")
    add("--max-worker-restarts", type=int, metavar="N", help="within --worker-restart-window (default: 20)")
    add("--worker-restart-window", type=float, metavar="S", help="seconds (default: 600)")
    add("--worker-start-timeout", type=float, metavar="S", help="until a new worker has loaded (default: 600)")
    add("--standby-workers", type=int, metavar="N", help="kept ready by each engine core (default: 0)")
    add("--standby-preload", action=switch, help="standby workers read the weights beforehand (default: off)")
    add("--stall-detection", action=switch, help="notice a rank or engine core that makes no progress (default: on)")
    add("--check-logits", action=switch, help="a step with NaN or infinite logits is a fault (default: off)")
    add("--fault-classes", metavar="FILE", help="JSON: rows of your own that say of which class a fault is")
    add("--poison-detection", action=switch, help="find a request that makes batches fail and end it (default: on)")
    add("--recovery-prefill-tokens", type=int, metavar="N", help="of a step, after a loss (default: 512; 0: all)")
    add("--incident-dir", metavar="DIR", help="evidence of stalls (default: ~/.local/state/holdfast/incidents)")
    add("--gloo-comm-timeout", type=float, metavar="S", help="of a gloo collective, seconds (default: the host's own)")
    add("--external-fault-notify-host", metavar="HOST", help="of the PUB socket (default: 127.0.0.1)")
    add("--external-fault-notify-port", type=int, metavar="PORT", help="0: any free one (default: 22867)")
    add("--max-held-requests", type=int, metavar="N", help="new requests held in a recovery (default: 1024)")
    add("--enable-fault-injection", action=switch, help="let `holdfast inject` hurt this server (default: off)")
    add("--allow-unknown-host", action=switch, help="start with a vLLM that was never tested (default: off)")
    add("--cpu-enablement", action=switch, help="on CPUs: supply what many ranks need (default: on)")
    add("--unsafe-keep-suspect-blocks", action=switch, help=argparse.SUPPRESS)
    add("--unsafe-skip-fence", action=switch, help=argparse.SUPPRESS)
    _add_upstream_flags(parser)
    return parser


def _count_or_share(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _add_upstream_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("taken for compatibility").add_argument
    add("--internal-fault-report-port", type=int, metavar="PORT", help=f"no effect: {_NO_PORT}")
    add(
        "--shutdown-on-fault-tolerance-failure",
        action=argparse.BooleanOptionalAction,
        help="end a server that cannot be repaired: always done, so `--no-…` is refused",
    )
