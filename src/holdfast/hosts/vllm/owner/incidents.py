"""Incidents of an instance in the owner: written into their folder, and traced where the host traces requests."""

from __future__ import annotations

from typing import Any

from holdfast.core.config import HoldfastConfig
from holdfast.hosts.vllm.owner.traces import IncidentTraces
from holdfast.sentinel.incident_store import IncidentWriter


class InstanceIncidents:
    """Consumers of the events of an instance that make incidents of them."""

    def __init__(self, config: HoldfastConfig) -> None:
        self._writer = IncidentWriter(config)
        self.traces = IncidentTraces()
        self.sinks = {"incidents": self._writer.take, "traces": self.traces.take}

    def adopt(self, vllm_config: Any) -> None:
        """Take the configuration of the host that is launched."""
        self._writer.describe_host = lambda: str(vllm_config)
        self.traces.begin(vllm_config.observability_config.otlp_traces_endpoint)
