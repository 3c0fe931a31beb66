"""A real systemd of a test's own, in namespaces of its own: it sees one folder of the test, and ends with it.

It would empty the machine's /tmp and take its /run: all of that is its own there. Needs root and util-linux.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil

SYSTEMD = Path("/lib/systemd/systemd")
INSIDE = Path("/run/bench")  # where the folder is for whoever runs under it
WAIT_S = 30.0
BOOT = f"""
set -eu
mount --make-rprivate /
mkdir -p "$1/run"
mount -n -t tmpfs run "$1/run"
mkdir "$1/run/bench"
mount -n --bind "$1" "$1/run/bench"
mount -n --move "$1/run" /run
mount -n -t tmpfs tmp /tmp
mount -n -t tmpfs tmp /var/tmp
mkdir -p /run/systemd/system
cp {INSIDE}/units/* /run/systemd/system/
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin {SYSTEMD} --system --unit=quiet.target
"""
QUIET_TARGET = "[Unit]\nDescription=Nothing but what is asked for\nDefaultDependencies=no\nAllowIsolate=yes\n"

T = TypeVar("T")


def why_not() -> str:
    """Why no systemd can be started here; empty where one can."""
    if not SYSTEMD.exists() or shutil.which("systemctl") is None:
        return "systemd is not installed"
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "no namespaces can be made"
    command = ["unshare", "--pid", "--mount", "--fork", "mount", "--make-rprivate", "/"]
    tried = subprocess.run(command, check=False, timeout=WAIT_S)
    return "" if tried.returncode == 0 else "no namespaces can be made"


def await_true(holds: Callable[[], T], what: str, within_s: float = WAIT_S) -> T:
    """What it returned as soon as that was true."""
    deadline = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


class Systemd:
    """Use it as a context manager; `units` are the texts of its units by name, `folder` is shared with them."""

    def __init__(self, folder: Path, units: Mapping[str, str]) -> None:
        self._folder = folder
        (folder / "units").mkdir(parents=True)
        for name, text in {"quiet.target": QUIET_TARGET, **units}.items():
            (folder / "units" / name).write_text(text)
        self._init: psutil.Process | None = None

    def __enter__(self) -> Systemd:
        namespaces = ["unshare", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
        with (self._folder / "boot.log").open("wb") as log:
            self._outer = subprocess.Popen([*namespaces, "sh", "-c", BOOT, "boot", str(self._folder)], stderr=log)
        try:
            self._init = await_true(self._find_init, "systemd was not started")
            await_true(self._is_up, f"systemd does not answer: {(self._folder / 'boot.log').read_text()}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Its namespace ends with it, and all that is in there."""
        if self._init is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._init.send_signal(signal.SIGKILL)
        else:
            self._outer.kill()
        self._outer.wait(WAIT_S)  # it waits for its child

    def _find_init(self) -> psutil.Process | None:
        found = psutil.Process(self._outer.pid).children()
        return next((p for p in found if p.name() == SYSTEMD.name), None)

    def _is_up(self) -> bool:
        return "quiet.target" in self.systemctl("list-units", "--state=active").stdout

    def systemctl(self, *arguments: str, within_s: float = WAIT_S) -> subprocess.CompletedProcess[str]:
        assert self._init is not None
        enter = ["nsenter", "--target", str(self._init.pid), "--mount", "--pid"]
        command = [*enter, "systemctl", "--no-pager", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=within_s)

    def show(self, unit: str, property_name: str) -> str:
        return self.systemctl("show", unit, "--value", f"--property={property_name}").stdout.strip()

    def processes(self) -> list[psutil.Process]:
        """All that run under it, with the ids that they have out here."""
        assert self._init is not None
        return self._init.children(recursive=True)
