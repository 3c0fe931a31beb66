"""Traps of a machine and its environment that keep a vLLM server from starting or leave it unprotected.

Each trap is a pure function of the surroundings, so that a test can show it. Nothing here touches the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

Severity = Literal["fine", "warning", "problem"]

# Capacity of a Unix socket's address, without the terminating byte.
MAX_SOCKET_PATH_BYTES = 107
# The longest name that Holdfast makes in the folder for temporary files.
LONGEST_SOCKET_NAME = "/holdfast-12345678/engine-9999"


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Result of a check. A problem prevents a protected server; a warning may."""

    about: str
    text: str
    severity: Severity
    hint: str = ""


@dataclass(frozen=True)
class Surroundings:
    """Facts about the machine and environment that the traps judge."""

    environ: Mapping[str, str] = field(default_factory=dict)
    host_is_for_cpus: bool = False
    cpu_flags: frozenset[str] = frozenset()
    cores: int = 1
    ranks: int = 1
    temporary_folder: str = "/tmp"


def find_traps(found: Surroundings) -> tuple[Finding, ...]:
    """Return the finding of every trap."""
    return tuple(finding for trap in _TRAPS for finding in trap(found))


def bfloat16_trap(found: Surroundings) -> Iterator[Finding]:
    """Warn when AMX is not usable: the host's bfloat16 kernels for CPUs then end the process."""
    if found.host_is_for_cpus and not {"amx_bf16", "amx_tile"} <= found.cpu_flags:
        yield _warning(
            "bfloat16",
            "this CPU has no usable AMX; a bfloat16 model may end with an illegal instruction (SIGILL)",
            "serve with --dtype float32",
        )


def thread_binding_trap(found: Surroundings) -> Iterator[Finding]:
    """Warn when automatic binding, which reserves a core and needs another for each rank, cannot start."""
    binding = found.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto")
    if found.host_is_for_cpus and binding == "auto" and found.cores <= found.ranks:
        yield _warning(
            "thread binding",
            f"{found.ranks} rank(s) on {found.cores} core(s): binding threads to cores refuses to start",
            "set VLLM_CPU_OMP_THREADS_BIND=nobind",
        )


def allow_list_trap(found: Surroundings) -> Iterator[Finding]:
    """Warn when an allow-list under the host's own command leaves Holdfast out."""
    allowed = found.environ.get("VLLM_PLUGINS")
    if allowed is not None and "holdfast" not in allowed.split(","):  # the host strips no spaces either
        yield _warning(
            "VLLM_PLUGINS",
            f"VLLM_PLUGINS={allowed!r} leaves Holdfast out: plain `vllm serve` would be unprotected",
            "add holdfast to the list; `holdfast serve` does so itself",
        )


def in_process_engine_trap(found: Surroundings) -> Iterator[Finding]:
    """Warn when the engine runs in the caller's own process, without a busy loop that could pause."""
    if found.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
        yield _warning(
            "VLLM_ENABLE_V1_MULTIPROCESSING",
            "VLLM_ENABLE_V1_MULTIPROCESSING=0 runs the engine of `vllm.LLM` in the caller's process, unprotected",
            "unset the variable",
        )


def keep_alive_trap(found: Surroundings) -> Iterator[Finding]:
    """Warn when a front end would outlive its engine, answer for ever and never exit."""
    if found.environ.get("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "0") not in ("", "0"):
        yield _warning(
            "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH",
            "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH keeps a defeated server running, so no supervisor restarts it",
            "unset the variable",
        )


def socket_path_trap(found: Surroundings) -> Iterator[Finding]:
    """Report socket paths that are too long to bind: sockets between processes are files."""
    length_bytes = len((found.temporary_folder + LONGEST_SOCKET_NAME).encode())
    if length_bytes > MAX_SOCKET_PATH_BYTES:
        yield Finding(
            about="socket paths",
            text=f"socket paths in the temporary folder have {length_bytes} bytes, the limit is "
            f"{MAX_SOCKET_PATH_BYTES}: {found.temporary_folder}",
            severity="problem",
            hint="set TMPDIR to a shorter path",
        )


_TRAPS: tuple[Callable[[Surroundings], Iterator[Finding]], ...] = (
    bfloat16_trap,
    thread_binding_trap,
    allow_list_trap,
    in_process_engine_trap,
    keep_alive_trap,
    socket_path_trap,
)


def _warning(about: str, text: str, hint: str) -> Finding:
    return Finding(about=about, text=text, severity="warning", hint=hint)
