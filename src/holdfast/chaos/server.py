"""Starts and ends a real server, and proves that nothing is left behind.

Owns the process and its whole session; touches no process that it did not start. Every wait is bounded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from holdfast.api.control_token import VARIABLE
from holdfast.chaos.control import STATED_TOKENS
from holdfast.chaos.processes import session_members
from holdfast.chaos.streams import MODEL_NAME
from holdfast.core.errors import WorldError

POLL_S = 0.05
LOG_TAIL_LINES = 30
CHILDREN_GRACE_S = 5.0
ABANDON_TIMEOUT_S = 3.0  # for a server that never served: no client waits, and the host ignores SIGTERM at its start

# Lets the host's CPU build run on a small machine; the caller's environment has precedence.
WITHOUT_NETWORK = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
CPU_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    **WITHOUT_NETWORK,
}
# bfloat16 fails on virtual CPUs without usable AMX; compiling the small model takes longer than serving it.
_HOLDFAST = "from holdfast.cli.main import main; main()"  # the command of this interpreter, whatever the PATH says
CPU_ARGUMENTS = ("--enforce-eager", "--dtype", "float32")


class ServerFailed(WorldError):
    """The server did not start, or ended unexpectedly; carries the tail of the log."""


@dataclass(frozen=True)
class ServerSpec:
    """Specification of a server. `port` 0 takes a free port at each start; without `holdfast`, the plain host."""

    model: Path
    log: Path
    port: int = 0
    holdfast: bool = True
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    on_cpu: bool = True  # with the flags and the environment that the host's CPU build needs
    ready_timeout_s: float = 240.0
    stop_timeout_s: float = 30.0

    def command(self, port: int) -> list[str]:
        common = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL_NAME]
        common += CPU_ARGUMENTS if self.on_cpu else ()
        if self.holdfast:
            front = [sys.executable, "-c", _HOLDFAST, "serve", str(self.model)]
        else:
            front = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        return [*front, *common, *self.arguments]


class Server:
    """A running server; a context manager."""

    def __init__(self, spec: ServerSpec) -> None:
        self.spec = spec
        self.port = spec.port or free_port()
        self.start_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal; None while the server runs."""
        return None if self._process is None else self._process.poll()

    def start(self, tick: Callable[[float], None] | None = None) -> Server:
        """Start and wait until `/health` answers 200; `tick` is told the seconds waited. Raises `ServerFailed`."""
        begin_s = time.monotonic()
        STATED_TOKENS.pop(self.port, None)
        if (token := self.spec.environment.get(VARIABLE)) is not None:
            STATED_TOKENS[self.port] = os.fsencode(token)
        self._spawn()
        try:
            self._wait_healthy(begin_s, tick)
        except BaseException:
            self.stop(timeout_s=ABANDON_TIMEOUT_S)
            raise
        self.start_s = time.monotonic() - begin_s
        return self

    def _spawn(self) -> None:
        usual = CPU_ENVIRONMENT if self.spec.on_cpu else WITHOUT_NETWORK
        environment = {**usual, **os.environ, **self.spec.environment}
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        with self.spec.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.spec.command(self.port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # ending the session ends every child, and Ctrl-C reaches only this process
            )

    def _wait_healthy(self, begin_s: float, tick: Callable[[float], None] | None) -> None:
        while not self.healthy():
            waited_s = time.monotonic() - begin_s
            if self.exit_code is not None:
                raise self.failure(f"the server ended with exit code {self.exit_code} before it was ready")
            if waited_s > self.spec.ready_timeout_s:
                raise self.failure(f"the server was not ready after {waited_s:.0f} s")
            if tick is not None:
                tick(waited_s)
            time.sleep(POLL_S)

    def healthy(self) -> bool:
        """Return whether `/health` answers 200 now."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def failure(self, message: str) -> ServerFailed:
        return ServerFailed(f"{message}; end of the log:\n{log_tail(self.spec.log)}")

    def stop(self, timeout_s: float | None = None) -> int | None:
        """Send SIGTERM, then SIGKILL to the rest of the session; return the exit code."""
        if self._process is None:
            return None
        try:
            self._process.terminate()
            self._process.wait(self.spec.stop_timeout_s if timeout_s is None else timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also when a second Ctrl-C cuts the wait short
            self._end_session()
        return self._process.wait(self.spec.stop_timeout_s)

    def _end_session(self) -> None:
        """Give children a moment to follow their parent, then kill the rest of the session."""
        deadline_s = time.monotonic() + CHILDREN_GRACE_S
        while self.exit_code is not None and self.orphans() and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        while self.orphans() and time.monotonic() < deadline_s + CHILDREN_GRACE_S:
            time.sleep(POLL_S)

    def orphans(self) -> list[int]:
        """Return the living processes of the server's session except the server."""
        return [pid for pid in session_members(self.pid) if pid != self.pid]

    def __enter__(self) -> Server:
        return self if self._process is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def free_port() -> int:
    """Return a loopback port that was free a moment ago; the server reports a lost race when binding."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def log_tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    """Return the last lines of a log file; empty without a file."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
