"""Holdfast's own flags of `holdfast serve`, by what they are about."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Add = Callable[..., Any]

NO_PORT = "sentinels meet on sockets in a private folder"
_EPILOG = "All other flags are those of `vllm serve`; `holdfast serve MODEL --help=all` lists them."
_SWITCH = argparse.BooleanOptionalAction


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
    for title, add_flags in _GROUPS.items():
        add_flags(parser.add_argument_group(title).add_argument)
    return parser


def _add_deciding(add: Add) -> None:
    add("--enable-fault-tolerance", action=_SWITCH, help="protect the server (default: on)")
    add("--fault-policy", choices=["auto", "external", "dry-run"], help="who decides on a repair (default: auto)")
    add("--external-fallback", choices=["none", "auto"], help="with external, when nobody did in time (default: none)")
    add("--engine-recovery-timeout", type=float, metavar="S", help="wait for an instruction, seconds (default: 120)")
    add("--max-ranks-out", type=_count_or_share, metavar="N|N%", help="at once, else one rung up (default: 100%%)")
    add("--fault-classes", metavar="FILE", help="JSON: rows of your own that say of which class a fault is")


def _add_budgets(add: Add) -> None:
    add("--max-retries", type=int, metavar="N", help="retries within --retry-window, then the end (default: 10)")
    add("--retry-window", type=float, metavar="S", help="seconds (default: 60)")
    add("--max-worker-restarts", type=int, metavar="N", help="within --worker-restart-window (default: 20)")
    add("--worker-restart-window", type=float, metavar="S", help="seconds (default: 600)")
    add("--max-engine-restarts", type=int, metavar="N", help="of each engine core within the window (default: 5)")
    add("--engine-restart-window", type=float, metavar="S", help="seconds (default: 600)")
    add("--min-engines", type=int, metavar="N", help="that serve on when one is left out, else the end (default: 1)")
    add("--max-api-server-restarts", type=int, metavar="N", help="of each, and of the DP coordinator (default: 5)")
    add("--api-server-restart-window", type=float, metavar="S", help="seconds (default: 600)")


def _add_bounds(add: Add) -> None:
    add("--containment-timeout", type=float, metavar="S", help="until a faulty engine stands still (default: 30)")
    add("--acknowledge-timeout", type=float, metavar="S", help="until a rank says that it has stopped (default: 5)")
    add("--drain-timeout", type=float, metavar="S", help="until a rank answers in a recovery (default: 10)")
    add("--rebuild-timeout", type=float, metavar="S", help="until broken collectives are rebuilt (default: 30)")
    add("--gloo-comm-timeout", type=float, metavar="S", help="of a gloo collective, seconds (default: the host's own)")
    add("--worker-start-timeout", type=float, metavar="S", help="until a new worker has loaded (default: 600)")
    add("--engine-start-timeout", type=float, metavar="S", help="until a new engine core serves (default: 600)")


def _add_standbys(add: Add) -> None:
    add("--standby-workers", type=int, metavar="N", help="kept ready by each engine core (default: 0)")
    add("--standby-preload", action=_SWITCH, help="standby workers read the weights beforehand (default: off)")


def _add_detection(add: Add) -> None:
    add("--stall-detection", action=_SWITCH, help="notice a rank or engine core that makes no progress (default: on)")
    add("--poison-detection", action=_SWITCH, help="find a request that makes batches fail and end it (default: on)")
    add("--check-logits", action=_SWITCH, help="a step with NaN or infinite logits is a fault (default: off)")
    add("--incident-dir", metavar="DIR", help="evidence of stalls (default: ~/.local/state/holdfast/incidents)")


def _add_serving(add: Add) -> None:
    add("--recovery-prefill-tokens", type=int, metavar="N", help="of a step, after a loss (default: 512; 0: all)")
    add("--max-held-requests", type=int, metavar="N", help="new requests held in a recovery (default: 1024)")
    add("--external-fault-notify-host", metavar="HOST", help="of the PUB socket (default: 127.0.0.1)")
    add("--external-fault-notify-port", type=int, metavar="PORT", help="0: any free one (default: 22867)")


def _add_rare(add: Add) -> None:
    add("--enable-fault-injection", action=_SWITCH, help="let `holdfast inject` hurt this server (default: off)")
    add("--allow-unknown-host", action=_SWITCH, help="start with a vLLM that was never tested (default: off)")
    add("--cpu-enablement", action=_SWITCH, help="on CPUs: supply what many ranks need (default: on)")
    add("--unsafe-keep-suspect-blocks", action=_SWITCH, help=argparse.SUPPRESS)
    add("--unsafe-skip-fence", action=_SWITCH, help=argparse.SUPPRESS)


def _add_upstream(add: Add) -> None:
    add("--internal-fault-report-port", type=int, metavar="PORT", help=f"no effect: {NO_PORT}")
    add(
        "--shutdown-on-fault-tolerance-failure",
        action=_SWITCH,
        help="end a server that cannot be repaired: always done, so `--no-…` is refused",
    )


def _count_or_share(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


_GROUPS: dict[str, Callable[[Add], None]] = {
    "decisions": _add_deciding,
    "budgets": _add_budgets,
    "time limits": _add_bounds,
    "standby workers": _add_standbys,
    "detection": _add_detection,
    "requests and reports": _add_serving,
    "tests and unknown hosts": _add_rare,
    "taken for compatibility": _add_upstream,
}
