"""Exit of a defeated instance: a non-zero exit code and a last line with the reason.

The host exits with code 0 after the death of its engine core, which a supervisor takes for a success.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import errno
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from multiprocessing import resource_tracker
from typing import Any, NoReturn

from holdfast.hosts.vllm.contract.front_end_touchpoints import SERVE_HTTP, SERVE_MANY
from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.owner.owner import VllmFrontEndHost, current_owner
from holdfast.hosts.vllm.process.logs import FLUSH_S, flush_log
from holdfast.hosts.vllm.process.output import await_output
from holdfast.hosts.vllm.process.settings import asks_for_protection

TRACKER_TIMEOUT_S = 2.0
EXIT_DEFEATED = 70  # EX_SOFTWARE of sysexits.h


def attach_exit_hook() -> None:
    """Attach the exit of an API server that owns engine cores; the host's server is imported by then."""
    attach(SERVE_HTTP, _serve_then_exit)


def attach_launcher_exit_hook() -> None:
    """Attach the exit of a process that may launch several API servers."""
    if SERVE_MANY.module in sys.modules:  # the host imports its command before any plugin
        attach(SERVE_MANY, _serve_many_then_exit)


def end_start_on_signal(owner: VllmFrontEndHost) -> Callable[[], None]:
    """End a starting server at once on SIGTERM or SIGINT, with all processes; return what restores the handlers.

    The host's own handler raises in whatever runs, and the start goes on. Where the system's default is in force, as in
    a program of the host's user, nothing is changed. The host's server replaces the handlers when serving begins.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    replaced = {s: h for s in (signal.SIGTERM, signal.SIGINT) if callable(h := signal.getsignal(s))}

    def end(signum: int, frame: object) -> None:
        owner.end_start()
        _say_at_once(f"holdfast: {signal.Signals(signum).name} while the server was starting: ended\n")
        await_output()
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)  # the supervisor sees the end that was asked for

    def restore() -> None:
        for number, handler in replaced.items():
            signal.signal(number, handler)

    if signal.SIGTERM in replaced:
        for number in replaced:
            signal.signal(number, end)
    return restore


def _say_at_once(line: str) -> None:
    """Write to stderr unless nobody reads it. A signal may interrupt a write, so Python's own stream cannot be used."""
    with contextlib.suppress(OSError):
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if poll.poll(0):
            os.write(2, line.encode())


async def _serve_then_exit(original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    """Serve, and return an awaitable that the host awaits after the shutdown of the engine client."""
    shutdown = await original(*args, **kwargs)
    return _shut_down_then_exit(shutdown)


async def _shut_down_then_exit(shutdown: Awaitable[Any]) -> None:
    owner = current_owner()
    await shutdown
    if owner is not None and owner.defeat is not None:
        await asyncio.to_thread(owner.await_end)
        owner.close()  # no clean-up runs after the last line
        end_defeated(owner.defeat)


def _serve_many_then_exit(original: Callable[[Any], None], args: Any) -> None:
    """Run the host's launcher, which raises after a death once all processes have ended."""
    if asks_for_protection(args) and not args.uds:
        refuse_shared_port(args.host or "", args.port)
    try:
        original(args)
    finally:
        owner = current_owner()
        if owner is not None and owner.defeat is not None:
            owner.await_end()  # the host's own thread for that would not outlive the last line
            owner.close()
            end_defeated(owner.defeat)


def refuse_shared_port(host: str, port: int) -> None:
    """Raise `OSError` for a port on which another process listens.

    Several API servers listen on one port, in a way that lets another server of the same user join in: connections, and
    commands, would reach either of the two.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise


def end_defeated(reason: str) -> NoReturn:
    """Raise `SystemExit`, and print `reason` as the last line of the process."""
    atexit.register(_last_line, reason)
    raise SystemExit(EXIT_DEFEATED)


def _last_line(reason: str) -> None:
    """Print why the instance ended, as the last line, and exit at once.

    Further lines would be noise of libraries at teardown. The resource tracker, a process of its own that warns of
    shared memory left by killed processes, is stopped first.
    """
    first = threading.Thread(target=_stop_resource_tracker, daemon=True)
    first.start()
    first.join(TRACKER_TIMEOUT_S)  # the tracker waits for every process that shares it, and a process may be stuck
    flush_log()
    last = threading.Thread(target=_print_last_line, args=(reason,), daemon=True)
    last.start()
    last.join(FLUSH_S)  # a log that nobody reads must not keep the process
    await_output()
    os._exit(EXIT_DEFEATED)


def _print_last_line(reason: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody can be told
        print(f"holdfast: instance ended: {reason}", file=sys.stderr, flush=True)
        sys.stdout.flush()


def _stop_resource_tracker() -> None:
    with contextlib.suppress(Exception):  # only the order of the last lines depends on it
        resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
