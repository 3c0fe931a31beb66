"""Traps of a machine and its environment: what keeps a vLLM server from starting, or leaves it unprotected.

A trap is a pure function of what was found, so that each can be shown in a test. Nothing here touches the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

Severity = Literal["fine", "warning", "problem"]

# What a Unix socket's address can hold, less the byte that ends it.
MAX_SOCKET_PATH_BYTES = 107
# The longest name that Holdfast makes in the folder for temporary files.
LONGEST_SOCKET_NAME = "/holdfast-12345678/engine-9999"


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that was looked at. A problem keeps a protected server from serving; a warning may."""

    about: str
    text: str
    severity: Severity
    hint: str = ""


@dataclass(frozen=True)
class Surroundings:
    """What the traps are judged by."""

    environ: Mapping[str, str] = field(default_factory=dict)
    host_is_for_cpus: bool = False
    cpu_flags: frozenset[str] = frozenset()
    cores: int = 1
    ranks: int = 1
    temporary_folder: str = "/tmp"


def find_traps(found: Surroundings) -> tuple[Finding, ...]:
    """Every trap that `found` holds."""
    return tuple(finding for trap in _TRAPS for finding in trap(found))


def bfloat16_trap(found: Surroundings) -> Iterator[Finding]:
    """The host's bfloat16 kernels for CPUs end the process where AMX is not usable."""
    if found.host_is_for_cpus and not {"amx_bf16", "amx_tile"} <= found.cpu_flags:
        yield _warning(
            "bfloat16",
            "this CPU has no usable AMX; a bfloat16 model may end with an illegal instruction (SIGILL)",
            "serve with --dtype float32",
        )


def thread_binding_trap(found: Surroundings) -> Iterator[Finding]:
    """Automatic binding keeps a core back and wants one for each rank, and refuses to start without."""
    binding = found.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto")
    if found.host_is_for_cpus and binding == "auto" and found.cores <= found.ranks:
        yield _warning(
            "thread binding",
            f"{found.ranks} rank(s) on {found.cores} core(s): binding threads to cores will refuse to start",
            "set VLLM_CPU_OMP_THREADS_BIND=nobind",
        )


def allow_list_trap(found: Surroundings) -> Iterator[Finding]:
    """Under the host's own command an allow-list without Holdfast leaves the server unprotected."""
    allowed = found.environ.get("VLLM_PLUGINS")
    if allowed is not None and "holdfast" not in allowed.split(","):  # the host strips no spaces either
        yield _warning(
            "VLLM_PLUGINS",
            f"VLLM_PLUGINS={allowed!r} leaves holdfast out: plain `vllm serve` would not be protected",
            "add holdfast to it; `holdfast serve` does that by itself",
        )


def in_process_engine_trap(found: Surroundings) -> Iterator[Finding]:
    """An engine in the caller's own process has no busy loop that could be held."""
    if found.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
        yield _warning(
            "VLLM_ENABLE_V1_MULTIPROCESSING",
            "VLLM_ENABLE_V1_MULTIPROCESSING=0 keeps the engine of `vllm.LLM` in its caller's process, unprotected",
            "unset it",
        )


def keep_alive_trap(found: Surroundings) -> Iterator[Finding]:
    """A front end that outlives its engine answers for ever and never exits."""
    if found.environ.get("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "0") not in ("", "0"):
        yield _warning(
            "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH",
            "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH keeps a defeated server from exiting, so nothing restarts it",
            "unset it",
        )


def socket_path_trap(found: Surroundings) -> Iterator[Finding]:
    """Sockets between processes are files; a path that is too long cannot be bound."""
    length_bytes = len((found.temporary_folder + LONGEST_SOCKET_NAME).encode())
    if length_bytes > MAX_SOCKET_PATH_BYTES:
        yield Finding(
            about="socket paths",
            text=f"the folder for temporary files makes socket paths of {length_bytes} bytes, "
            f"{MAX_SOCKET_PATH_BYTES} are possible: {found.temporary_folder}",
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
