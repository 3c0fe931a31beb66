"""The owner of a simulated instance: its host, whose effects may fail, and an operator."""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from typing import Any, cast

import msgspec

from holdfast.chaos.simulation.sentinels.engine_core import EngineProcess
from holdfast.chaos.simulation.sentinels.plan import Planned
from holdfast.chaos.simulation.sentinels.scheduler import Process
from holdfast.core.errors import OperatorError, PeerSilent
from holdfast.core.protocol import commands as c
from holdfast.core.protocol.effects import End, LeaveOut, ReplaceEngine, ReplaceProcess
from holdfast.core.protocol.messages import Rendezvous
from holdfast.core.states import EngineState

Run = Any  # of the module `run`, which imports this one

MAX_RETRIES = 8  # by the operator, who then gives up
REPEATS = 0.2  # the odds that the caller of a command repeats the command
ARMINGS = 3  # more than are kept in a simulation
NO_REQUEST = "a request of nobody"


class OwnerHost:
    """Implements `FrontEndHost`."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def end_instance(self, effect: End) -> None:
        self._run.end(effect.reason)

    def open_rendezvous(self, group: tuple[int, ...], epoch: int) -> Rendezvous:
        self._run.effect("open_rendezvous")
        network = self._run.network_of(group)
        return Rendezvous("memory", 0, epoch) if network is None else network.open(epoch)

    def close_rendezvous(self, group: tuple[int, ...], epoch: int) -> None:
        self._run.effect("close_rendezvous")
        if (network := self._run.network_of(group)) is not None:
            network.close(epoch)

    def replace_engine(self, effect: ReplaceEngine) -> None:
        self._run.effect("replace_engine")
        run, old = self._run, self._run.engines[effect.engine_id]
        if not old.is_gone:
            run.scheduler.after(run.draw_lateness(0.1), lambda: run.report_loss(old, "killed for its replacement"))
        run.scheduler.after(0.0, old.stop)
        starts_in_s = effect.after_s + run.dice.uniform(0.3, 1.5)
        run.scheduler.after(starts_in_s, lambda: self._start(effect, old))

    def _start(self, effect: ReplaceEngine, old: EngineProcess) -> None:
        if self._run.engines[effect.engine_id] is old:
            self._run.start_engine(effect.engine_id, effect.joins_epoch)

    def leave_out_engine(self, effect: LeaveOut) -> None:
        self._run.effect("leave_out_engine")
        self._run.scheduler.after(0.0, self._run.engines[effect.engine_id].stop)

    def replace_process(self, effect: ReplaceProcess) -> None:
        self._run.effect("replace_process")
        run = self._run
        run.scheduler.after(effect.after_s + 0.5, lambda: run.operator.process_starts(effect.process))

    def unrecoverable_reason(self) -> str:
        return ""


class Operator:
    """Commands of the plan, and answers where the policy or a pause waits for a command."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._ids = itertools.count(1)
        self._futures: list[tuple[str, float, Process, Future[None]]] = []
        self._lost: set[str] = set()
        self._retries = 0
        self._repeated: list[tuple[Future[None], Future[None]]] = []
        self._paused_since: dict[int, float] = {}

    @property
    def waits(self) -> list[str]:
        """The processes that are lost, and the commands that have not ended."""
        return sorted(self._lost) + self.open_futures()

    def open_futures(self) -> list[str]:
        """Return the commands that have not ended, without those of an API server that is gone."""
        return [name for name, _, process, ended in self._futures if not ended.done() and not process.is_gone]

    def _repeat(self, command: c.Command, first: Future[None]) -> None:
        """Repeat a command, as a caller does whose answer was lost."""
        if self._run.ended is None:
            self._repeated.append((first, self.submit(command)))

    def check_repeated(self) -> None:
        """Check that a repeated command has ended as the first; a refused or lost command counts as never given."""
        for first, again in self._repeated:
            if first.done() and again.done() and not isinstance(first.exception(), (OperatorError, PeerSilent)):
                is_alike = type(first.exception()) is type(again.exception())
                self._run.law(
                    is_alike,
                    f"a repeated command ends as the first: {again.exception()!r} is not {first.exception()!r}",
                )

    def submit(self, command: c.Command, via: Any = None) -> Future[None]:
        """Give a command; the command ends within its bound, which is a law."""
        run, control = self._run, via or self._run.client
        run.note(f"command {type(command).__name__} {command.command_id}")
        bound_s = command.longest_s(run.client.config) + 10.0
        process = run.owner if via is None else run.link_processes[run.links.index(via)]
        ended = control.submit(command)
        self._futures.append((command.command_id, run.scheduler.now + bound_s, process, ended))
        return cast("Future[None]", ended)

    def command(self, item: Planned) -> None:
        run = self._run
        via = run.links[item.target % len(run.links)] if item.via_link and run.links else None
        for _ in range(ARMINGS if item.what == "inject-many" else 1):
            command = self._command_of(item)
            first = self.submit(command, via)
            if run.dice.random() < REPEATS:
                run.scheduler.after(run.dice.uniform(0.0, 3.0), lambda c=command, f=first: self._repeat(c, f))

    def _command_of(self, item: Planned) -> c.Command:
        command_id, one = f"planned-{next(self._ids)}", (item.target,)
        match item.what:
            case "pause-all":
                return c.Pause(command_id=command_id)
            case "pause" | "soft-pause":
                return c.Pause(command_id=command_id, engine_ids=one, soft=item.what == "soft-pause")
            case "resume":
                return c.Resume(command_id=command_id, engine_ids=one)
            case "retry":
                return c.Retry(command_id=command_id, engine_ids=one)
            case "restart-workers":
                return c.RestartWorkers(command_id=command_id, engine_id=item.target)
            case "restart-engine":
                return c.RestartEngine(command_id=command_id, engine_id=item.target)
            case "configure":
                return c.Configure(command_id=command_id, settings={"max_retries": 3})
            case _:
                assert item.spec is not None
                spec = item.spec
                if item.what == "inject-many":  # armed for a request that never comes
                    spec = msgspec.structs.replace(spec, request=NO_REQUEST)
                return c.InjectFault(command_id=command_id, spec=spec)

    def look(self) -> None:
        """Resume what an operator paused, and order a retry where the policy waits for one."""
        run = self._run
        if run.ended is not None:
            return
        run.law(
            all(e.done() or p.is_gone or run.scheduler.now < at for _, at, p, e in self._futures),
            "a command ends within its bound",
        )
        policy = run.client.config.fault_policy
        if policy != "auto" and self._retries < MAX_RETRIES and run.dice.random() < 0.4:
            self._retry_all()
        for engine in run.client.view().engines:
            if engine.state is not EngineState.PAUSED:
                self._paused_since.pop(engine.engine_id, None)
                continue
            since = self._paused_since.setdefault(engine.engine_id, run.scheduler.now)
            if run.dice.random() > 0.3:
                continue
            if engine.paused_by_operator:
                if run.scheduler.now - since < run.schedule.pauses_s:
                    continue
                self.submit(c.Resume(command_id=f"resume-{next(self._ids)}", engine_ids=(engine.engine_id,)))
            elif policy != "auto" and self._retries < MAX_RETRIES and run.dice.random() < run.schedule.operator_answers:
                self._retries += 1
                self.submit(c.Retry(command_id=f"retry-{next(self._ids)}", engine_ids=(engine.engine_id,)))

    def _retry_all(self) -> None:
        """Order a retry of every paused group with a single command."""
        paused = [e for e in self._run.client.view().engines if e.state is EngineState.PAUSED]
        if len(paused) > 1 and not any(e.paused_by_operator for e in paused):
            self._retries += 1
            self.submit(c.Retry(command_id=f"retry-{next(self._ids)}"))

    # ---- processes beside the engine cores

    def lose_process(self, name: str, process: Process | None) -> None:
        if name in self._lost:
            return
        self._lost.add(name)
        if process is not None:
            self._run.scheduler.end(process)
        self._run.client.process_lost(name, "killed by signal 9", pid=None if process is None else process.pid)

    def process_starts(self, name: str) -> None:
        run = self._run
        if run.ended is not None or name not in self._lost:
            return
        self._lost.discard(name)
        pid = 8
        if name.startswith("api-server-"):
            index = int(name.removeprefix("api-server-"))
            run.start_link(index)
            pid = run.link_processes[index].pid
        run.client.process_returned(name, pid)
