"""A server over two nodes: the first one answers HTTP, a headless process runs on the second."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from holdfast.api.control_token import VARIABLE
from holdfast.chaos.control import STATED_TOKENS
from holdfast.chaos.server import CPU_ENVIRONMENT, Server, ServerSpec
from support.nodes import UPLINK, Nodes

PORT, MASTER_PORT = 8701, 29571
TOKEN = "the token of a server over nodes"
SECRET = "the secret of a server over nodes"
BIND, LOOPBACK = "0.0.0.0", "127.0.0.1"


class ServerOverNodes(Server):
    """A server whose ranks are spread over two nodes; a context manager as any server."""

    def __init__(self, spec: ServerSpec, nodes: Nodes, arguments: Sequence[str]) -> None:
        super().__init__(spec)
        self.nodes = nodes
        self.port = PORT
        master = ("--master-addr", nodes[0].address, "--master-port", str(MASTER_PORT))
        self._shared = (*arguments, "--nnodes", "2", *master)
        self.headless: subprocess.Popen[bytes] | None = None
        self.headless_log = spec.log.with_suffix(".node1.log")

    @property
    def url(self) -> str:
        return f"http://{UPLINK}.1:{self.port}"

    def _spawn(self) -> None:
        STATED_TOKENS[self.port] = TOKEN.encode()
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        self._process = self._start(0, self.spec.log)
        self.start_headless()

    def start_headless(self) -> None:
        """Start the process of the second node, at first or again."""
        self.headless = self._start(1, self.headless_log, "--headless")

    def _start(self, node: int, log: Path, *more: str) -> subprocess.Popen[bytes]:
        command = [BIND if word == LOOPBACK else word for word in self.spec.command(self.port)]
        environment = {**CPU_ENVIRONMENT, VARIABLE: TOKEN, "HOLDFAST_NODE_SECRET": SECRET, **self.spec.environment}
        with log.open("ab") as file:
            return self.nodes[node].start(
                [*command, *self._shared, "--node-rank", str(node), *more], log=file, environment=environment
            )

    def stop(self, timeout_s: float | None = None) -> int | None:
        for process in self._mains():
            process.terminate()
        code = super().stop(timeout_s)
        for node in self.nodes.both:
            node.kill()
        return code

    def _mains(self) -> list[psutil.Process]:
        return [p for node in self.nodes.both for p in node.processes() if _is_main(p)]

    def worker(self, node: int) -> psutil.Process:
        """Return the worker of a node."""
        return self.nodes[node].find("VLLM::Worker")

    def headless_process(self) -> psutil.Process:
        """Return the headless process of the second node."""
        [found] = [p for p in self.nodes[1].processes() if _is_main(p)]
        return found


def _is_main(process: psutil.Process) -> bool:
    """Return whether a process of a node was started from outside of the node."""
    parent = process.parent()
    return parent is not None and parent.name() == "nsenter"
