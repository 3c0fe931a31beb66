"""Rendezvous file of an engine core's starting workers, in the instance's folder and removed with that folder.

The host puts the file into the temporary folder, where a killed worker leaves it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.contract.worker_touchpoints import FILE_STORE
from holdfast.hosts.vllm.process.settings import inherited_settings, place_of_files


def attach_init_store() -> None:
    """Attach the hook of an engine core that moves the file."""
    attach(FILE_STORE, _in_own_folder)


def _in_own_folder(original: Callable[[], str]) -> str:
    address, config = original(), inherited_settings()
    if config is None or not config.runtime_dir:
        return address
    return f"file://{place_of_files(config.runtime_dir)}/{os.path.basename(address)}"
