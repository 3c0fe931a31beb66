"""Watches the making of process groups. Changes nothing about them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from holdfast.hosts.vllm.communicators.tracking import TRACKED, TorchGroup
from holdfast.hosts.vllm.contract.communicator_touchpoints import STATELESS_GLOO_GROUP, TORCH_GROUP
from holdfast.hosts.vllm.contract.hooks import attach

_OWN_FIELDS = ("group_name", "group_size", "group_rank", "global_ranks_in_group", "backend", "timeout")


def attach_communicator_hooks() -> None:
    """To be called before the process makes its groups; imports torch and the host's `distributed`."""
    watch_torch_groups()
    attach(STATELESS_GLOO_GROUP, _watch_stateless_group)


def described(given: dict[str, Any]) -> TorchGroup:
    """How torch was told to make a group: everything but the store, which is another one in every epoch."""
    options = {key: value for key, value in given.items() if key not in {*_OWN_FIELDS, "store"}}
    name, size, rank, ranks, backend, timeout = (given[key] for key in _OWN_FIELDS)
    return TorchGroup(name, size, rank, tuple(ranks), backend, timeout, options)


def watch_torch_groups() -> None:
    """The half that needs no host."""
    attach(TORCH_GROUP, _watch_torch_group)


def _watch_torch_group(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    given = inspect.signature(original).bind(*args, **kwargs).arguments
    return TRACKED.make(lambda: original(*args, **kwargs), described(given))


def _watch_stateless_group(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return TRACKED.make(lambda: original(*args, **kwargs))
