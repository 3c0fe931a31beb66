"""Metrics of the current process: who tells them, and the thread that renews what has no event."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from importlib import metadata
from typing import Any

from holdfast.api.metrics.exposition import forget_process, process_exposition
from holdfast.api.metrics.front_end import FrontEndMetrics, Journal
from holdfast.api.metrics.instance import DroppedItems, InstanceMetrics
from holdfast.core.ports import ControlPlane
from holdfast.hosts.vllm.contract.versions import host_version
from holdfast.hosts.vllm.serving.client_hooks import request_router
from holdfast.sentinel import FrontEndLink
from holdfast.sentinel.beside import Sink, dropped_items
from holdfast.sentinel.watching import WatchThread

logger = logging.getLogger("holdfast")

SINK = "metrics"
PERIOD_S = 1.0


@functools.cache
def _renewed() -> list[Callable[[], None]]:
    """Return what the process's one thread renews; the thread starts at the first call."""
    renewed: list[Callable[[], None]] = [DroppedItems(process_exposition(), dropped_items).refresh]

    def look() -> None:
        for renew in tuple(renewed):
            renew()

    WatchThread("Metrics", look, PERIOD_S).start()
    return renewed


def instance_metrics() -> Sink | None:
    """Return the sink that counts the events of an instance; None where metrics cannot be kept, which is logged."""
    try:
        versions = metadata.version("holdfast"), host_version() or "unknown"
        metrics = InstanceMetrics(process_exposition(), *versions, forget_process=forget_process)
        _renewed().append(metrics.refresh)
    except OSError as error:
        logger.warning("no metrics of the instance: %s; free the disk and restart the server for them", error)
        return None
    return metrics.take


def attach_front_end_metrics(engine_client: Any, control: ControlPlane) -> None:
    """Count what the streams of the host's client see. A failure is logged: serving needs no metrics."""
    client = getattr(engine_client, "engine_core", None)
    try:
        router = None if client is None else request_router(client)
        if router is not None:
            metrics = FrontEndMetrics(process_exposition(), lambda: _size(router.journal), _owner_answers(control))
            router.watch.report = metrics
            _renewed().append(metrics.refresh)
    except OSError as error:
        logger.warning("no metrics of this API server: %s; free the disk and restart the server for them", error)


def _owner_answers(control: ControlPlane) -> Callable[[], bool]:
    return (lambda: control.owner_answers) if isinstance(control, FrontEndLink) else (lambda: True)


def _size(journal: Any) -> Journal:
    return Journal(len(journal), journal.delivered_bytes + journal.input_bytes, journal.max_input_bytes)
