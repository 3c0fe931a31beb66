"""Progress of a process, readable by another process while the writer is stuck or stopped."""

from holdfast.progress.processes import ProcessLook, look_at
from holdfast.progress.reader import ProgressReader, Seen
from holdfast.progress.record import Lane
from holdfast.progress.writer import ProgressWriter, publish_progress, published

__all__ = [
    "Lane",
    "ProcessLook",
    "ProgressReader",
    "ProgressWriter",
    "Seen",
    "look_at",
    "publish_progress",
    "published",
]
