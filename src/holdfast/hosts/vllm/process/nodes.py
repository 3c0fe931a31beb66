"""What the nodes of one instance share: the secret of the wire, where the engine core is reached, and the versions."""

from __future__ import annotations

import functools
import ipaddress
import os
import socket
import stat
from pathlib import Path

import holdfast
from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import BadConfiguration, WorldError
from holdfast.hosts.vllm.contract.versions import host_version
from holdfast.hosts.vllm.process.settings import inherited_settings
from holdfast.wire import ZmqStation
from holdfast.wire.curve import MIN_SECRET_BYTES, CurveKeys, derive_keys

SECRET = "HOLDFAST_NODE_SECRET"
MAX_SECRET_BYTES = 4096
# On further nodes: where the engine core's sentinel is reached, and the number of the node.
ENGINE_ADDRESS = "HOLDFAST_ENGINE_ADDRESS"
NODE = "HOLDFAST_NODE"
METHOD, SPAWN = "VLLM_WORKER_MULTIPROC_METHOD", "spawn"  # the host's own
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def spawn_processes() -> None:
    """Have the host spawn its processes: a process that forks must be of one thread, and agents are heard by another.

    Raises:
        BadConfiguration: the operator asks for another way.
    """
    if os.environ.setdefault(METHOD, SPAWN) != SPAWN:
        raise BadConfiguration(f"over several nodes {METHOD} has to be {SPAWN}", hint=f"unset {METHOD}")


def versions() -> str:
    """Return what runs on this node, to be compared with further nodes."""
    return f"Holdfast {holdfast.__version__} on vLLM {host_version()}"


def wire_address(master: str, port: int) -> str:
    """Return the address on the wire of the first node's engine core. Raises `WorldError` for an unknown name."""
    return f"tcp://{bracketed(resolved(master))}:{port}"


def resolved(host: str) -> str:
    """Return the address of a host. Raises `WorldError` for an unknown name."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise WorldError(f"the address of the first node, {host}, is not known: {error}") from None


def bracketed(address: str) -> str:
    """Return an address as it stands before a port."""
    return f"[{address}]" if ":" in address else address


def refuse_open_wire(config: HoldfastConfig, master: str) -> None:
    """Raise `BadConfiguration` where the nodes have no secret and the wire would be reached from other machines."""
    if node_secret(config) is None and not ipaddress.ip_address(resolved(master)).is_loopback:
        raise BadConfiguration(
            f"the nodes share no secret, and {master} is reached from other machines",
            hint=f"set {SECRET} or --node-secret-file to the same secret on every node",
        )


def node_secret(config: HoldfastConfig) -> bytes | None:
    """Return the secret that the nodes share; None without one.

    Raises:
        BadConfiguration: the secret is short, unreadable or open to other users, or stated twice.
    """
    stated = os.environb.get(SECRET.encode())
    if stated is not None and config.node_secret_file:
        raise BadConfiguration(f"both {SECRET} and node_secret_file are set", hint="set one of them")
    if config.node_secret_file:
        return _fit(_read_secret(Path(config.node_secret_file)), config.node_secret_file)
    return _fit(stated, SECRET) if stated is not None else None


def _read_secret(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS:
                raise BadConfiguration(f"the secret in {path} can be read by others", hint=f"chmod 600 {path}")
            return file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise BadConfiguration(f"the secret in {path} cannot be read: {error.strerror}") from None


def _fit(secret: bytes, origin: str) -> bytes:
    secret = secret.strip()
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise BadConfiguration(
            f"the secret in {origin} has {len(secret)} bytes, not {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES}",
            hint="head -c 32 /dev/urandom | base64",
        )
    return secret


def open_station(config: HoldfastConfig) -> ZmqStation:
    """Open a station whose endpoints over TCP use the nodes' keys."""
    return ZmqStation(_keys(node_secret(config)))


@functools.lru_cache(maxsize=1)
def _keys(secret: bytes | None) -> CurveKeys | None:
    return derive_keys(secret) if secret is not None else None


def node_number() -> int:
    """Return the number of this process's node; 0 on the engine core's own."""
    return int(os.environ.get(NODE) or 0)


def engine_address_elsewhere() -> str | None:
    """Return where a worker of a further node reaches its engine core; None on the engine core's own node."""
    return os.environ.get(ENGINE_ADDRESS)


def over_nodes() -> bool:
    """Return whether this process belongs to an instance on several nodes."""
    config = inherited_settings()
    return config is not None and config.node_count > 1
