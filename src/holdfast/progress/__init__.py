"""Progress of a process, readable by another process while the writer is stuck or stopped."""

from holdfast.progress.processes import ProcessLook, look_at
from holdfast.progress.reader import ProgressReader, Seen
from holdfast.progress.record import Lane
from holdfast.progress.writer import FENCE_PREFIX, ProgressWriter, publish_memory, publish_progress, published

__all__ = [
    "FENCE_PREFIX",
    "Lane",
    "ProcessLook",
    "ProgressReader",
    "ProgressWriter",
    "Seen",
    "look_at",
    "publish_memory",
    "publish_progress",
    "published",
]
