"""The ranks of one engine core: reports of their processes, and faults that are armed in their processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from holdfast.core.protocol import messages as m

MAX_ARMED = 16


class RankRegistry:
    """Registry of the ranks of an engine core, by the latest report of each rank."""

    def __init__(self) -> None:
        self._reports: dict[int, m.WorkerAttached] = {}

    def note(self, report: m.WorkerAttached) -> None:
        """Take a report as the latest of the rank."""
        self._reports[report.rank] = report

    def ranks(self) -> set[int]:
        """Return the ranks that have reported."""
        return set(self._reports)

    def pids(self) -> dict[int, int]:
        """Return the process id of every rank that has reported."""
        return {rank: report.pid for rank, report in self._reports.items()}

    def can_rebuild(self) -> bool:
        """Return True when the collectives of every rank can be rebuilt."""
        return not any(report.unrebuildable for report in self._reports.values())

    def reports(self, ranks: int) -> tuple[m.WorkerAttached, ...]:
        """Return the reports of the first `ranks` ranks. Raises `KeyError` for a rank that has not reported."""
        return tuple(self._reports[rank] for rank in range(ranks))

    def missing(self, ranks: int) -> list[int]:
        """Return the ranks, of the first `ranks`, that have not reported."""
        return [rank for rank in range(ranks) if rank not in self._reports]

    def unreported(self, pids: Mapping[int, int]) -> list[int]:
        """Return the ranks whose process with the given id has not reported; old processes do not count."""
        return [r for r, pid in pids.items() if (known := self._reports.get(r)) is None or known.pid != pid]


class RequestFaults:
    """Faults to arm again in the replacement of a rank: faults of requests, the latest `MAX_ARMED`."""

    def __init__(self) -> None:
        self._kept: deque[m.ArmWorkerFault] = deque(maxlen=MAX_ARMED)

    def keep(self, command: m.ArmWorkerFault) -> None:
        """Remember a fault that is tied to a request: the request is computed by the replacement as well."""
        if command.spec.request:
            self._kept.append(command)

    def forget(self, command: m.ArmWorkerFault) -> None:
        """Forget a fault, because the rank was not reached."""
        if command in self._kept:
            self._kept.remove(command)

    def of_rank(self, rank: int) -> list[m.ArmWorkerFault]:
        """Return the faults to arm in a new process of a rank."""
        return [command for command in self._kept if command.spec.rank == rank]
