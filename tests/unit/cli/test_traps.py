"""Each trap of the environment, sprung and not."""

from __future__ import annotations

import pytest

from holdfast.cli.traps import MAX_SOCKET_PATH_BYTES, Surroundings, find_traps

AMX = frozenset({"amx_bf16", "amx_tile", "avx512f"})


def cpu_host(**found: object) -> Surroundings:
    return Surroundings(**{"host_is_for_cpus": True, "cpu_flags": AMX, "cores": 8, **found})  # type: ignore[arg-type]


def names(found: Surroundings) -> list[str]:
    return [finding.about for finding in find_traps(found)]


@pytest.mark.parametrize(
    "found",
    [
        Surroundings(),
        cpu_host(),
        cpu_host(cores=2, ranks=1),
        cpu_host(cores=2, ranks=2, environ={"VLLM_CPU_OMP_THREADS_BIND": "nobind"}),
        cpu_host(cores=2, ranks=2, environ={"VLLM_CPU_OMP_THREADS_BIND": "0|1"}),
        cpu_host(environ={"VLLM_PLUGINS": "other,holdfast"}),
        cpu_host(environ={"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "0"}),
        Surroundings(cores=1, ranks=8),
    ],
)
def test_no_trap(found: Surroundings) -> None:
    """A machine that serves well is left in peace; a GPU host does not care about its CPU."""
    assert names(found) == []


@pytest.mark.parametrize(
    ("found", "about"),
    [
        (cpu_host(cpu_flags=frozenset({"avx512f"})), "bfloat16"),
        (cpu_host(cpu_flags=AMX - {"amx_tile"}), "bfloat16"),
        (cpu_host(cores=2, ranks=2), "thread binding"),
        (cpu_host(cores=1, environ={"VLLM_CPU_OMP_THREADS_BIND": "auto"}), "thread binding"),
        (cpu_host(environ={"VLLM_PLUGINS": "other"}), "VLLM_PLUGINS"),
        (cpu_host(environ={"VLLM_PLUGINS": ""}), "VLLM_PLUGINS"),
        (cpu_host(environ={"VLLM_PLUGINS": "other, holdfast"}), "VLLM_PLUGINS"),
        (cpu_host(environ={"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}), "VLLM_ENABLE_V1_MULTIPROCESSING"),
        (cpu_host(environ={"VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1"}), "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"),
        (cpu_host(temporary_folder="/" + "x" * 90), "socket paths"),
    ],
)
def test_trap_is_named(found: Surroundings, about: str) -> None:
    """A trap is named alone, says what to do, and only what cannot work at all is a problem."""
    (finding,) = find_traps(found)
    assert finding.about == about
    assert finding.hint
    assert finding.severity == ("problem" if about == "socket paths" else "warning")


def test_the_longest_folder_that_works() -> None:
    """The bound on socket paths is the kernel's, to the byte."""
    longest = "/" + "x" * (MAX_SOCKET_PATH_BYTES - len("//holdfast-12345678/engine-9999"))
    assert names(Surroundings(temporary_folder=longest)) == []
    assert names(Surroundings(temporary_folder=longest + "x")) == ["socket paths"]
