"""The metrics of a process in the host's registry; with several API servers, in the files that the host reads.

A metric is made when its first value is told, so that a process shows only what the process knows.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, multiprocess, values

from holdfast.api.metrics.catalog import Definition, Kind

FILES = "PROMETHEUS_MULTIPROC_DIR"
FIRST_BYTES = 1 << 20
_PREFIXES = ("counter", "histogram", "gauge_mostrecent")


class Exposition:
    """Metrics of the current process, made at the first use. Any thread."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._making = threading.Lock()

    def __call__(self, definition: Definition, *labels: str) -> Any:
        """Return the metric of a definition, with the values of its labels."""
        metric = self._made.get(definition.name) or self._make(definition)
        return metric.labels(*labels) if definition.labels else metric

    def collect(self) -> Iterator[Any]:
        """Yield all metrics, for the registry."""
        for metric in tuple(self._made.values()):
            yield from metric.collect()

    def _make(self, definition: Definition) -> Any:
        with self._making:
            if definition.name not in self._made:
                self._made[definition.name] = _metric(definition)
            return self._made[definition.name]


def _metric(definition: Definition) -> Any:
    about = (definition.name, f"{definition.meaning[0].upper()}{definition.meaning[1:]}.", definition.labels)
    match definition.kind:
        case Kind.COUNTER:
            return Counter(*about, registry=None)
        case Kind.HISTOGRAM:
            return Histogram(*about, buckets=definition.buckets, registry=None)
        case _:
            return Gauge(*about, multiprocess_mode=definition.mode, registry=None)


class Shown:
    """Exposition as the registry sees it.

    Without a name of its own: the host removes every collector with a name that begins like its own metrics.
    """

    def __init__(self, exposition: Exposition) -> None:
        self.collect = exposition.collect

    def describe(self) -> Sequence[Any]:
        return ()


@functools.cache
def process_exposition() -> Exposition:
    """Return the exposition of the current process, which the host's `/metrics` shows.

    In a process that had imported the library before the host decided for files, the library is told of them here.
    """
    exposition = Exposition()
    if folder := os.environ.get(FILES):
        if not getattr(values.ValueClass, "_multiprocess", False):
            values.ValueClass = values.get_value_class()
        for prefix in _PREFIXES:
            _reserve(os.path.join(folder, f"{prefix}_{os.getpid()}.db"))
    else:
        REGISTRY.register(Shown(exposition))
    return exposition


def forget_process(pid: int) -> None:
    """Remove the gauges of an ended process, which are sums over living ones. Its counts stay."""
    if folder := os.environ.get(FILES):
        multiprocess.mark_process_dead(pid, folder)


def _reserve(path: str) -> None:
    """Take the room of a file before the file is mapped: a full disk would end the process at a later write."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, FIRST_BYTES)
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)
