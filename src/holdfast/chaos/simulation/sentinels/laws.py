"""The laws of a simulated instance, checked at every effect, event and turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from holdfast.core.instance import group as group_module
from holdfast.core.protocol.effects import BeginRecovery, CloseRendezvous, Publish, ReplaceEngine, Settle
from holdfast.core.protocol.events import Event, EventKind, InstanceView
from holdfast.core.states import EngineState
from holdfast.sentinel import client as client_module

RETRIED_WITHIN_S = 2.0
CATCHES_UP_S = 30.0

Run = Any  # of the module `run`, which imports this one


class OwnerLaws:
    """Laws of the instance, checked at every effect, event and turn of the owner."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._sequence = 0
        self._uncalm_since: dict[int, float] = {}
        self._settled: set[str] = set()
        self._epochs: dict[tuple[int, ...], int] = {}
        self._touched: set[int] = set()
        for item in run.schedule.planned:
            if item.what == "pause-all":
                self._touched.update(range(len(run.schedule.engines)))
            if item.target < len(run.schedule.engines):
                self._touched.add(item.target)
        self._first_errors: dict[str, str] = {}
        self._retries: dict[tuple[int, ...], list[float]] = {}
        self._behind_since: dict[int, float] = {}
        self._lost_pids: set[tuple[int, int]] = set()

    # ---- effects of the instance

    def watch(self, client: Any) -> None:
        """Check what the instance asks for, before the shell carries out the effects."""
        instance = client._instance
        for name in ("observe", "lost", "tick", "submit", "effect_failed"):
            self._wrap(instance, name)
        self._note_first_errors(instance._state.commands)

    def _wrap(self, instance: Any, name: str) -> None:
        original = getattr(instance, name)

        def checked(*args: Any, **options: Any) -> Any:
            state = instance._state
            was_over, before = state.has_ended, state.sequence
            pids = {engine.engine_id: engine.pid for engine in state.roster.engines} if before else {}
            recoveries = {group.engine_ids: group.recovery for group in state.roster.groups}
            incidents = {group.engine_ids: group.incident for group in state.roster.groups}
            joins = {ids for ids, incident in incidents.items() if incident is not None and incident.is_joining}
            old = self._names_old_process(name, args, options)
            effects = original(*args, **options)
            if name != "submit":
                self._run.law(not (was_over and effects), "after the end nothing changes anything")
            self._run.law(not (old and effects), "a late report of an old process changes nothing")
            published = [e.event for e in effects if isinstance(e, Publish)]
            self._run.law(state.sequence == before + len(published), "every event is published")
            for effect in effects:
                self._check(effect, instance)
                if isinstance(effect, BeginRecovery) and effect.engine_ids not in joins:
                    self._check_retry(effect)
            self._check_groups(state.roster.groups)
            self._check_losses(published, pids, instance)
            self._check_failures(published, effects, recoveries, instance)
            self._check_bounds(instance)
            if name == "effect_failed":
                self._check_failed_start(args[0], instance)
            return effects

        setattr(instance, name, checked)

    def _note_first_errors(self, commands: Any) -> None:
        end_in_group = commands.end_in_group

        def noted(command_id: str | None, group_id: int, error: str | None = None) -> Any:
            if error and command_id is not None and commands.is_open(command_id):
                self._first_errors.setdefault(command_id, error)
            return end_in_group(command_id, group_id, error)

        commands.end_in_group = noted

    def _names_old_process(self, name: str, args: Any, options: Any) -> bool:
        """Return whether a report or a loss is of a process that is known to be lost."""
        if name == "observe":
            return (args[0].engine_id, args[0].pid) in self._lost_pids
        pid = options.get("pid") if name == "lost" else None
        pid = args[4] if name == "lost" and len(args) > 4 else pid
        if pid is None:
            return False
        was_lost = (args[0], pid) in self._lost_pids
        self._lost_pids.add((args[0], pid))
        return was_lost

    def _check_retry(self, effect: BeginRecovery) -> None:
        """Check that the policy retries no more often than allowed; an operator may."""
        config, now = self._run.client.config, self._run.scheduler.now
        if effect.replace or effect.extra_wait_s:  # new workers, also of ranks that the owner does not know as sick
            self._retries.pop(effect.engine_ids, None)
        elif "-" not in effect.command_id:
            tries = self._retries.setdefault(effect.engine_ids, [])
            tries.append(now)
            recent = sum(now - at < config.retry_window_s for at in tries)
            self._run.law(recent <= config.max_retries, "a fault is retried no more often than allowed")

    def _check_groups(self, groups: Any) -> None:
        """Check that no engine core takes steps while a peer has stopped."""
        for group in groups:
            stopped = group.in_state(EngineState.FAULTED, EngineState.PAUSED, EngineState.RESTARTING)
            healthy = group.in_state(EngineState.HEALTHY)
            self._run.law(not (stopped and healthy), "peers of a stopped engine core are paused")

    def _check_losses(self, published: Sequence[Event], pids: dict[int, int | None], instance: Any) -> None:
        """Note the processes that are lost; their group begins with all its retries."""
        for event in published:
            if event.kind is not EventKind.ENGINE_LOST or event.engine_id is None or not pids:
                continue
            if (pid := pids[event.engine_id]) is not None:
                self._lost_pids.add((event.engine_id, pid))
            self._retries.pop(instance._state.roster.find(event.engine_id)[0].engine_ids, None)
            budgets = instance._state.roster.find(event.engine_id)[0].budgets
            self._run.law(not budgets.retries.tried_at, "a replacement begins with all retries")

    def _check_failures(self, published: Sequence[Event], effects: Any, recoveries: Any, instance: Any) -> None:
        """Check that no rank waits at the rendezvous of a recovery that has failed."""
        closed = {effect.engine_ids for effect in effects if isinstance(effect, CloseRendezvous)}
        for event in published:
            if event.kind is EventKind.RECOVERY_FAILED and event.engine_id is not None:
                ids = instance._state.roster.find(event.engine_id)[0].engine_ids
                rebuilds = recoveries[ids] is not None and recoveries[ids].rebuilds
                self._run.law(ids in closed or not rebuilds, "who waits at a failed rendezvous is let go")

    def _check_failed_start(self, effect: Any, instance: Any) -> None:
        if isinstance(effect, ReplaceEngine):
            engine, now = instance._state.roster.find(effect.engine_id)[1], self._run.scheduler.now
            waits_s = engine.replacement_due_at - now if engine.state is EngineState.RESTARTING else 0.0
            self._run.law(waits_s <= effect.after_s + RETRIED_WITHIN_S, "a start that failed is tried again soon")

    def _check_bounds(self, instance: Any) -> None:
        kept = max(len(engine.poisons) for engine in instance._state.roster.engines)
        self._run.law(kept <= group_module.MAX_POISONS, "the owner keeps a bounded number of armings")

    def _check(self, effect: Any, instance: Any) -> None:
        run = self._run
        match effect:
            case Settle():
                run.law(effect.command_id not in self._settled, "a command is settled once")
                self._settled.add(effect.command_id)
                first = self._first_errors.get(effect.command_id, effect.error)
                is_first = effect.error in (first, instance._state.roster.defeat)
                run.law(is_first, "the first error of a command is told")
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
        run.tally.events[str(event.kind)] += 1
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
        groups = run.client._instance._state.roster.groups
        known = [(e.engine_id, e.state, group.epoch) for group in groups for e in group.engines]
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
        run.law(len(run.client.history()) <= client_module.MAX_HISTORY, "the owner keeps a bounded history")
        for link in run.links:
            if link is not None:
                self._look_at_link(link, [e.sequence for e in link.history()])

    def _look_at_link(self, link: Any, numbers: list[int]) -> None:
        run, now = self._run, self._run.scheduler.now
        if link.view().sequence <= (numbers[-1] if numbers else 0):
            self._behind_since[id(link)] = now
        since = self._behind_since.setdefault(id(link), now)
        is_gone = run.link_processes[run.links.index(link)].is_gone
        run.law(is_gone or now - since < CATCHES_UP_S, "a link learns what has happened")
        run.law(numbers == sorted(set(numbers)), "a link tells events in order, each once")
        run.law(len(numbers) <= client_module.MAX_HISTORY, "a link keeps a bounded history")
        is_whole = not numbers or len(numbers) == numbers[-1] - numbers[0] + 1
        # An owner with a short history has forgotten what a link has missed.
        run.law(is_whole or run.schedule.has_short_history, "a link misses no event")

    def at_the_end(self) -> None:
        """Check that every link that lives has the owner's view."""
        run = self._run
        run.operator.check_repeated()
        if run.ended is not None or run.schedule.weather.loss or run.network.muted_until:
            return
        for index, link in enumerate(run.links):
            if not run.link_processes[index].is_gone:
                run.law(link.view().sequence == run.client.view().sequence, "a link shows what the owner shows")
