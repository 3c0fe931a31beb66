"""Servers are started and ended as a whole: nothing of them stays, whatever they do."""

from __future__ import annotations

import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.chaos.processes import session_members, session_usage
from holdfast.chaos.server import Server, ServerFailed, ServerSpec, log_tail

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the process table of Linux")

HEALTHY = """
    import http.server, os, subprocess, sys, time
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    subprocess.Popen([sys.executable, "-c", stubborn])
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
WITHOUT_CHILDREN = HEALTHY.replace('    subprocess.Popen([sys.executable, "-c", stubborn])\n', "")


@dataclass(frozen=True)
class ScriptSpec(ServerSpec):
    """A server that is a Python script."""

    script: str = HEALTHY

    def command(self, port: int) -> list[str]:
        return [sys.executable, "-c", textwrap.dedent(self.script), str(port)]


def spec(folder: Path, script: str = HEALTHY, ready_timeout_s: float = 20.0) -> ScriptSpec:
    return ScriptSpec(model=folder, log=folder / "log", script=script, ready_timeout_s=ready_timeout_s)


def test_stopping_ends_the_server_and_its_stubborn_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that ignores SIGTERM is killed with its session, and nothing is left."""
    monkeypatch.setattr("holdfast.chaos.server.CHILDREN_GRACE_S", 0.3)
    with Server(spec(tmp_path)) as server:
        assert server.exit_code is None
        assert server.start_s > 0
        assert len(session_members(server.pid)) == 2
        assert session_usage(server.pid).threads >= 2
    assert session_members(server.pid) == []
    assert server.exit_code == -15


def test_a_server_that_ends_early_shows_its_log(tmp_path: Path) -> None:
    """The error carries the exit code and the last lines of the log."""
    with pytest.raises(ServerFailed, match=r"(?s)exit code 7.*no such model"):
        Server(spec(tmp_path, "import sys; print('no such model'); sys.exit(7)")).start()


def test_a_server_that_never_gets_ready_is_ended(tmp_path: Path) -> None:
    """The wait is bounded and leaves no process."""
    server = Server(spec(tmp_path, "import time; time.sleep(60)", ready_timeout_s=0.3))
    with pytest.raises(ServerFailed, match="not ready after"):
        server.start()
    assert session_members(server.pid) == []


def test_stopping_twice_or_before_the_start_is_harmless(tmp_path: Path) -> None:
    """Stop may be called at any time."""
    server = Server(spec(tmp_path, WITHOUT_CHILDREN))
    assert server.stop() is None
    server.start()
    assert server.stop() == server.stop()


def test_the_callers_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the CPU build run is a default, not an order."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    script = "import os; print('threads', os.environ['OMP_NUM_THREADS'], os.environ['VLLM_CPU_KVCACHE_SPACE'])"
    with pytest.raises(ServerFailed, match="threads 3 1"):
        Server(spec(tmp_path, script)).start()


def test_the_log_tail_of_no_log_is_empty(tmp_path: Path) -> None:
    """A missing log is no error."""
    assert log_tail(tmp_path / "none") == ""


def test_the_plain_host_gets_no_flag_of_ours(tmp_path: Path) -> None:
    """Off is the host's own entry point."""
    command = ServerSpec(model=tmp_path, log=tmp_path / "log", holdfast=False).command(1)
    assert "holdfast" not in " ".join(command).replace("holdfast-small", "").replace(str(tmp_path), "")
    assert os.fspath(tmp_path) in command
