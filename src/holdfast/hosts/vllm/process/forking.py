"""Processes that are forked from a process with the host's modules loaded: imports are most of the time of a start.

A fork server forks on request and does nothing else: no thread, no device context. The first one is a copy of an engine
core, taken once the host is imported and before anything was made. A process that is forked has the environment, folder
and descriptors of a spawned one, unpickles the same arguments, and is a child of the process that asked. Where forking
is impossible, callers spawn.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import io
import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import context, popen_spawn_posix, reduction, resource_tracker, spawn, util
from typing import Any, NoReturn, cast

from holdfast.hosts.vllm.process import priority

logger = logging.getLogger("holdfast")

TITLE = "VLLM::ForkServer"
READY = b"ready"
ANSWER_S = 3.0
_MESSAGE_BYTES = 1 << 17
_MAX_DESCRIPTORS = 200
_EXIT_FAILED = 1
_PR_SET_CHILD_SUBREAPER = 36
_PLACE = re.compile(r"\{(\d+(?:,\d+)*)\}")  # as the host binds the threads of a worker

_BOUND_AT_LOAD = {"GOMP_CPU_AFFINITY", "KMP_AFFINITY"}  # read by a library as it is loaded

_first: ForkServer | None = None


class CannotFork(Exception):
    """No process was forked: one is to be spawned."""


# ---- the process that asks


class ForkServer:
    """A fork server, seen from the process that asks. Any thread. The server ends with the process that asks.

    Args:
        requests: our end of the socket on which the server waits.
    """

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._lock = threading.Lock()
        self._is_lost = False

    def close(self) -> None:
        """End the server. Idempotent."""
        with self._lock:
            self._lose()

    @property
    def is_lost(self) -> bool:
        return self._is_lost

    def await_ready(self, seconds: float) -> bool:
        """Return whether the server has reported, within `seconds`, that it is ready. Raises `CannotFork`."""
        with self._lock:
            try:
                self._requests.settimeout(seconds)
                if self._requests.recv(len(READY)) == READY:
                    return True
            except (TimeoutError, BlockingIOError):
                return False
            except OSError as error:
                self._lose()
                raise CannotFork(f"the fork server is gone: {error}") from error
            self._lose()
            raise CannotFork("the fork server has ended")

    def fork(self, tracker: int, pipe: int, descriptors: Sequence[int]) -> int:
        """Return the process id of a new child that runs what arrives over `pipe`. Raises `CannotFork`."""
        if self._is_lost:
            raise CannotFork("the fork server is gone")
        if bound := _BOUND_AT_LOAD & set(os.environ):
            raise CannotFork(f"{', '.join(sorted(bound))} has an effect only in a new interpreter")
        request = {
            "tracker": tracker,
            "pipe": pipe,
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "places": list(descriptors),
        }
        try:
            with self._lock, _adopting():
                self._requests.settimeout(ANSWER_S)
                socket.send_fds(self._requests, [json.dumps(request).encode()], list(descriptors))
                answer = self._requests.recv(64)
        except OSError as error:
            self.close()  # an answer that comes later would be taken for the next one
            raise CannotFork(f"the fork server does not answer: {error}") from error
        if not answer.isdigit():
            self.close()
            raise CannotFork(f"the fork server has ended: {answer.decode(errors='replace')}")
        return _checked_child(int(answer))

    def _lose(self) -> None:
        self._is_lost = True
        self._requests.close()


def _checked_child(pid: int) -> int:
    """Return the id of a process that is a child of this one; kill another, whose end could not be noticed."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        raise CannotFork("the system does not give a forked process to the process that asked") from None
    return pid


def first_fork_server() -> ForkServer | None:
    """Return the fork server that was made as this process started; None without one."""
    return _first if _first is not None and not _first.is_lost else None


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Adopt descendants whose parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class ForkedProcess(context.SpawnProcess):
    """A process of `multiprocessing` that a fork server forks. `start` raises `CannotFork`."""

    def __init__(self, server: ForkServer, **about: Any) -> None:
        super().__init__(**about)
        self._server = server

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_server"}

    @staticmethod
    def _Popen(process: Any) -> Any:
        return _ForkedPopen(process)


class _ForkedPopen(popen_spawn_posix.Popen):
    """Starts a process as the standard library does, but for the last step."""

    def _launch(self, process: Any) -> None:
        tracker = cast("int", resource_tracker.getfd())
        self._fds: list[int] = [*self._fds, tracker]
        content = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process._name), content)
            reduction.dump(process, content)
        finally:
            context.set_spawning_popen(None)
        ours, end = os.pipe()
        reader, writer = os.pipe()
        self.finalizer = util.Finalize(self, _close, (ours, writer))
        try:
            passed = sorted({0, 1, 2, *self._fds, reader, end})
            self.pid = process._server.fork(tracker, reader, passed)
        finally:
            os.close(end)
            os.close(reader)
        self.sentinel = ours
        with open(writer, "wb", closefd=False) as pipe:
            pipe.write(content.getbuffer())


def _close(*descriptors: int) -> None:
    for one in descriptors:
        os.close(one)


# ---- the fork server


def keep_fork_server() -> None:
    """Copy the process into a fork server, which `first_fork_server` returns. Main thread, before anything is made."""
    global _first

    if threading.active_count() > 1:
        logger.info("standbys will be new interpreters: the engine core has threads already")
        return
    priority.share_hold()
    try:
        ours, theirs = make_ends()
        pid = os.fork()
    except OSError as error:
        logger.warning("standbys will be new interpreters: the engine core cannot be copied: %s", error)
        return
    if pid == 0:
        with _ending():
            ours.close()
            priority.end()
            serve_forks(theirs)
    theirs.close()
    _first = ForkServer(ours)


def make_ends() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of the connection to a fork server."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def serve_forks(requests: socket.socket) -> NoReturn:
    """Fork for each request, until the process that asks closes the connection or ends; then exit."""
    # Titles are set in the memory of the environment, which is found only before the environment changes.
    importlib.import_module("setproctitle").setproctitle(TITLE)
    signal.pthread_sigmask(signal.SIG_BLOCK, {priority.HURRY})  # for each child, until it can be hurried
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    requests.settimeout(None)
    while True:
        message, descriptors, *_ = socket.recv_fds(requests, _MESSAGE_BYTES, _MAX_DESCRIPTORS)
        if not message:
            os._exit(0)
        answer = _fork(json.loads(message), descriptors, requests)
        for one in descriptors:
            os.close(one)
        requests.send(answer)


def _fork(request: Mapping[str, Any], descriptors: Sequence[int], requests: socket.socket) -> bytes:
    """Fork a process whose parent ends at once, so that the process that asks adopts the process; return the id."""
    read, write = os.pipe()
    between = os.fork()
    if between == 0:
        with _ending():
            child = os.fork()
            if child:
                os.write(write, str(child).encode())
                os._exit(0)
            atexit._clear()  # what the server would do at its end, for threads that it alone may have
            requests.close()
            _become(request, descriptors)
    os.close(write)
    os.waitpid(between, 0)
    answer = os.read(read, 64)
    os.close(read)
    return answer or b"no process could be forked"


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """End the process with the block, whatever happens: the frames above are of another process."""
    code = _EXIT_FAILED
    try:
        yield
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else _EXIT_FAILED
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _become(request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """Take environment, folder and descriptors of the requested process, and run the main function."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _take_environment(request["environment"])
    os.chdir(request["folder"])
    _place(descriptors, request["places"])
    sys.argv = ["-c", "--multiprocessing-fork"]
    spawn.spawn_main(tracker_fd=request["tracker"], pipe_handle=request["pipe"])


def _take_environment(wanted: Mapping[str, str]) -> None:
    """Change what differs, and what a library has read from the environment as it was loaded."""
    for name in set(os.environ) - set(wanted):
        del os.environ[name]
    os.environ.update({name: value for name, value in wanted.items() if os.environ.get(name) != value})
    tempfile.tempdir = None
    if place := _PLACE.fullmatch(wanted.get("OMP_PLACES", "")):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, map(int, place[1].split(",")))
    if (threads := wanted.get("OMP_NUM_THREADS", "")).isdigit():
        importlib.import_module("torch").set_num_threads(int(threads))


def _place(descriptors: Sequence[int], places: Sequence[int]) -> None:
    """Give each descriptor its number in the process that asked, and close all descriptors that were not sent."""
    above: list[int] = []
    for one in descriptors:
        while (copy := os.dup(one)) in places:  # stays open until the descriptor that belongs there takes the place
            pass
        above.append(copy)
    for one, place in zip(above, places, strict=True):
        os.dup2(one, place, inheritable=True)
    for one in map(int, os.listdir("/proc/self/fd")):
        if one > 2 and one not in places:
            with contextlib.suppress(OSError):
                os.close(one)
