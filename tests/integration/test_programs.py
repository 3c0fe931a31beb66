"""Programs around the host's own classes, without a server: `AsyncLLM` with streaming sessions, and `vllm.LLM`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.chaos.model import default_model_folder, make_dense_model
from holdfast.chaos.server import CPU_ENVIRONMENT

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow, pytest.mark.matrix]

SUPPORT = Path(__file__).parents[1] / "support"
PROGRAM_S = 280.0


def run_program(name: str, *arguments: str) -> list[str]:
    """Return the lines that a program prints by itself; the host's lines begin with a bracket."""
    environment = {**CPU_ENVIRONMENT, **os.environ, "VLLM_PLUGINS": "holdfast", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, str(SUPPORT / name), str(make_dense_model(default_model_folder())), *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROGRAM_S, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout.splitlines()


@pytest.mark.parametrize(
    "cases",
    [("Worker:between:", "Worker:within:7"), ("EngineCore:between:7", "EngineCore:ahead:")],
    ids=["a worker first", "an engine core first"],
)
def test_a_session_is_exact_through_killed_processes(cases: tuple[str, ...]) -> None:
    said = run_program("session_program.py", *cases)
    assert [line for line in said if ":" in line.split(" ")[0]] == [f"{case} exact" for case in cases]
    assert "journal empty" in said


def test_the_llm_class_survives_a_killed_worker_and_ends_with_an_error_after_a_killed_engine_core() -> None:
    """Plain vLLM hangs for ever after both."""
    said = dict(line.split(" ", 1) for line in run_program("offline_program.py") if not line.startswith("("))
    assert said["worker"] == "exact"
    for key in ("under", "later", "call"):
        assert "EngineDeadError" in said[key], said
    assert "the engine core has ended: " in said["under"]
    assert float(said["within"]) < 60
