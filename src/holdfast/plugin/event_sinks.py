"""Where the events of an instance go: log and PUB socket. Bound before any engine core starts."""

from __future__ import annotations

from holdfast.api.log import log_event
from holdfast.api.notify import Publisher
from holdfast.core.config import HoldfastConfig
from holdfast.sentinel.client import Sink


class EventSinks:
    """The sinks of one instance."""

    def __init__(self, config: HoldfastConfig) -> None:
        self._publisher = Publisher(config.external_fault_notify_host, config.external_fault_notify_port)
        self.address = self._publisher.address
        self.sinks: tuple[Sink, ...] = (self._publisher.publish, log_event)

    def close(self) -> None:
        self._publisher.close()
