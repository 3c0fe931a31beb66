"""Where the workers of an engine core meet when they start: a file in the instance's folder, which goes with it.

The host puts it into the temporary folder, where it stays when a worker is killed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.contract.worker_touchpoints import FILE_STORE
from holdfast.hosts.vllm.process.settings import inherited_settings
from holdfast.hosts.vllm.process.sockets import VARIABLE as SOCKETS


def attach_init_store() -> None:
    """In an engine core."""
    attach(FILE_STORE, _in_own_folder)


def _in_own_folder(original: Callable[[], str]) -> str:
    address, config = original(), inherited_settings()
    if config is None or not config.runtime_dir:
        return address
    sockets = os.environ.get(SOCKETS, "")  # beside them, unless the operator keeps them elsewhere
    folder = sockets if sockets.startswith(config.runtime_dir) else config.runtime_dir
    return f"file://{folder}/{os.path.basename(address)}"
