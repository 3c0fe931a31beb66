"""A small pretend engine: real scheduling and KV blocks, arithmetic for a model. For tests and simulation."""

from holdfast.hosts.fake.engine import EngineOptions, FakeEngineCore, Interrupted, OutputToken
from holdfast.hosts.fake.model import fault_free_output
from holdfast.hosts.fake.worker import FakeWorker, WorkerFailed

__all__ = [
    "EngineOptions",
    "FakeEngineCore",
    "FakeWorker",
    "Interrupted",
    "OutputToken",
    "WorkerFailed",
    "fault_free_output",
]
