"""A worker that starts alone: it has the place of one rank among several, and none of its peers is asked.

Its process groups are placeholders that send nothing, described as the real ones would be. So it loads its
weights and its cache while its peers stand still, or long before it is needed, and a failure while it does so
costs them nothing. The first rebuild puts real groups in the places of all placeholders, here as at the peers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from holdfast.hosts.vllm.communicators.tracking import TRACKED, TorchGroup
from holdfast.hosts.vllm.contract.communicator_touchpoints import TORCH_GROUP
from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.contract.worker_touchpoints import BROADCAST_QUEUE, INIT_GROUPS, SAME_NODE

PLACEHOLDER = "fake"  # torch's own name for a backend that sends nothing

_alone = False
_default_backend: Any = None


def stand_alone() -> None:
    """From now on this process makes placeholders. To be called before it makes any group."""
    global _alone

    attach(INIT_GROUPS, _init_without_peers)
    attach(TORCH_GROUP, _make_placeholder)
    attach(SAME_NODE, _all_on_this_node)
    attach(BROADCAST_QUEUE, _no_broadcast_queue)
    _alone = True


def is_alone() -> bool:
    """Whether this process was started alone and still makes placeholders."""
    return _alone


def end_alone() -> None:
    """What is made from now on is real."""
    global _alone
    _alone = False


def _init_without_peers(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Where the host would meet the peers: a store that only this process knows."""
    from torch.distributed import HashStore

    given = inspect.signature(original).bind(*args, **kwargs).arguments
    original(**{**given, "init_method": None, "store": HashStore()})


def _make_placeholder(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    given = inspect.signature(original).bind(*args, **kwargs).arguments
    if not _alone:
        return TRACKED.make(lambda: original(*args, **kwargs), TorchGroup.from_arguments(given))
    placeholder = {**given, "backend": PLACEHOLDER, "backend_options": None, "device_id": None}
    return TRACKED.make(
        lambda: original(**placeholder), TorchGroup.from_arguments({**given, "backend": _real_backend(given)})
    )


def _real_backend(given: dict[str, Any]) -> Any:
    """The host gives later groups the backend of the default one, and finds a placeholder's there."""
    global _default_backend
    if not given["global_ranks_in_group"]:
        _default_backend = given["backend"]
    return _default_backend if str(given["backend"]) == PLACEHOLDER else given["backend"]


def _all_on_this_node(original: Callable[..., list[bool]], pg: Any, *args: Any, **kwargs: Any) -> list[bool]:
    """The host asks its peers; the instances that are protected stand on one node."""
    return [True] * int(pg.size() if hasattr(pg, "size") else pg.world_size)


def _no_broadcast_queue(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Coordinators broadcast objects over their group where they have no queue; a rebuild takes the peers' away."""
