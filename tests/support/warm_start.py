"""Servers forked from a process that has imported the host: imports are most of what a start costs.

The processes of the start itself are forked with the host's modules loaded; an ordinary start loads the modules in new
interpreters. Nothing else differs: each process has the descriptors that it is given, unpickles its arguments, attaches
its hooks and is a child of the process that started it. Replacements of lost processes are forked too, except in tests
with the mark `spawned`, and in the matrix, where they are new interpreters.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import json
import multiprocessing.util
import os
import pkgutil
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import spawn
from pathlib import Path
from typing import Any, ClassVar

from holdfast.chaos.server import CPU_ENVIRONMENT, Server, ServerSpec

TESTS = Path(__file__).parents[1]
SPAWN_FLAG = "HOLDFAST_TEST_SPAWN"  # a path: where it exists, processes are spawned
MESSAGE_BYTES = 2**20
MODULES = (
    "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.serve",
    "vllm.v1.engine.core",
    "vllm.v1.engine.coordinator",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.gpu_worker",
    "holdfast.cli.main",
    "holdfast.hosts.vllm.hooks",
)
SET_AT_START = ("TRITON_INTERPRET", "VLLM_USE_V2_MODEL_RUNNER")  # by the test bench, as an interpreter starts
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_TARGET = re.compile(r"spawn_main\(tracker_fd=(\d+), pipe_handle=(\d+)\)")
_ENGINE_CORE = "EngineCore"  # begins the names of processes that start others

Task = Callable[[], None]


# ---- the process that forks


def main(descriptor: int, modules: Sequence[str] = MODULES) -> None:
    """Import the host and fork on request; in a forked process, run the requested task."""
    # Names are set in the memory of the environment, and it is found only before that changes.
    setproctitle = importlib.import_module("setproctitle").setproctitle
    setproctitle(" ".join([sys.executable, *sys.argv]))
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    _run(_fork_on_request(socket.socket(fileno=descriptor)))


def _fork_on_request(requests: socket.socket) -> Task:
    """Fork for each request until the peer closes the socket; in a forked process, return the task to run."""
    while True:
        message, descriptors, *_ = socket.recv_fds(requests, MESSAGE_BYTES, 200)
        if not message:
            os._exit(0)
        read, write = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child == 0:
                requests.close()
                os.close(read)
                os.close(write)
                return functools.partial(_become, json.loads(message), descriptors)
            os.write(write, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)  # from now on the child belongs to the process that asked
        requests.send(os.read(read, 64))
        for one in (read, write, *descriptors):
            os.close(one)


class _Task(BaseException):
    """Task of a forked process: raised where the process was forked, and run once the stack has been left."""

    def __init__(self, run: Task) -> None:
        super().__init__()
        self.run = run


def _run(task: Task) -> None:
    """Run a task; in a process that is forked meanwhile, run the task of that process instead."""
    while True:
        try:
            task()
        except _Task as forked:
            task = forked.run
        else:
            return


def _become(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Take the environment, folder and descriptors of the requested process, and run the main function."""
    kept = {name: os.environ[name] for name in SET_AT_START if name in os.environ}
    os.environ.clear()
    os.environ.update(request["environment"] | kept)
    tempfile.tempdir = None
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:  # read once, by the import: API servers share their metrics in files
        values = importlib.import_module("prometheus_client.values")
        values.ValueClass = values.get_value_class()
    os.chdir(request["folder"])
    _place(descriptors, request["places"])
    if "arguments" in request:
        os.setsid()
        sys.argv = ["-c", *request["arguments"]]
        _fork_what_starts_next()
        pkgutil.resolve_name(request["command"])()
    else:
        _follow_engine_cores()
        sys.argv = ["-c", "--multiprocessing-fork"]
        spawn.spawn_main(tracker_fd=request["tracker"], pipe_handle=request["pipe"])


def _place(descriptors: Sequence[int], places: Sequence[int]) -> None:
    """Give each descriptor the number from the sending process, and close all descriptors that were not sent."""
    above = [os.dup(one) for one in descriptors]
    while clash := set(above) & set(places):
        above = [os.dup(one) if one in clash else one for one in above]
    for one, place in zip(above, places, strict=True):
        os.dup2(one, place, inheritable=True)
    for one in map(int, os.listdir("/proc/self/fd")):
        if one > 2 and one not in places:
            with contextlib.suppress(OSError):
                os.close(one)


def _follow_engine_cores() -> None:
    """Have an engine core fork workers in turn.

    The forking process is copied before the arguments of the engine core are unpickled: unpickling attaches hooks, and
    of two hooks on a function of the host the first one stays.
    """
    original = spawn.prepare

    def prepare(data: dict[str, Any]) -> None:
        spawn.prepare = original
        if data["name"].startswith(_ENGINE_CORE):
            _fork_what_starts_next()
        original(data)

    spawn.prepare = prepare


def _fork_what_starts_next() -> None:
    """Fork a copy of the process; the copy forks all processes that would be spawned."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        importlib.import_module("setproctitle").setproctitle("warm-start")
        raise _Task(_fork_on_request(theirs))
    theirs.close()
    spawn_for_real = multiprocessing.util.spawnv_passfds

    def start(path: bytes, args: Sequence[str], passfds: Sequence[int]) -> int:
        target = _TARGET.search(" ".join(map(os.fsdecode, args)))
        if target is None or os.path.exists(os.environ[SPAWN_FLAG]):
            return spawn_for_real(path, args, passfds)
        request = {"tracker": int(target[1]), "pipe": int(target[2])}
        return _request(ours, request, os.environ, os.getcwd(), sorted({0, 1, 2, *passfds}))

    multiprocessing.util.spawnv_passfds = start


# ---- the process that asks for a fork

_one_request = threading.Lock()


def _request(
    forks: socket.socket, request: dict[str, Any], environment: Mapping[str, str], folder: str, passed: Sequence[int]
) -> int:
    """Return the process id of a new child process."""
    about = {**request, "environment": dict(environment), "folder": folder, "places": list(passed)}
    with _one_request, _adopting():
        socket.send_fds(forks, [json.dumps(about).encode()], list(passed))
        answer = forks.recv(64)
    assert answer, "the process that forks is gone"
    return int(answer)


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Adopt descendants whose parent ends; afterwards as before."""
    before = ctypes.c_int()
    _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(_PR_SET_CHILD_SUBREAPER, before.value)


def _prctl(option: int, value: Any) -> None:
    assert ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0


class WarmParent:
    """Process that has imported the host in one environment and forks servers."""

    def __init__(
        self,
        environment: Mapping[str, str],
        modules: Sequence[str] = MODULES,
        command: str = "holdfast.cli.main:main",
    ) -> None:
        self._command = command
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = (
            f"import sys; sys.path.insert(0, {str(TESTS)!r}); from support.warm_start import main; del sys.path[0]; "
            f"main({theirs.fileno()}, {list(modules)!r})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**CPU_ENVIRONMENT, **os.environ, **environment},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], log: int) -> int:
        with open(os.devnull, "rb") as nothing:
            return self._fork(arguments, environment, (nothing.fileno(), log))

    def _fork(self, arguments: Sequence[str], environment: Mapping[str, str], streams: tuple[int, int]) -> int:
        about = {
            "arguments": list(arguments),
            "command": self._command,
            "environment": dict(environment),
            "folder": os.getcwd(),
            "places": [0, 1, 2],
        }
        with _one_request, _adopting():
            socket.send_fds(self._socket, [json.dumps(about).encode()], [streams[0], streams[1], streams[1]])
            answer = self._socket.recv(64)
        assert answer, "the process that forks servers is gone"
        return int(answer)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(30)


class Forked:
    """The part of `subprocess.Popen` that a server needs, of a child that was forked elsewhere."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return code

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


class WarmServer(Server):
    """A server that is forked from a warm parent."""

    living: ClassVar[weakref.WeakSet[WarmServer]] = weakref.WeakSet()

    def __init__(self, spec: ServerSpec, parent: WarmParent) -> None:
        super().__init__(spec)
        self._parent = parent

    def spawn_replacements(self, wanted: bool) -> None:
        """Have the server spawn replacements from now on, or fork replacements."""
        flag = self.spec.log.with_suffix(".spawn")
        flag.touch() if wanted else flag.unlink(missing_ok=True)

    def _spawn(self) -> None:
        flag = self.spec.log.with_suffix(".spawn")
        environment = {**CPU_ENVIRONMENT, **os.environ, **self.spec.environment, SPAWN_FLAG: str(flag)}
        arguments = self.spec.command(self.port)[3:]
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        with self.spec.log.open("ab") as log:
            self._process = Forked(self._parent.fork(arguments, environment, log.fileno()))  # type: ignore[assignment]

    def start(self, tick: Callable[[float], None] | None = None) -> Server:
        super().start(tick)
        WarmServer.living.add(self)
        return self
