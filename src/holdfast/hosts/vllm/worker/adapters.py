"""Errors of a worker that cannot load an adapter name the adapter, so that the requests for it end alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdfast.core.faults.classification import ADAPTER_ID
from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.contract.worker_touchpoints import LOAD_ADAPTER


def attach_adapter_hook() -> None:
    """Attach to the host's loading of adapters. Idempotent."""
    attach(LOAD_ADAPTER, _load_adapter)


def _load_adapter(original: Callable[..., Any], manager: Any, lora_request: Any) -> Any:
    try:
        return original(manager, lora_request)
    except Exception as error:
        setattr(error, ADAPTER_ID, lora_request.lora_int_id)
        raise
