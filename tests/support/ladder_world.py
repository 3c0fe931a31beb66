"""World around an instance: engine cores that answer orders as a script says."""

import heapq
import itertools

from holdfast.core.policy.incident import Budget, Intensity
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import BeginRecovery, End, Publish, ReplaceEngine, Send
from holdfast.core.protocol.events import EventKind
from holdfast.core.states import EngineState
from support.instance_bench import Bench, a_fault

GROUPS = [(0, 1), (2,)]
RANKS = 2
CALM, GONE = (EngineState.HEALTHY, EngineState.LEFT_OUT), (EngineState.RESTARTING, EngineState.LEFT_OUT)
ANSWER_S = 0.01
TICK_S = 0.25


class World:
    """World that runs an instance on virtual time and counts the tries of each rung.

    `answers` says how engine cores end an order: "well", "silent", "lost", or with a fault of a class. The next of
    `faults` occurs as soon as everything is healthy.
    """

    def __init__(self, config, answers, faults):
        self.config, self.answers, self.faults = config, iter(answers), iter(faults)
        self.bench = Bench(config, groups=GROUPS, attached=False)
        self.pids = itertools.count(100)
        self._due, self._seen, self._order = [], 0, itertools.count()
        self.rungs = {"retry": {}, "worker": {}, "engine": {}}  # when each was taken, by group or engine
        self.decisions = 0
        self.decided = None
        for engine in (0, 1, 2):
            self._attach(engine)

    # ---- running

    def run(self, longest_s, most_decisions):
        """Run until the instance has ended, or is healthy and no fault is left. Return whether that was in time."""
        until = self.bench.now + longest_s
        while self.bench.now < until and self.decisions <= most_decisions:
            self._look_at_effects()
            if self.bench.defeat is not None:
                return True
            if self._is_calm():
                if not self._meet_fault():
                    return True
                self._look_at_effects()  # before time passes: a try counts from its decision on
            self._next()
        return False

    def _next(self):
        if self._due and self._due[0][0] <= self.bench.now + TICK_S:
            at, _, happen = heapq.heappop(self._due)
            self.bench.now = max(self.bench.now, at)
            happen()
        else:
            self.bench.tick(TICK_S)

    def _later(self, after_s, happen):
        heapq.heappush(self._due, (self.bench.now + after_s, next(self._order), happen))

    def _is_calm(self):
        return not self._due and all(e.state in CALM for e in self.bench.instance.view().engines)

    def _meet_fault(self):
        fault = next(self.faults, None)
        if fault is None:
            return False
        engine, fault_class, rank = fault
        if self.bench.view(engine).state is EngineState.LEFT_OUT:
            engine = 0  # in lockstep with another one, so it is never left out
        if fault_class == "lost":
            self._lose(engine)
            return True
        told = a_fault(engine, fault_class=fault_class, rank=rank)
        self.bench.faulted(engine, fault=told)
        self._later(ANSWER_S, lambda: self._stand(engine))
        return True

    # ---- engine cores

    def _answer(self):
        return next(self.answers, "well")

    def _attach(self, engine):
        self.bench.attached(engine, pid=next(self.pids), ranks=RANKS)
        if self.bench.view(engine).state is EngineState.PAUSING:
            self._later(ANSWER_S, lambda: self._stand(engine))

    def _stand(self, engine):
        if self.bench.view(engine).state in (EngineState.FAULTED, EngineState.PAUSING):
            match self._answer():
                case "silent":
                    pass
                case "lost":
                    self._lose(engine)
                case _:
                    self.bench.paused(engine)

    def _lose(self, engine):
        if self.bench.defeat is None and self.bench.view(engine).state not in GONE:
            self.bench.lost(engine)

    def _recover(self, engine, order):
        if self.bench.view(engine).state is not EngineState.RECOVERING:
            return
        told = {"command_id": order.command_id, "epoch": order.epoch}
        match self._answer():
            case "well":
                self.bench.recovered(engine, replaced=tuple(order.replace.get(engine, ())), **told)
            case "silent":
                pass
            case "lost":
                self._lose(engine)
            case fault_class:
                self.bench.aborted(engine, fault=a_fault(engine, fault_class=fault_class), **told)

    def _replace(self, engine):
        if self.bench.view(engine).state is EngineState.RESTARTING:
            if self._answer() == "well":
                self._attach(engine)
            else:
                self.bench.lost(engine)

    # ---- effects

    def _look_at_effects(self):
        while self._seen < len(self.bench.effects):
            effect = self.bench.effects[self._seen]
            self._seen += 1
            self._carry_out(effect)

    def _carry_out(self, effect):
        match effect:
            case Send(engine, m.PauseEngine(command_id=command_id)) if command_id:
                self._later(ANSWER_S, lambda: self._stand(engine))
            case BeginRecovery():
                self._count_recovery(effect)
                for engine in effect.engine_ids:
                    self._later(ANSWER_S, lambda engine=engine: self._recover(engine, effect))
            case ReplaceEngine():
                self._count("engine", effect.engine_id, self.config.max_engine_restarts, "engine_restart_window_s")
                self.rungs["retry"][next(group for group in GROUPS if effect.engine_id in group)] = ()
                self._later(effect.after_s + ANSWER_S, lambda: self._replace(effect.engine_id))
            case Publish(event):
                self._check_decision(event)
            case End():
                self._due.clear()

    def _count_recovery(self, order):
        if self.decided.action == "restart-workers":
            self.rungs["retry"][order.engine_ids] = ()  # in another process every retry is a new one
            self._count("worker", order.engine_ids, self.config.max_worker_restarts, "worker_restart_window_s")
        elif self.decided.limit:  # to let a newcomer in is no try of anything
            self._count("retry", order.engine_ids, self.config.max_retries, "retry_window_s")

    def _count(self, rung, whose, limit, window):
        """Count a try, and check that no rung is taken beyond the budget."""
        known = self.rungs[rung].get(whose, ())
        intensity = Intensity(rung, limit, getattr(self.config, window), "")
        taken = Budget(known).spend(intensity, self.bench.now).tried_at
        assert len(taken) <= limit, f"{rung} of {whose}: {len(taken)} times within {window}"
        self.rungs[rung][whose] = taken

    def _check_decision(self, event):
        if event.kind is EventKind.DECISION_MADE:
            self.decisions += 1
            self.decided = record = event.decision
            assert record is not None and event.reason, "every decision has its record and its reason"
            assert record.tries <= record.limit, "no try beyond the budget"
            assert record.policy != "dry-run" or record.action in ("await-instruction", "end-instance")
