"""Where the sentinels of one instance meet: names in one private folder, identities on its sockets."""

from __future__ import annotations

_LINK = b"link-"


def client_address(runtime_dir: str) -> str:
    return f"ipc://{runtime_dir}/client"


def engine_address(runtime_dir: str, engine_id: int) -> str:
    return f"ipc://{runtime_dir}/engine-{engine_id}"


def engine_identity(engine_id: int) -> bytes:
    return b"engine-%d" % engine_id


def worker_identity(rank: int) -> bytes:
    return b"worker-%d" % rank


def link_identity(link_id: int) -> bytes:
    return _LINK + b"%d" % link_id


def is_link(identity: bytes) -> bool:
    return identity.startswith(_LINK)
