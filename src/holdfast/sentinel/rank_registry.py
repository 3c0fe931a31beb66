"""Which process of each rank has reported to its engine core, and to which hooks it is attached. Any thread."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from holdfast.core.errors import HookNotAttached
from holdfast.core.protocol import messages as m


class RankRegistry:
    """The ranks of one engine core, by the latest report of each."""

    def __init__(self, engine_id: int) -> None:
        self._engine_id = engine_id
        self._changed = threading.Condition()
        self._reports: dict[int, m.WorkerAttached] = {}

    def note(self, report: m.WorkerAttached) -> None:
        with self._changed:
            self._reports[report.rank] = report
            self._changed.notify_all()

    def ranks(self) -> set[int]:
        return set(self._reports)

    def pids(self) -> dict[int, int]:
        return {rank: report.pid for rank, report in list(self._reports.items())}

    def can_rebuild(self) -> bool:
        """Whether no rank has collectives that could not be made again."""
        return not any(report.unrebuildable for report in list(self._reports.values()))

    def await_ranks(self, ranks: int, timeout_s: float) -> tuple[m.WorkerAttached, ...]:
        """All ranks' reports of what they attached to. Raises `HookNotAttached` for a silent rank."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._reports) >= ranks, timeout_s)
            missing = [rank for rank in range(ranks) if rank not in self._reports]
        if missing:
            raise HookNotAttached(
                f"worker rank(s) {missing} of engine {self._engine_id} did not report their hooks",
                hint="the plugin did not load there; see the worker's log",
            )
        return tuple(self._reports[rank] for rank in range(ranks))

    def await_processes(self, pids: Mapping[int, int], timeout_s: float) -> None:
        """Wait until the new processes of these ranks have reported. Raises `HookNotAttached` for a silent one."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unreported(pids), timeout_s)
            missing = self._unreported(pids)
        if missing:
            raise HookNotAttached(f"the new process(es) of rank(s) {missing} did not report their hooks")

    def _unreported(self, pids: Mapping[int, int]) -> list[int]:
        return [r for r, pid in pids.items() if (seen := self._reports.get(r)) is None or seen.pid != pid]
