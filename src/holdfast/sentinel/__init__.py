"""The three sentinels: shells around the core, over a wire and a host."""

from holdfast.sentinel.client import ClientSentinel
from holdfast.sentinel.engine import EngineCoreSentinel, EngineDefeated
from holdfast.sentinel.worker import WorkerSentinel

__all__ = ["ClientSentinel", "EngineCoreSentinel", "EngineDefeated", "WorkerSentinel"]
