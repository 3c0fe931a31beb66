"""Nodes on one machine: each has a network, a /dev/shm, processes, a host name and an address of its own.

A network namespace alone is no node: shared memory and sockets in files would cross a link that was cut. So a node has
mount, ipc, uts and pid namespaces too. Packets are dropped without any firewall: a node is given a wrong hardware
address for its peer, and the peer's kernel ignores what arrives. Needs root.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

import psutil
import pytest

# Of this process alone: beds of several test runs may stand side by side.
NETWORK = f"10.83.{os.getpid() % 250}"
# Between this machine and the first node, for clients; no node reaches the other over it.
UPLINK = f"10.84.{os.getpid() % 250}"
DEVICE = "eth0"
COMPILED = f"{tempfile.gettempdir()}/torchinductor_nodes"
NOBODY = "02:00:00:00:00:99"  # the hardware address of no device
CGROUPS = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
_NAMESPACES = ("--net", "--mount", "--ipc", "--uts", "--pid")
# The first process of a node: reaps orphans, as any system's does; its end ends every process of the node.
_INIT = "mount -t tmpfs tmpfs /dev/shm && hostname {name} && while :; do sleep 3600 & wait $!; done"
_WAIT_S = 10.0
_numbers = itertools.count()


def why_no_nodes() -> str:
    """Return why no nodes can be made here; empty where they can."""
    if os.geteuid() != 0:
        return "nodes are namespaces, which only root makes"
    if missing := [tool for tool in ("setpriv", "unshare", "nsenter", "ip") if shutil.which(tool) is None]:
        return f"nodes are namespaces, which need {', '.join(missing)}"
    if _cgroups() is None:
        return "a node is frozen by a control group of version 2, which is not there"
    try:
        with nodes():
            return ""
    except (OSError, subprocess.SubprocessError) as error:
        return f"the kernel makes no nodes: {error}"


def needs_nodes() -> None:
    """Skip the test where no nodes can be made."""
    if why := why_no_nodes():
        pytest.skip(why)


def _cgroups() -> Path | None:
    return next((p for p in CGROUPS if (p / "cgroup.procs").exists() and os.access(p, os.W_OK)), None)


class Node:
    """A node. Commands run in all namespaces of the node, with the variables that a server over nodes needs."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"node{number}"
        self.address = f"{NETWORK}.{number + 1}"
        self._init: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self.hardware_address = ""
        self._cgroup: Path | None = None
        self._temporary = ""

    def __enter__(self) -> Self:
        root = _cgroups()
        if root is not None:
            self._cgroup = root / f"holdfast-{os.getpid()}-{next(_numbers)}"
            self._cgroup.mkdir()
        self._temporary = tempfile.mkdtemp(prefix="hfn")
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *_NAMESPACES, "--fork", "--mount-proc", "--kill-child"]
        self._init = subprocess.Popen([*command, "bash", "-c", _INIT.format(name=self.name)])
        self.pid = self._first_process()
        self.call("ip", "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()
        if self._init is not None:
            self._init.kill()  # its child ends with it, and all processes of the node
            self._init.wait(_WAIT_S)
        if self._cgroup is not None:
            _await(self._is_cgroup_gone)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _is_cgroup_gone(self) -> bool:
        """Remove the control group; return false while processes are still ending."""
        assert self._cgroup is not None
        with contextlib.suppress(OSError):
            self._cgroup.rmdir()
        return not self._cgroup.exists()

    def _first_process(self) -> int:
        assert self._init is not None
        parent, found = psutil.Process(self._init.pid), []

        def is_there() -> bool:
            found[:] = [c.pid for c in parent.children() if c.name() == "bash"]
            return bool(found) and Path(f"/proc/{found[0]}/root/dev/shm").is_mount()

        _await(is_there)
        return found[0]

    # ---- processes

    def command(self, *command: str) -> list[str]:
        """Return a command that runs `command` on the node."""
        return ["nsenter", "--target", str(self.pid), *_NAMESPACES, "--", *command]

    def call(self, *command: str, timeout_s: float = _WAIT_S) -> str:
        """Run a command on the node and return its output."""
        ran = subprocess.run(self.command(*command), capture_output=True, timeout=timeout_s, check=True, text=True)
        return ran.stdout

    def start(
        self,
        command: Sequence[str],
        log: IO[bytes] | int = subprocess.DEVNULL,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process on the node, in a session of its own; the process's number there is another than here."""
        variables = {**os.environ, **self.environment, **(environment or {})}
        return subprocess.Popen(
            ["bash", "-c", 'echo $$ > "$0" && exec "$@"', str(self._members), *self.command(*command)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=variables,
            start_new_session=True,
        )

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a server over nodes: the node's address, its device, and a temporary folder of its own.

        Nodes that share a temporary folder would take each other's instance for a dead one: a process id of one node
        means nothing on the other. Only compiled code is shared.
        """
        return {
            "VLLM_HOST_IP": self.address,
            "GLOO_SOCKET_IFNAME": DEVICE,
            "TP_SOCKET_IFNAME": DEVICE,
            "TMPDIR": self._temporary,
            "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", COMPILED),
        }

    @property
    def _members(self) -> Path:
        assert self._cgroup is not None
        return self._cgroup / "cgroup.procs"

    def processes(self) -> list[psutil.Process]:
        """Return the processes that were started on the node, and their descendants."""
        found = []
        for pid in self._members.read_text().split():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(pid))
                if process.name() != "nsenter":  # outside of the node: waits for the first process inside
                    found.append(process)
        return found

    def find(self, words: str) -> psutil.Process:
        """Return the only process of the node whose command line holds `words`."""
        [found] = [p for p in self.processes() if words in " ".join(p.cmdline())]
        return found

    # ---- faults

    def freeze(self) -> None:
        """Stop every process of the node at once, unseen by any of them."""
        self._set_frozen("1")

    def thaw(self) -> None:
        """Let the processes of a frozen node go on."""
        self._set_frozen("0")

    def _set_frozen(self, value: str) -> None:
        if self._cgroup is not None:
            (self._cgroup / "cgroup.freeze").write_text(value)

    def kill(self) -> None:
        """Kill every process that was started on the node."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        _await(lambda: not self.processes())


class Nodes:
    """Two nodes with a link. `cut` and `heal` act on packets that leave `sender`, or on all."""

    def __init__(self, both: Sequence[Node]) -> None:
        self.both = both

    def __getitem__(self, number: int) -> Node:
        return self.both[number]

    def cut(self, sender: int | None = None) -> None:
        """Drop every packet of the sender, of both nodes without one. No end of a connection is told."""
        for node in self._senders(sender):
            self._set_neighbour(node, NOBODY)

    def heal(self) -> None:
        """Let every packet arrive again."""
        for node in self.both:
            self._set_neighbour(node, self._peer(node).hardware_address)

    def cut_power(self, number: int) -> None:
        """End a node as a power cut does: nothing that its processes still say is heard. `heal` brings the power back.

        Until then the node must stay cut: the kernel repeats the goodbye of a connection for a while.
        """
        self.cut(number)
        self.both[number].kill()

    def _senders(self, sender: int | None) -> Sequence[Node]:
        return self.both if sender is None else [self.both[sender]]

    def _peer(self, node: Node) -> Node:
        return self.both[1 - node.number]

    def _set_neighbour(self, node: Node, hardware_address: str) -> None:
        to = self._peer(node).address
        node.call("ip", "neigh", "replace", to, "lladdr", hardware_address, "dev", DEVICE, "nud", "permanent")


@contextlib.contextmanager
def nodes() -> Iterator[Nodes]:
    """Make two nodes with a link, and end them with every process on them."""
    with Node(0) as first, Node(1) as second:
        names = [f"hf{os.getpid()}-{end}" for end in "ab"]
        _run("ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for name, node in zip(names, (first, second), strict=True):
            _run("ip", "link", "set", name, "netns", str(node.pid), "name", DEVICE)
            node.call("ip", "addr", "add", f"{node.address}/24", "dev", DEVICE)
            node.call("ip", "link", "set", DEVICE, "up")
            words = node.call("ip", "-o", "link", "show", DEVICE).split()
            node.hardware_address = words[words.index("link/ether") + 1]
        _add_uplink(first)
        made = Nodes((first, second))
        made.heal()
        yield made


def _add_uplink(node: Node) -> None:
    here, there = f"hf{os.getpid()}-u", f"hf{os.getpid()}-v"
    _run("ip", "link", "add", here, "type", "veth", "peer", "name", there)
    _run("ip", "link", "set", there, "netns", str(node.pid), "name", "up0")
    node.call("ip", "addr", "add", f"{UPLINK}.1/24", "dev", "up0")
    node.call("ip", "link", "set", "up0", "up")
    _run("ip", "addr", "add", f"{UPLINK}.254/24", "dev", here)
    _run("ip", "link", "set", here, "up")


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, timeout=_WAIT_S, check=True)


def _await(holds: object, within_s: float = _WAIT_S) -> None:
    assert callable(holds)
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise OSError("the nodes did not change in time")
        time.sleep(0.01)
