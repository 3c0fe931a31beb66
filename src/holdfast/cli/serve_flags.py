"""The flags of `holdfast serve`, in groups. Each help text serves `--help` and docs/reference/settings.md.

Defaults come from `HoldfastConfig` only. Knows nothing of the host's flags.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from typing import Any

import msgspec

from holdfast.core.config import NOTIFY_PORT, HoldfastConfig

Add = Callable[..., Any]

NO_PORT = "sentinels communicate over sockets in a private folder"
_EPILOG = "All other flags are those of `vllm serve`; `holdfast serve MODEL --help=all` lists them."
_SWITCH = argparse.BooleanOptionalAction

# Defaults that the configuration leaves open and that are found at run time.
_FOUND_LATER = {
    "incident_dir": "~/.local/state/holdfast/incidents",
    "gloo_comm_timeout": "the host's own",
    "fault_classes": "none",
    "external_fault_notify_port": f"{NOTIFY_PORT}, or a free port when that is taken",
    "control_token_file": "none",
    "full_texts_file": "none",
    "node_secret_file": "none",
}


class _HelpFormatter(argparse.HelpFormatter):
    """Formatter that never breaks a flag at a hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def flag_parser() -> argparse.ArgumentParser:
    """Build the parser of Holdfast's own flags; a flag that is not given leaves no attribute."""
    parser = argparse.ArgumentParser(
        prog="holdfast serve",
        usage="holdfast serve MODEL [any `vllm serve` flag] [holdfast flags]",
        description="Serve a model with vLLM, protected against faults.",
        epilog=_EPILOG,
        formatter_class=_HelpFormatter,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for title, add_flags in _GROUPS.items():
        add_flags(parser.add_argument_group(title).add_argument)
    defaults = shown_defaults()
    for action in parser._actions:
        if action.dest in defaults and action.help not in {None, argparse.SUPPRESS}:
            action.help = f"{action.help} (default: {defaults[action.dest]})".replace("%", "%%")
    return parser


def flag_groups() -> dict[str, list[argparse.Action]]:
    """Return the documented flags by the title of their group, with help texts that name no default."""
    parser = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    groups = {}
    for title, add_flags in _GROUPS.items():
        group = parser.add_argument_group(title)
        add_flags(group.add_argument)
        groups[title] = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
    return groups


def shown_defaults() -> dict[str, str]:
    """Return the default of every setting as text, by key."""
    config = HoldfastConfig()
    stated = {field.encode_name: getattr(config, field.name) for field in msgspec.structs.fields(config)}
    return {key: _FOUND_LATER.get(key) or _as_text(value) for key, value in stated.items()}


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _add_deciding(add: Add) -> None:
    add("--enable-fault-tolerance", action=_SWITCH, help="protect the server")
    add(
        "--fault-policy",
        choices=["auto", "external", "dry-run"],
        help="who decides on a repair: auto climbs the ladder at once; external publishes the fault, stays paused and "
        "waits for a command; dry-run does the same and says what auto would do",
    )
    add(
        "--external-fallback",
        choices=["none", "auto"],
        help="with external: climb the ladder when no command came within --engine-recovery-timeout",
    )
    add(
        "--engine-recovery-timeout",
        type=float,
        metavar="S",
        help="seconds to wait for a command, then the instance ends",
    )
    add(
        "--max-ranks-out",
        type=_count_or_share,
        metavar="N|N%",
        help="most ranks that may be out at once, as a number or a share of all; beyond that the engine core is "
        "replaced as a whole",
    )
    add(
        "--accept-stale-state",
        action=_SWITCH,
        help="let a new process serve without state that was set at run time and cannot be repeated, such as weights "
        "that a trainer sent; without the flag no process is replaced then",
    )
    add("--fault-classes", metavar="FILE", help="JSON file of your own rows that classify faults")


def _add_budgets(add: Add) -> None:
    add("--max-retries", type=int, metavar="N", help="retries within --retry-window, then the next rung")
    add("--retry-window", type=float, metavar="S", help="seconds")
    add(
        "--max-worker-restarts",
        type=int,
        metavar="N",
        help="worker replacements within --worker-restart-window, then the next rung; 0: never",
    )
    add("--worker-restart-window", type=float, metavar="S", help="seconds")
    add(
        "--max-engine-restarts",
        type=int,
        metavar="N",
        help="replacements of each engine core within --engine-restart-window, then the next rung; 0: never",
    )
    add("--engine-restart-window", type=float, metavar="S", help="seconds")
    add(
        "--min-engines",
        type=int,
        metavar="N",
        help="fewest engine cores that may serve on while another is left out, else the instance ends",
    )
    add(
        "--max-api-server-restarts",
        type=int,
        metavar="N",
        help="replacements of each of several API servers, and of the data-parallel coordinator, within "
        "--api-server-restart-window, then the instance ends; 0: never",
    )
    add("--api-server-restart-window", type=float, metavar="S", help="seconds")


def _add_bounds(add: Add) -> None:
    add(
        "--containment-timeout",
        type=float,
        metavar="S",
        help="seconds until a faulty engine has paused, then the engine core is replaced",
    )
    add(
        "--acknowledge-timeout",
        type=float,
        metavar="S",
        help="seconds until a peer of a failed rank acknowledges its pause, then the peer is killed and replaced",
    )
    add("--drain-timeout", type=float, metavar="S", help="seconds until a rank answers during a recovery")
    add(
        "--rebuild-timeout",
        type=float,
        metavar="S",
        help="seconds until broken collectives are rebuilt, then the recovery has failed",
    )
    add(
        "--gloo-comm-timeout",
        type=float,
        metavar="S",
        help="seconds until a gloo collective fails; a long prefill or a compilation on one rank counts",
    )
    add(
        "--worker-start-timeout",
        type=float,
        metavar="S",
        help="seconds until a replacement worker has loaded, then the restart has failed",
    )
    add(
        "--engine-start-timeout",
        type=float,
        metavar="S",
        help="seconds until a replacement engine core serves, then the start is tried again",
    )


def _add_standbys(add: Add) -> None:
    add(
        "--standby-workers",
        type=int,
        metavar="N",
        help="standby workers that each engine core keeps ready; recommended when memory allows",
    )
    add("--standby-preload", action=_SWITCH, help="load the weights in standby workers beforehand")
    add(
        "--wait-for-standby",
        action=_SWITCH,
        help="be ready (/fault_tolerance/ready) only once the first standby worker of each engine core was",
    )
    add(
        "--standby-engines",
        type=int,
        metavar="N",
        help="standby engine cores that the instance keeps ready; so far with a single engine core",
    )
    add("--adopt-workers", action=_SWITCH, help="let workers outlive a killed engine core, for its replacement")


def _add_detection(add: Add) -> None:
    add("--stall-detection", action=_SWITCH, help="find and replace a rank or engine core that makes no progress")
    add("--poison-detection", action=_SWITCH, help="find a request that makes every step fail, and end that request")
    add(
        "--poison-memory",
        type=float,
        metavar="S",
        help="seconds for which repetitions of a poison request are refused at once; 0 remembers nothing",
    )
    add("--check-logits", action=_SWITCH, help="treat non-finite logits (NaN or Inf) as a fault and repeat the step")
    add("--incident-dir", metavar="DIR", help="folder of the incidents, with their evidence")
    add("--max-incidents", type=int, metavar="N", help="incidents that are kept; the oldest go first")
    add("--max-incident-mib", type=int, metavar="MIB", help="MiB that all kept incidents may take together")
    add(
        "--log-format",
        choices=["text", "json"],
        help="write the log of all processes as text, or as JSON with one object per line",
    )
    add(
        "--full-texts-file",
        metavar="FILE",
        help="private file for texts of exceptions as they are, which may quote requests; without, they are kept in "
        "memory only",
    )


def _add_serving(add: Add) -> None:
    add(
        "--recovery-prefill-tokens",
        type=int,
        metavar="N",
        help="most tokens of a step for requests that are recomputed after a loss, beside running requests; "
        "0: no limit",
    )
    add(
        "--max-held-requests",
        type=int,
        metavar="N",
        help="new requests that each API server keeps waiting while no engine makes progress; more are answered 503",
    )
    add(
        "--max-journal-mib",
        type=int,
        metavar="N",
        help="MiB of pictures and other multimodal inputs that each API server keeps while their requests are open; "
        "a request beyond that does not move to another engine core",
    )
    add("--external-fault-notify-host", metavar="HOST", help="address of the ZeroMQ PUB socket, topic `vllm_fault`")
    add(
        "--external-fault-notify-port",
        type=int,
        metavar="PORT",
        help="port of the PUB socket; 0: any free port, -1: no socket",
    )
    add(
        "--open-notifications-to-network",
        action=_SWITCH,
        help="send events to everybody who reaches the PUB socket; without it, subscribers to an address beyond the "
        "loopback need a password, which follows from the configured control token",
    )


def _add_nodes(add: Add) -> None:
    add(
        "--node-secret-file",
        metavar="FILE",
        help="private file with the secret that all nodes of one instance share; without it HOLDFAST_NODE_SECRET",
    )
    add("--node-port", type=int, metavar="PORT", help="port of the first node that agents of further nodes reach")
    add(
        "--node-return-timeout",
        type=float,
        metavar="S",
        help="seconds for which a lost node is waited for, then the recovery has failed",
    )


def _add_access(add: Add) -> None:
    add(
        "--control-token-file",
        metavar="FILE",
        help="file with the token that control commands need; without it HOLDFAST_API_KEY, else a token made at start",
    )
    add(
        "--open-control-to-this-machine",
        action=_SWITCH,
        help="take commands without a token from every process of this machine, proxies included",
    )


def _add_rare(add: Add) -> None:
    add("--enable-fault-injection", action=_SWITCH, help="allow `holdfast inject` to inject faults into this server")
    add("--allow-unknown-host", action=_SWITCH, help="start with a vLLM release that was never tested")
    add(
        "--cpu-enablement",
        action=_SWITCH,
        help="on CPUs, supply the collectives and buffers that many ranks need; no effect elsewhere",
    )
    add(
        "--finish-steps",
        action=_SWITCH,
        help="a rank that raised takes part in what is left of its step; without: its peers' collectives are broken",
    )
    add("--unsafe-keep-suspect-blocks", action=_SWITCH, help=argparse.SUPPRESS)
    add("--unsafe-send-nan", action=_SWITCH, help=argparse.SUPPRESS)
    add("--unsafe-skip-exit-check", action=_SWITCH, help=argparse.SUPPRESS)
    add("--unsafe-skip-fence", action=_SWITCH, help=argparse.SUPPRESS)


def _add_upstream(add: Add) -> None:
    add("--internal-fault-report-port", type=int, metavar="PORT", help=f"no effect: {NO_PORT}")
    add(
        "--shutdown-on-fault-tolerance-failure",
        action=_SWITCH,
        help="no effect: a server that cannot be repaired always ends, so `--no-…` is refused",
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
    "access to control": _add_access,
    "several nodes": _add_nodes,
    "tests and unknown hosts": _add_rare,
    "accepted for compatibility": _add_upstream,
}
