"""State of the machine: containment of the present epoch, commands in order, ranks by their latest report.

The machine and the rank control decide; these classes remember, and say what is due until when (seconds). Every epoch
begins with an empty containment, and facts of another epoch are ignored.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from holdfast.core.config import HoldfastConfig, RuntimeSettings, adopt_settings
from holdfast.core.engine_core import effects as fx
from holdfast.core.engine_core.facts import HostAttached
from holdfast.core.faults.classification import Classifier
from holdfast.core.faults.faults import Fault, deeper
from holdfast.core.protocol import messages as m

MAX_KILLS = 5  # of a process that does not die: the owner's deadlines decide then


class Containment:
    """State of the ranks of an engine core in the present epoch."""

    def __init__(self, epoch: int) -> None:
        self.begin(epoch)

    def begin(self, epoch: int) -> None:
        """Forget everything known of the previous epoch."""
        self.epoch = epoch
        self.fault: Fault | None = None  # the deepest that a rank reported
        self.broken = False  # whether collectives were broken
        self._faulted: set[int] = set()
        self._told: set[int] = set()  # ranks that were told to break collectives
        self._owing: dict[int, float] = {}  # ranks whose acknowledgement is due, and by when
        self._finishing: dict[int, float] = {}  # ranks that take part in the rest of their step, and until when
        self._dying: dict[int, float] = {}  # ranks that were killed, and when to kill again
        self._kills: Counter[int] = Counter()
        self.end_search()

    def rank_faulted(self, rank: int, fault: Fault, finish_by: float | None = None) -> bool:
        """Note the fault of a rank. Return True for a fault deeper than all known.

        With `finish_by` the rank takes part in the rest of its step, which has to end by then.
        """
        if finish_by is None:
            self._finishing.pop(rank, None)
            self._faulted.add(rank)
            self._owing.pop(rank, None)  # a rank that faulted has stopped and broken its collectives by itself
        elif not self.broken:
            self._finishing[rank] = finish_by
        is_news = deeper(self.fault, fault) is fault
        self.fault = deeper(self.fault, fault)
        return is_news

    def break_ranks(self, ranks: set[int], acknowledge_by: float) -> set[int]:
        """Return the ranks to tell to break collectives, each process once.

        The returned ranks have to acknowledge by `acknowledge_by`, on the monotonic clock.
        """
        self.broken = True
        self._finishing.clear()
        untold = ranks - self._faulted - self._told
        self._told |= untold
        self._owing |= dict.fromkeys(untold, acknowledge_by)
        return untold

    def renew(self, rank: int) -> None:
        """Forget the process of a rank, because a new process takes its place: that was told nothing yet."""
        self._faulted.discard(rank)
        self._told.discard(rank)
        self._owing.pop(rank, None)
        self._finishing.pop(rank, None)
        self._dying.pop(rank, None)
        self._kills[rank] = 0

    def acknowledged(self, rank: int, epoch: int) -> None:
        """Note that a rank has stopped; ignore an acknowledgement of another epoch."""
        if epoch == self.epoch:
            self._owing.pop(rank, None)

    def overdue(self, now: float) -> set[int]:
        """Return the ranks that did not acknowledge in time, each rank once."""
        late = {rank for rank, due_at in self._owing.items() if now >= due_at}
        self._owing = {rank: due_at for rank, due_at in self._owing.items() if rank not in late}
        return late

    def kill(self, rank: int, again_at: float) -> None:
        """Note that a rank is killed, again at `again_at` unless the death is told by then: a kill may fail."""
        self._kills[rank] += 1
        self._dying[rank] = again_at if self._kills[rank] < MAX_KILLS else math.inf

    def died(self, rank: int) -> None:
        """Note that the death of a rank is told."""
        self._dying.pop(rank, None)

    def still_alive(self, now: float) -> list[int]:
        """Return the ranks to kill again."""
        return sorted(rank for rank, again_at in self._dying.items() if now >= again_at)

    @property
    def finish_due_at(self) -> float:
        """Time by which a step with a failed rank has to end; infinity without such a step."""
        return min(self._finishing.values(), default=math.inf)

    @property
    def kill_due_at(self) -> float:
        """Time at which a rank is killed again; infinity when none is."""
        return min(self._dying.values(), default=math.inf)

    def search(self, until: float) -> None:
        """Keep the pause unannounced while the stalled rank is searched, no longer than `until`."""
        self._searching_until = until

    def end_search(self) -> None:
        """Let the pause be announced as soon as no acknowledgement is due."""
        self._searching_until = 0.0

    @property
    def acknowledgement_due_at(self) -> float:
        """Time by which an acknowledgement is due; infinity when none is due."""
        return min(self._owing.values(), default=math.inf)

    @property
    def awaited_until(self) -> float:
        """Time until which the pause is not announced: ranks may still stop, or a search may still end."""
        return max(self._searching_until, *self._owing.values(), 0.0)


Command = m.RecoverEngine | m.EndEngine


@dataclass
class CommandQueue:
    """Commands in order of arrival, and the time of the client's last message."""

    _waiting: deque[Command] = field(default_factory=deque)
    _heard_at: float = 0.0

    def heard(self, now: float) -> None:
        """Note that the client is alive."""
        self._heard_at = now

    def put(self, command: Command) -> None:
        """Keep a command until the busy loop is paused."""
        self._waiting.append(command)

    def next(self, epoch: int) -> Command | None:
        """Take the next command that is not void in `epoch`; return None when no command is left."""
        while self._waiting:
            command = self._waiting.popleft()
            if isinstance(command, m.EndEngine) or command.epoch > epoch:
                return command
        return None

    def end_when_silent(self, bound_s: float, now: float) -> m.EndEngine | None:
        """Return a command to end when the client has been silent for `bound_s`; None otherwise."""
        if now - self._heard_at < bound_s:
            return None
        return m.EndEngine(command_id="", reason=f"the client has been silent for {bound_s:g} s")


MAX_ARMED = 16
MAX_GONE = 8


class RankRegistry:
    """Registry of the ranks of an engine core: the present process of each rank, and the first report of it."""

    def __init__(self) -> None:
        self._reports: dict[int, m.WorkerAttached] = {}
        self._present: dict[int, int] = {}
        self._gone: dict[int, deque[int]] = {}  # by rank: old processes, whose late reports change nothing

    def note(self, report: m.WorkerAttached) -> bool:
        """Take the first report of a process; return False for an old process, which changes nothing."""
        if report.pid in self._gone_of(report.rank):
            return False
        self.expect(report.rank, report.pid)
        self._reports[report.rank] = report
        return True

    def expect(self, rank: int, pid: int) -> None:
        """Take a process as the present process of a rank."""
        known = self._present.get(rank, pid)
        if known != pid:
            self.note_gone(rank, known)
        self._present[rank] = pid

    def note_gone(self, rank: int, pid: int) -> None:
        """Remember that a process of a rank has ended, also a process that has never reported."""
        self._gone_of(rank).append(pid)

    def take_back(self, rank: int, pid: int) -> None:
        """Count a process of a rank among the living again: it was taken for gone with its node."""
        self._gone[rank] = deque((gone for gone in self._gone_of(rank) if gone != pid), maxlen=MAX_GONE)

    def is_present(self, rank: int, pid: int) -> bool:
        """Return whether a process is the present process of a rank."""
        return self._present.get(rank) == pid

    def _gone_of(self, rank: int) -> deque[int]:
        return self._gone.setdefault(rank, deque(maxlen=MAX_GONE))

    def ranks(self) -> set[int]:
        """Return the ranks that have reported."""
        return set(self._reports)

    def living(self) -> set[int]:
        """Return the ranks that have reported, without those whose present process is known to have ended."""
        return {rank for rank, pid in self.pids().items() if pid not in self._gone_of(rank)}

    def pids(self) -> dict[int, int]:
        """Return the present process id of every rank that has reported."""
        return {rank: self._present[rank] for rank in self._reports}

    def pids_here(self) -> dict[int, int]:
        """Return the present process id of every rank on the engine core's own node."""
        return {rank: pid for rank, pid in self.pids().items() if self._reports[rank].node == 0}

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


@dataclass
class Context:
    """Shared state of a machine. `config` may be replaced at any time: every bound is read on use."""

    engine_id: int
    config: HoldfastConfig
    wall_clock: Callable[[], float]
    host: HostAttached | None = None  # none while the engine core starts
    effects: list[fx.Effect] = field(default_factory=list)

    def configure(self, settings: RuntimeSettings) -> None:
        """Replace the settings that can change at run time; every bound that begins from now on is new."""
        self.config = adopt_settings(self.config, settings)
        self.do_on_host(fx.ConfigureHost(self.config))

    @property
    def classifier(self) -> Classifier:
        """Classifier with the operator's own rows."""
        return Classifier(self.config.fault_classes)

    @property
    def in_lockstep(self) -> bool:
        """Whether peer engine cores wait for the engine core in collectives."""
        return self.host is not None and self.host.in_lockstep

    def do(self, effect: fx.Effect) -> None:
        """Ask for an effect."""
        self.effects.append(effect)

    def do_on_host(self, effect: fx.Effect) -> None:
        """Ask for an effect on the host; ignored while the engine core starts."""
        if self.host is not None:
            self.do(effect)

    def tell_client(self, message: m.FromEngine) -> None:
        """Send a message to the client."""
        self.do(fx.SendToClient(message))

    def answer(self, command_id: str, refused: str | None) -> None:
        """Answer a command of the client: done, or refused with a reason."""
        self.tell_client(m.EngineAnswered(engine_id=self.engine_id, command_id=command_id, refused=refused))
