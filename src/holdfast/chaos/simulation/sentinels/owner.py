"""The owner of a simulated instance: its host, whose effects may fail, an operator, and the laws of the instance."""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from typing import Any

from holdfast.chaos.simulation.sentinels.engine_core import EngineProcess
from holdfast.chaos.simulation.sentinels.plan import Planned
from holdfast.chaos.simulation.sentinels.scheduler import Process
from holdfast.core.engine_core import effects as fx
from holdfast.core.protocol import commands as c
from holdfast.core.protocol.effects import BeginRecovery, End, LeaveOut, ReplaceEngine, ReplaceProcess, Settle
from holdfast.core.protocol.events import Event, EventKind, InstanceView
from holdfast.core.protocol.messages import Rendezvous
from holdfast.core.states import EngineState

Run = Any  # of the module `run`, which imports this one

MAX_RETRIES = 8  # by the operator, who then gives up


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

    @property
    def waits(self) -> list[str]:
        """The processes that are lost, and the commands that have not ended."""
        return sorted(self._lost) + self.open_futures()

    def open_futures(self) -> list[str]:
        """Return the commands that have not ended, without those of an API server that is gone."""
        return [name for name, _, process, ended in self._futures if not ended.done() and not process.is_gone]

    def submit(self, command: c.Command, via: Any = None) -> None:
        """Give a command; the command ends within its bound, which is a law."""
        run, control = self._run, via or self._run.client
        run.note(f"command {type(command).__name__} {command.command_id}")
        bound_s = command.longest_s(run.client.config) + 10.0
        process = run.owner if via is None else run.link_processes[run.links.index(via)]
        self._futures.append((command.command_id, run.scheduler.now + bound_s, process, control.submit(command)))

    def command(self, item: Planned) -> None:
        run = self._run
        via = run.links[item.target % len(run.links)] if item.via_link and run.links else None
        self.submit(self._command_of(item), via)

    def _command_of(self, item: Planned) -> c.Command:
        command_id, one = f"planned-{next(self._ids)}", (item.target,)
        match item.what:
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
                return c.InjectFault(command_id=command_id, spec=item.spec)

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
        for engine in run.client.view().engines:
            if engine.state is not EngineState.PAUSED or run.dice.random() > 0.3:
                continue
            if engine.paused_by_operator:
                self.submit(c.Resume(command_id=f"resume-{next(self._ids)}", engine_ids=(engine.engine_id,)))
            elif policy != "auto" and self._retries < MAX_RETRIES and run.dice.random() < run.schedule.operator_answers:
                self._retries += 1
                self.submit(c.Retry(command_id=f"retry-{next(self._ids)}", engine_ids=(engine.engine_id,)))

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


class OwnerLaws:
    """Laws of the instance, checked at every effect, event and turn of the owner."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._sequence = 0
        self._uncalm_since: dict[int, float] = {}
        self._settled: set[str] = set()
        self._epochs: dict[tuple[int, ...], int] = {}
        self._touched: set[int] = set()
        self._retries: dict[int, list[float]] = {}
        for item in run.schedule.planned:
            if item.target < len(run.schedule.engines):
                self._touched.add(item.target)
        self._effects_fail = any(item.what in ("open_rendezvous",) for item in run.schedule.planned)

    # ---- effects of the instance

    def watch(self, client: Any) -> None:
        """Check what the instance asks for, before the shell carries out the effects."""
        instance = client._instance
        for name in ("observe", "lost", "tick", "submit", "effect_failed"):
            self._wrap(instance, name)

    def _wrap(self, instance: Any, name: str) -> None:
        original = getattr(instance, name)

        def checked(*args: Any, **options: Any) -> Any:
            was_over, before = instance._state.has_ended, instance._state.sequence
            effects = original(*args, **options)
            if name != "submit":
                self._run.law(not (was_over and effects), "after the end nothing changes anything")
            published = sum(type(e).__name__ == "Publish" for e in effects)
            self._run.law(instance._state.sequence == before + published, "every event is published")
            for effect in effects:
                self._check(effect, instance)
            return effects

        setattr(instance, name, checked)

    def _check(self, effect: Any, instance: Any) -> None:
        run = self._run
        match effect:
            case Settle():
                run.law(effect.command_id not in self._settled, "a command is settled once")
                self._settled.add(effect.command_id)
            case BeginRecovery():
                run.law(effect.epoch > self._epochs.get(effect.engine_ids, 0), "every recovery has an epoch of its own")
                self._epochs[effect.engine_ids] = effect.epoch
                for engine_id in effect.engine_ids:
                    sentinel = run.engines[engine_id].sentinel
                    if sentinel is not None and not run.engines[engine_id].is_gone:
                        state = sentinel._machine.busy_loop.name
                        # After a failed recovery the ranks may still stop; the command waits for them.
                        run.law(state != "RUNNING", f"a recovery begins when all pause (engine {engine_id})")

    # ---- events

    def sink(self, event: Event, view: InstanceView) -> None:
        """Take an event; a planned failure of a sink changes nothing."""
        run = self._run
        run.note(
            f"event {event.sequence}: {event.kind} of {event.engine_id}, {event.state}, epoch {event.epoch}"
            f" {event.reason or ''}"
        )
        run.law(event.sequence == self._sequence + 1 == view.sequence, "events have no gaps")
        self._sequence = event.sequence
        if event.engine_id is not None and event.kind is EventKind.ENGINE_LOST:
            self._epochs.pop((event.engine_id,), None)  # alone, a new process begins anew
            run.front_end.lost(event.engine_id)
        if event.engine_id is not None and event.kind is EventKind.ENGINE_RESTARTED:
            run.front_end.returned(event.engine_id)
        if event.kind is EventKind.FAULT_REPORTED and event.engine_id is not None:
            near = next(g for g in run.schedule.groups if event.engine_id in g)
            run.law(bool(self._touched.intersection(near)), "a neighbour never notices")
        run.effect("sink")

    # ---- at every turn

    def after_turn(self) -> None:
        """Check that status and core agree."""
        run = self._run
        shown = [(e.engine_id, e.state, e.epoch) for e in run.client.view().engines]
        known = [(e.engine_id, e.state, e.epoch) for e in run.client._instance.view().engines]
        run.law(shown == known, f"status and core agree: {shown} is not {known}")

    def look(self) -> None:
        """Check that every recovery ends in bounded time."""
        run = self._run
        for engine in run.client.view().engines:
            is_calm = engine.state in (EngineState.STARTING, EngineState.HEALTHY, EngineState.LEFT_OUT)
            if is_calm or engine.paused_by_operator or run.ended is not None:
                self._uncalm_since.pop(engine.engine_id, None)
            else:
                since = self._uncalm_since.setdefault(engine.engine_id, run.scheduler.now)
                in_time = run.scheduler.now - since <= run.schedule.recovery_bound_s
                run.law(in_time, "a recovery ends in bounded time")
        for link in run.links:
            if link is not None:
                numbers = [e.sequence for e in link.history()]
                run.law(numbers == sorted(set(numbers)), "a link tells events in order, each once")

    def watch_machine(self, engine: EngineProcess) -> None:
        """Check the effects that an engine core's machine asks for."""
        run, machine = self._run, engine.sentinel._machine
        handle = machine.handle
        condemned: set[tuple[int, int]] = set()  # ranks that were declared hung: owing nothing, also if a kill fails

        def checked(fact: Any, now: float) -> Any:
            epoch = machine.epoch
            effects = handle(fact, now)
            run.law(machine.epoch >= epoch, "an epoch never goes back")
            pids = machine.registry.pids()
            condemned.update((e.rank, pids[e.rank]) for e in effects if isinstance(e, fx.KillRank))
            told = {rank for rank, pid in pids.items() if (rank, pid) in condemned}
            for effect in effects:
                match effect:
                    case fx.Release(task=fx.RunRecovery(command=command)):
                        run.law(command.epoch > epoch, "a recovery has a newer epoch than the engine core")
                    case fx.Release(task=fx.AnnouncePause(broken=True)):
                        running = [w.rank for w in engine.core.workers if not (w.fenced or w.gone or w.rank in told)]
                        run.law(not running, "a pause is announced when every rank has stopped")
            return effects

        machine.handle = checked

    def at_the_end(self) -> None:
        """Check that every link that lives has the owner's view."""
        run = self._run
        if run.ended is not None or run.schedule.weather.loss or run.network.muted_until:
            return
        for index, link in enumerate(run.links):
            if not run.link_processes[index].is_gone:
                run.law(link.view().sequence == run.client.view().sequence, "a link shows what the owner shows")
