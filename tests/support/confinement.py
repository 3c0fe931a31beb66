"""A server under the restrictions of a container, in a mount namespace and under limits of its own.

Needs root, util-linux and a kernel with namespaces. As a script, it sets the restrictions up and becomes the command:
`python confinement.py RESTRICTIONS FOLDER COMMAND...`.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

INSIDE = Path("/run/bench")  # where the folder of the test is for the server
HIDES_COUNTS = Path(__file__).parent / "confined"  # first on PYTHONPATH, this folder hides `schedstat`
STRANGERS_UID = 54321
OPEN_FILES = 256
THREADS = 320
SHARED_MIB = 64
FULL_MIB = 8
WAIT_S = 30.0


class Restriction(enum.StrEnum):
    """What a container may not have."""

    STRANGER = "unprivileged user id without an entry in passwd"
    READ_ONLY = "read-only root"
    FEW_FILES = "few open files"
    FEW_THREADS = "few processes and threads"  # the system exempts root
    NO_COUNTS = "no schedstat"
    NO_PTRACE = "no ptrace"
    HIDDEN_PROC = "hidden proc"  # nothing is hidden from root
    SMALL_SHARED = "64 MiB of shared memory"
    FULL_DISK = "full disk"


def why_not() -> str:
    """Return why no restrictions can be set up here; empty where they can."""
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv") and shutil.which("mount")):
        return "no namespaces can be made"
    if platform.machine() not in _SYSTEM_CALLS:
        return f"system calls of {platform.machine()} are not known"
    command = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", "/run"]
    tried = subprocess.run(command, check=False, timeout=WAIT_S, capture_output=True)
    return "" if tried.returncode == 0 else "no namespaces can be made"


def confined(command: Sequence[str], folder: Path, restrictions: Sequence[Restriction]) -> list[str]:
    """Return a command that runs `command` under restrictions; `folder` is at `INSIDE` there."""
    names = ",".join(one.name for one in restrictions)
    unshare = ["unshare", "--mount", "--propagation", "private"]
    return [*unshare, sys.executable, "-I", __file__, names, str(folder), *command]


# ---- inside


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", "-n", *arguments], check=True, timeout=WAIT_S)


def _make_places(folder: str) -> None:
    """Give the server empty temporary folders, and the folder of the test."""
    run = Path(folder) / "run"
    run.mkdir()
    _mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(run))
    (run / INSIDE.name).mkdir()
    _mount("--bind", folder, str(run / INSIDE.name))
    _mount("--move", str(run), "/run")
    for temporary in ("/tmp", "/var/tmp"):
        _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", temporary)


def _make_root_read_only() -> None:
    writable = ("/proc", "/sys", "/dev", "/tmp", "/var/tmp")
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in points:
        if point == "/" or not f"{point}/".startswith(tuple(f"{folder}/" for folder in writable)):
            subprocess.run(["mount", "-n", "-o", "remount,bind,ro", point], check=False, timeout=WAIT_S)


def _fill(folder: str) -> None:
    """Put a file system there that is full of content and of files."""
    _mount("-t", "tmpfs", "-o", f"size={FULL_MIB}m,nr_inodes=50,mode=1777", "tmpfs", folder)
    with contextlib.suppress(OSError), open(f"{folder}/content", "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with contextlib.suppress(OSError):
        for number in range(100):
            Path(folder, f"file-{number}").touch()


_SYSTEM_CALLS = {  # the name of the architecture in a filter, and the numbers of calls that look into other processes
    "x86_64": (0xC000003E, (101, 310, 311)),  # ptrace, process_vm_readv, process_vm_writev
    "aarch64": (0xC00000B7, (117, 270, 271)),
}
_SET_NO_NEW_PRIVILEGES, _SET_FILTER, _FILTER_MODE = 38, 22, 2
_REFUSE, _ALLOW = 0x00050001, 0x7FFF0000  # refuse: EPERM


def _refuse_ptrace() -> None:
    """Install a filter of system calls, as runtimes of containers do."""
    architecture, numbers = _SYSTEM_CALLS[platform.machine()]
    load, jump_equal, give = 0x20, 0x15, 0x06
    program = [(load, 0, 0, 4), (jump_equal, 1, 0, architecture), (give, 0, 0, _ALLOW), (load, 0, 0, 0)]
    program += [(jump_equal, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    program += [(give, 0, 0, _ALLOW), (give, 0, 0, _REFUSE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    described = struct.pack("HL", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SET_FILTER, _FILTER_MODE, described, 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def _become(command: list[str], chosen: set[Restriction]) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("TMPDIR", "XDG_RUNTIME_DIR", "USER", "LOGNAME")}
    if Restriction.STRANGER in chosen:
        # Reads every file: the interpreter may be below a folder of root's.
        capability = "+dac_read_search"
        user = ["--reuid", str(STRANGERS_UID), "--regid", str(STRANGERS_UID), "--clear-groups"]
        command = ["setpriv", *user, "--inh-caps", capability, "--ambient-caps", capability, *command]
        environment["HOME"] = "/"
    if Restriction.FULL_DISK in chosen:
        environment["HOME"] = "/tmp"
    if Restriction.NO_COUNTS in chosen:
        known = [environment["PYTHONPATH"]] if "PYTHONPATH" in environment else []
        environment["PYTHONPATH"] = os.pathsep.join([str(HIDES_COUNTS), *known])
    os.execvpe(command[0], command, environment)


def main(names: str, folder: str, *command: str) -> None:
    chosen = {Restriction[name] for name in names.split(",") if name}
    _make_places(folder)
    if Restriction.HIDDEN_PROC in chosen:
        _mount("-t", "proc", "-o", "hidepid=2", "proc", "/proc")
    if Restriction.SMALL_SHARED in chosen:
        _mount("-t", "tmpfs", "-o", f"size={SHARED_MIB}m,mode=1777", "tmpfs", "/dev/shm")
    if Restriction.FULL_DISK in chosen:
        _fill("/tmp")
        _fill("/var/tmp")
    if Restriction.READ_ONLY in chosen:
        _make_root_read_only()
    if Restriction.FEW_FILES in chosen:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    if Restriction.FEW_THREADS in chosen:
        resource.setrlimit(resource.RLIMIT_NPROC, (THREADS, THREADS))
    if Restriction.NO_PTRACE in chosen:
        _refuse_ptrace()
    os.chdir("/tmp")  # a working folder with room would be taken for temporary files
    _become(list(command), chosen)


if __name__ == "__main__":
    main(*sys.argv[1:])
