"""Faults to inject: what, where, when and how often. The closed lists are `FaultKind` and `Phase`."""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Annotated

import msgspec

from holdfast.core.faults.faults import Phase

MAX_ID = 2**31 - 1  # of an engine or a rank: what every process can decode
MAX_TIMES = 1000
MAX_STEPS = 1_000_000
MAX_REQUEST_INDEX = 100_000
MAX_SECONDS = 600
MAX_LINES = 1_000_000
MAX_TOGETHER = 16


class FaultKind(enum.StrEnum):
    """Effect of an injected fault at a phase."""

    RAISE = "raise"  # an exception
    CRASH = "crash"  # an exception that nothing contains: an engine core says that it is dead, and ends
    KILL = "kill"  # the process ends itself by SIGKILL: nothing of it is said or cleaned up
    STOP = "stop"  # the process stops itself by SIGSTOP: no thread of it runs any more
    HANG = "hang"  # the thread waits for what never comes
    SPIN = "spin"  # the thread computes for ever
    DEADLOCK = "deadlock"  # the thread takes a lock that it holds
    NAN = "nan"  # the step goes on with logits that are no numbers; nothing raises
    OOM = "oom"  # what a device raises that has no memory left for an allocation
    SLOW = "slow"  # the thread does nothing for a while, then goes on as if nothing had been

    @property
    def is_silent(self) -> bool:
        """Whether only missing progress shows the fault."""
        return self in _SILENT


_SILENT = frozenset({FaultKind.STOP, FaultKind.HANG, FaultKind.SPIN, FaultKind.DEADLOCK})


class InjectionSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let `kind` happen at `phase`, `after_steps` matching passages from now, `times` passages in a row.

    `engine_id` and `rank` say where (a worker phase needs a rank, an engine-core phase has none);
    `request_index` says before which request of the batch an `output-request` fault raises, and for which one
    `nan` spoils the logits (0: of all), at `forward`;
    `message` is what the exception says; `slow` takes `seconds` longer. With a `request` only those steps count in
    which so many requests (`together`) have it as a part of their ids: the fault is theirs, in every process that
    takes the rank's place too. With `lines` a `step-start` fault raises later: at that line of the host's own Python
    code, counted from the begin of the step, wherever the step is then.
    """

    phase: Phase
    kind: FaultKind = FaultKind.RAISE
    engine_id: Annotated[int, msgspec.Meta(ge=-MAX_ID, le=MAX_ID)] = 0
    rank: Annotated[int, msgspec.Meta(ge=-MAX_ID, le=MAX_ID)] = 0
    after_steps: Annotated[int, msgspec.Meta(ge=0, le=MAX_STEPS)] = 0
    times: Annotated[int, msgspec.Meta(ge=1, le=MAX_TIMES)] = 1
    request_index: Annotated[int, msgspec.Meta(ge=0, le=MAX_REQUEST_INDEX)] = 1
    message: Annotated[str, msgspec.Meta(max_length=200)] = "injected fault"
    seconds: Annotated[float, msgspec.Meta(gt=0, le=MAX_SECONDS)] = 0.5
    request: Annotated[str, msgspec.Meta(max_length=200)] = ""
    together: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOGETHER)] = 1
    lines: Annotated[int, msgspec.Meta(ge=0, le=MAX_LINES)] = 0

    def __post_init__(self) -> None:
        if self.kind is FaultKind.NAN and self.phase is not Phase.FORWARD:
            raise ValueError(f"nan is of the phase {Phase.FORWARD}, not of {self.phase}")
        if self.kind is FaultKind.CRASH and self.phase.in_worker:
            raise ValueError(f"crash is of an engine core's phase, not of {self.phase}")
        if self.kind is FaultKind.OOM and not self.phase.in_worker:
            raise ValueError(f"oom is of a device, which only workers use; {self.phase} is a phase of an engine core")
        if self.lines and (self.phase, self.kind) != (Phase.STEP_START, FaultKind.RAISE):
            raise ValueError(f"lines are counted from {Phase.STEP_START}, and only {FaultKind.RAISE} happens at one")

    @property
    def kills_engine_core(self) -> bool:
        """Whether the process of an engine core ends, rather than that of a worker."""
        return self.kind in (FaultKind.KILL, FaultKind.CRASH) and not self.phase.in_worker


class ArmedFault:
    """Armed fault, which counts the passages of the phase."""

    def __init__(self, spec: InjectionSpec) -> None:
        self.spec = spec
        self._to_skip = spec.after_steps
        self._left = spec.times

    @property
    def spent(self) -> bool:
        return self._left == 0

    def is_due(self, batch: Collection[str] = ()) -> bool:
        """Count a passage in a step with the requests `batch`; return True when the fault is to happen now."""
        if self.spent or not self._concerns(batch):
            return False
        if self._to_skip > 0:
            self._to_skip -= 1
            return False
        self._left -= 1
        return True

    def _concerns(self, batch: Collection[str]) -> bool:
        named = self.spec.request
        return not named or sum(named in request_id for request_id in batch) >= self.spec.together


class InjectedFault(RuntimeError):
    """The exception of an injected fault, with the phase and the kind of the fault."""

    def __init__(self, spec: InjectionSpec) -> None:
        super().__init__(spec.message)
        self.phase = spec.phase
        self.kind = spec.kind


class UncontainedFault(InjectedFault):
    """Injected fault that containment lets through, as if containment itself had failed."""
