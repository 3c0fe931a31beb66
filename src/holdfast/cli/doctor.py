"""`holdfast doctor`: checks whether a protected server can be served from here."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.text import Text

import holdfast
from holdfast.api.control_token import VARIABLE, ServerRecord, configured_token, running_servers
from holdfast.cli.options import MAX_PORT, MAX_RANKS, AsJson
from holdfast.cli.traps import Finding, Severity, Surroundings, find_traps
from holdfast.core.config import NO_NOTIFY_PORT, NOTIFY_PORT
from holdfast.core.errors import BadConfiguration
from holdfast.hosts.vllm.contract.plugin_names import OURS, extended_allow_list
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint
from holdfast.hosts.vllm.contract.versions import OVERRIDE, TESTED, host_version, is_supported, supported_release
from holdfast.progress.room import Room, look_for_room, shortages

_SERVER_PORT = 8000
_MARKS: dict[Severity, tuple[str, str]] = {
    "fine": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "problem": ("problem", "bold red"),
}


class Report(msgspec.Struct, frozen=True):
    """All findings; `fit` when a protected server can be served."""

    holdfast: str
    host: str | None
    fit: bool
    findings: tuple[Finding, ...]


def doctor(
    as_json: AsJson = False,
    port: Annotated[int, typer.Option(min=0, max=MAX_PORT, help="Port of the server.")] = _SERVER_PORT,
    notify_port: Annotated[
        int | None,
        typer.Option(
            min=NO_NOTIFY_PORT,
            max=MAX_PORT,
            help="Port for fault notifications; -1: none.",
            show_default=str(NOTIFY_PORT),
        ),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, max=MAX_RANKS, help="Number of workers on this machine.")] = 1,
) -> None:
    """Check host, hooks, ports, and traps in the environment. Exit code 0 when a protected server can be served."""
    report = examine(port, notify_port, ranks)
    if as_json:
        typer.echo(msgspec.json.encode(report))
    else:
        _print(report)
    raise typer.Exit(0 if report.fit else 1)


def examine(port: int, notify_port: int | None = None, ranks: int = 1) -> Report:
    """Check everything. Imports the host if installed."""
    host, version = _host_distribution(), host_version()
    findings = (
        judge_host(host, version, overridden=os.environ.get(OVERRIDE) == "1"),
        judge_plugin(),
        *(judge_hooks(_inspect_quietly()) if version else ()),
        judge_port(port),
        judge_notify_port(notify_port),
        *judge_access(os.environb, running_servers()),
        *judge_room(look_for_room(_temporary_folder()), ranks),
        *find_traps(_surroundings(f"{host} {version}", ranks)),
    )
    fit = all(finding.severity != "problem" for finding in findings)
    return Report(holdfast.__version__, f"{host} {version}" if version else None, fit, findings)


def judge_host(distribution: str | None, version: str | None, *, overridden: bool) -> Finding:
    """Judge whether the host is installed and was ever tested."""
    if version is None:
        return Finding(
            about="host", text="vLLM is not installed", severity="problem", hint="install vLLM beside Holdfast"
        )
    if is_supported(version):
        tested = TESTED[supported_release(version)]
        return Finding(about="host", text=f"{distribution} {version} (tested: {tested})", severity="fine")
    known = "; ".join(f"{release}: {tested}" for release, tested in TESTED.items())
    text = f"{distribution} {version} was never tested with this release of Holdfast ({known})"
    hint = f"install a tested release, or accept the risk with {OVERRIDE}=1"
    return Finding(about="host", text=text, severity="warning" if overridden else "problem", hint=hint)


def judge_plugin() -> Finding:
    """Judge whether the host will find and load Holdfast."""
    names = {point.name for point in metadata.entry_points(group="vllm.general_plugins")}
    if OURS not in names:
        text = "the host does not find Holdfast among its plugins"
        return Finding(about="plugin", text=text, severity="problem", hint="install holdfast with pip")
    try:
        extended_allow_list(os.environ)
    except BadConfiguration as error:
        return Finding(about="plugin", text=error.message, severity="problem", hint=error.hint)
    return Finding(about="plugin", text="the host will load Holdfast", severity="fine")


def judge_hooks(inspected: Iterable[tuple[Touchpoint, str | None]]) -> Iterator[Finding]:
    """Yield a finding for all hooks that hold, and a finding for each hook that does not."""
    holds = 0
    for touchpoint, problem in inspected:
        if problem is None:
            holds += 1
        else:
            text = f"{touchpoint.label} {problem}"
            yield Finding(about="hook", text=text, severity="problem", hint=f"required for: {touchpoint.why}")
    yield Finding(about="hooks", text=f"{holds} touchpoints of the host are as expected", severity="fine")


def judge_port(port: int) -> Finding:
    """Judge whether a TCP port on the loopback is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just closed is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            text = f"port {port} " + ("is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound: {error}")
            return Finding(about="port", text=text, severity="problem", hint="choose another port")
    return Finding(about="port", text=f"port {port} is free", severity="fine")


def judge_notify_port(port: int | None) -> Finding:
    """Judge the port of notifications: only a port that was asked for must be free."""
    if port == NO_NOTIFY_PORT:
        return Finding(about="port", text="no port for notifications", severity="fine")
    if port is not None:
        return judge_port(port)
    finding = judge_port(NOTIFY_PORT)
    if finding.severity == "fine":
        return finding
    hint = "its address is in the status and the log; give --external-fault-notify-port for a fixed port"
    return Finding(
        about="port", text=f"{finding.text}: notifications take a free port instead", severity="warning", hint=hint
    )


def judge_access(environ: Mapping[bytes, bytes], servers: Iterable[ServerRecord]) -> Iterator[Finding]:
    """Judge the control token in the environment, and the current user's servers that need none."""
    try:
        token = configured_token("", environ)
    except BadConfiguration as error:
        yield Finding(about="control", text=error.message, severity="problem", hint=error.hint)
    else:
        text = f"commands need the token in {VARIABLE}" if token else "commands need a token that is made at start"
        yield Finding(about="control", text=text, severity="fine")
    for server in servers:
        if server.is_open:
            text = f"the server at port {server.port} takes commands from every process and proxy on this machine"
            hint = "start it without --open-control-to-this-machine"
            yield Finding(about="control", text=text, severity="warning", hint=hint)


def judge_room(room: Room, ranks: int) -> Iterator[Finding]:
    """Judge what the system leaves to a server: a repair needs more than a start."""
    found = list(shortages(room, ranks))
    for shortage in found:
        yield Finding(about=shortage.about, text=shortage.text, severity="warning", hint=shortage.hint)
    if not found:
        text = "open files, threads, shared memory and temporary files suffice for a server and its repair"
        yield Finding(about="room", text=text, severity="fine")


def _host_distribution() -> str | None:
    found = metadata.packages_distributions().get("vllm")
    return found[0] if found else None


def _inspect_quietly() -> list[tuple[Touchpoint, str | None]]:
    """Inspect the touchpoints; redirect output of the host's import to stderr, and silence its log."""
    from holdfast.hosts.vllm.contract.inspection import inspect_touchpoints

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with contextlib.redirect_stdout(sys.stderr):
        return inspect_touchpoints()


def _surroundings(host: str, ranks: int) -> Surroundings:
    return Surroundings(
        environ=os.environ,
        host_is_for_cpus="cpu" in host,
        cpu_flags=_cpu_flags(),
        cores=len(os.sched_getaffinity(0)),
        ranks=ranks,
        temporary_folder=_temporary_folder(),
    )


def _temporary_folder() -> str:
    """Return the folder for temporary files; the stated or the usual folder when none can be written."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return os.environ.get("TMPDIR", "/tmp")


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split())


def _print(report: Report) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for finding in report.findings:
        mark, style = _MARKS[finding.severity]
        line = Text.assemble((f"{mark:<8}", style), f"{finding.about}: {finding.text}")
        console.print(line)
        if finding.hint:
            console.print(Text(f"{'':<8}→ {finding.hint}", style="dim"))
    console.print(Text("fit to serve" if report.fit else "not fit to serve", style="bold"))
