"""An engine core that takes a place in a lockstep group whose other members stand and wait for it.

It starts alone, as do its workers: what they would do together is done once they are let in together. Until then
its group of engine cores has one member, itself, and nothing runs on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from holdfast.hosts.vllm.contract.communicator_touchpoints import ENGINES_GROUP
from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.process.settings import joins_epoch
from holdfast.hosts.vllm.worker.placeholder_groups import stand_alone

_ALONE_S = 10.0  # nobody is waited for


def attach_joining_hooks() -> None:
    """In an engine core that joins, and in its workers. Elsewhere it does nothing."""
    if joins_epoch() is not None:
        stand_alone()
        attach(ENGINES_GROUP, _group_of_one)


def _group_of_one(original: Callable[..., Any], parallel_config: Any, return_store: bool = False) -> Any:
    from torch.distributed import HashStore

    from holdfast.hosts.vllm.communicators.rebuild import make_stateless_group

    store = HashStore()
    deadline = time.monotonic() + _ALONE_S
    group = make_stateless_group(store, 0, 1, parallel_config.cpu_distributed_timeout, deadline)
    return (group, store) if return_store else group
