"""Output of a protected server: descriptors 1 and 2 of the first process, inherited by all others, never block.

They lead to the drain (`log_drain`), a process of its own, which forwards to the original descriptors and survives the
server by as much as the last lines need. The first process keeps the reading ends too, so that a killed drain breaks
no write: another drain goes on where the first one stopped, and until then the first process discards.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from holdfast.hosts.vllm.process import log_drain

logger = logging.getLogger("holdfast")

FLUSH_S = 2.5  # longer than the drain itself waits for a reader
RETRY_S = 1.0
LOOK_S = 1.0
HUNG_S = 4.0  # without an answer, which takes two seconds at most
_ROOM_BYTES = 2**20  # of the pipes: the whole time of a new drain's start
_STANDARD = (1, 2)
_PASSED_ON = ("LD_LIBRARY_PATH",)  # an interpreter may need it
_PYTHON = (sys.executable, "-I", "-S")  # nothing of the environment delays or changes the drain

_output: _Output | None = None


def never_block_output() -> None:
    """Put a drain behind descriptors 1 and 2 of this process. Idempotent; a failure is logged and costs the drain."""
    global _output
    if _output is not None and _output.of_process == os.getpid():
        return
    destinations = _destinations()
    try:
        if destinations:
            _output = _Output(destinations)
    except OSError as error:
        logger.warning("no drain of the log: a log that nobody reads may block this server: %s", error)


def await_output(timeout_s: float = FLUSH_S) -> bool:
    """Wait until all output so far has been forwarded; return whether that was said. Needed before an exit only."""
    if _output is None or _output.of_process != os.getpid():
        return True
    return _output.ask(timeout_s)


@dataclass(frozen=True)
class _Channel:
    """Descriptors that share a destination, the original destination, what the drain reads, and the writers' end."""

    descriptors: tuple[int, ...]
    target: int
    source: int
    end: int


class _Output:
    def __init__(self, destinations: Sequence[tuple[int, ...]]) -> None:
        self.of_process = os.getpid()
        self._asking = threading.Lock()
        self._asked = 0
        with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as ends:
            self._channels = []
            for together in destinations:
                target = fcntl.fcntl(together[0], fcntl.F_DUPFD_CLOEXEC, 3)
                on_failure.callback(os.close, target)
                source, end = _terminal_like(target) if os.isatty(target) else _pipe()
                on_failure.callback(os.close, source)
                ends.callback(os.close, end)
                self._channels.append(_Channel(together, target, source, end))
            self._drain, self._control = self._start()
            on_failure.pop_all()
            _flush_streams()
            for channel in self._channels:
                for descriptor in channel.descriptors:
                    os.dup2(channel.end, descriptor)
        with contextlib.suppress(RuntimeError):  # without a thread a killed drain is not replaced
            threading.Thread(target=self._keep, name="LogDrain", daemon=True).start()
        atexit.register(_flush_at_exit, self.of_process)

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, its = socket.socketpair()
        passed = [descriptor for channel in self._channels for descriptor in (channel.source, channel.target)]
        names = [f"{channel.source}:{channel.target}" for channel in self._channels]
        with its, _signals_blocked():
            try:
                drain = subprocess.Popen(
                    [*_PYTHON, log_drain.__file__, *names],
                    stdin=its.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=passed,
                    env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                    cwd="/",
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return drain, ours

    # ---- while the process lives

    def _keep(self) -> None:
        """Replace a drain that ends before its writers have ended."""
        lost_at_once = 0
        while True:
            began_s = time.monotonic()
            if self._await_end() == 0:
                return  # every writer has closed its end
            lost_at_once = lost_at_once + 1 if time.monotonic() - began_s < RETRY_S else 0
            if lost_at_once > 1:
                self._discard(RETRY_S)
            while not self._replace():
                self._discard(RETRY_S)
            logger.warning("the process that forwards the log was lost; another one goes on, lines may be missing")

    def _await_end(self) -> int:
        """Wait for the end of the drain, and bring a hung one to its end."""
        poll = select.poll()
        poll.register(self._control, 0)  # a hangup is always told
        while not poll.poll(LOOK_S * 1000):
            if any(map(_is_filling, self._channels)) and not self.ask(HUNG_S):
                self._drain.kill()
        return self._drain.wait()

    def _replace(self) -> bool:
        try:
            drain, control = self._start()
        except OSError:
            return False
        old, self._drain, self._control = self._control, drain, control
        old.close()
        return True

    def _discard(self, seconds: float) -> None:
        """Read and forget: no process of the instance may wait for a drain."""
        until_s = time.monotonic() + seconds
        poll = select.poll()
        for channel in self._channels:
            poll.register(channel.source, select.POLLIN)
        while (left_s := until_s - time.monotonic()) > 0:
            for source, _ in poll.poll(left_s * 1000):
                with contextlib.suppress(OSError):
                    os.read(source, _ROOM_BYTES)

    def ask(self, timeout_s: float) -> bool:
        """Ask the drain whether everything so far is forwarded. A signal handler may ask, too."""
        deadline_s = time.monotonic() + timeout_s
        if not self._asking.acquire(timeout=timeout_s):
            return False
        try:
            self._asked = self._asked % 255 + 1
            question, control = bytes([self._asked]), self._control
            control.send(question)
            poll = select.poll()
            poll.register(control, select.POLLIN)
            while poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
                answer = control.recv(64)
                if question in answer or not answer:
                    return bool(answer)
        except (OSError, ValueError):  # the drain has just been lost
            pass
        finally:
            self._asking.release()
        return False


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block the signals that everybody gets, in this thread and in processes that start meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _flush_at_exit(process: int) -> None:
    if os.getpid() == process:
        _flush_streams()
        await_output()


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _is_filling(channel: _Channel) -> bool:
    unread = struct.unpack("i", fcntl.ioctl(channel.source, termios.FIONREAD, bytes(4)))[0]
    return bool(unread >= select.PIPE_BUF // 2)


def _destinations() -> list[tuple[int, ...]]:
    """Return the descriptors that may block, those of the same destination together: lines keep their order."""
    by_file: dict[tuple[int, int], list[int]] = {}
    for descriptor in _STANDARD:
        with contextlib.suppress(OSError):
            seen = os.fstat(descriptor)
            if not (stat.S_ISCHR(seen.st_mode) and seen.st_rdev == os.stat(os.devnull).st_rdev):
                by_file.setdefault((seen.st_dev, seen.st_ino), []).append(descriptor)
    return [tuple(together) for together in by_file.values()]


def _pipe() -> tuple[int, int]:
    source, end = os.pipe()
    with contextlib.suppress(OSError):  # the user's share of pipes is used up
        fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _ROOM_BYTES)
    return source, end


def _terminal_like(target: int) -> tuple[int, int]:
    """Return both ends of a pseudo terminal, on which colours and progress bars go on; a pipe where there is none."""
    try:
        source, end = os.openpty()
    except OSError:
        return _pipe()
    tty.setraw(end)
    with contextlib.suppress(OSError):
        fcntl.ioctl(end, termios.TIOCSWINSZ, fcntl.ioctl(target, termios.TIOCGWINSZ, b"\0" * 8))
    return source, end
