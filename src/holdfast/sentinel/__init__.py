"""The three sentinels and the front-end link: shells around the core, over a wire and a host."""

from holdfast.sentinel.client import ClientSentinel
from holdfast.sentinel.engine import EngineCoreSentinel, EngineDefeated
from holdfast.sentinel.front_end_link import FrontEndLink
from holdfast.sentinel.worker import WorkerSentinel

__all__ = ["ClientSentinel", "EngineCoreSentinel", "EngineDefeated", "FrontEndLink", "WorkerSentinel"]
