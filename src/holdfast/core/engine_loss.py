"""What follows when the process of an engine core is gone: another one takes its place, or the instance ends.

The third rung of the ladder. Its requests are no matter of this module: whoever serves them sees in the view that
an engine was lost once more, and moves them.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core import messages as m
from holdfast.core.commands import Commands
from holdfast.core.config import HoldfastConfig
from holdfast.core.effects import CloseRendezvous, Effect, ReplaceEngine, Settle
from holdfast.core.events import EventKind
from holdfast.core.group import Engine, LockstepGroup
from holdfast.core.interventions import Interventions
from holdfast.core.journal import Journal
from holdfast.core.policy import recent
from holdfast.core.reports import Reports
from holdfast.core.states import EngineState

LONGEST_PAUSE_S = 30.0  # between two tries


@dataclass(frozen=True)
class Replacement:
    """Whether a lost engine core is replaced, why, and after which pause."""

    is_possible: bool
    reason: str
    after_s: float = 0.0


def decide_replacement(
    now: float, engine_id: int, in_lockstep: bool, tried_at: tuple[float, ...], config: HoldfastConfig
) -> Replacement:
    """Whether a lost engine core is replaced; `tried_at` is when it was before (seconds)."""
    if in_lockstep:
        return Replacement(False, "engine cores in lockstep are not replaced by this version")
    if config.fault_policy == "external":
        return Replacement(False, "with --fault-policy external nothing is restarted unasked")
    if not config.max_engine_restarts:
        return Replacement(False, "engine cores are not restarted here (--max-engine-restarts 0)")
    tries = len(recent(tried_at, now, config.engine_restart_window_s))
    if tries >= config.max_engine_restarts:
        limit = f"(--max-engine-restarts {config.max_engine_restarts})"
        return Replacement(False, f"{tries} restarts within {config.engine_restart_window_s:g} s did not last {limit}")
    after_s = min(LONGEST_PAUSE_S, 2.0 ** (tries - 1)) if tries else 0.0
    reason = f"another engine core {engine_id} is started; restart {tries + 1} of {config.max_engine_restarts}"
    return Replacement(True, reason, after_s)


class EngineLosses:
    """Takes the deaths of engine cores, and the first report of those that take their places."""

    def __init__(
        self,
        journal: Journal,
        commands: Commands,
        interventions: Interventions,
        reports: Reports,
        config: HoldfastConfig,
    ) -> None:
        self._journal = journal
        self._commands = commands
        self._interventions = interventions
        self._reports = reports
        self._config = config

    def lost(self, group: LockstepGroup, engine: Engine, why: str, hopeless: str, now: float) -> list[Effect]:
        """An engine core is gone, or the one that was to take its place did not start.

        `hopeless` says why nobody could go on with its requests or start another; empty where somebody can.
        """
        gone = f"engine core {engine.engine_id} is gone: {why}"
        if hopeless or engine.state is EngineState.STARTING:
            return self._interventions.end(group, engine, f"{gone}; {hopeless}" if hopeless else gone)
        in_lockstep = len(group.engines) > 1
        plan = decide_replacement(now, engine.engine_id, in_lockstep, engine.restarted_at, self._config)
        if not plan.is_possible:
            return self._interventions.end(group, engine, f"{gone}; {plan.reason}")
        return self._replace(group, engine, gone, plan, now)

    def _replace(self, group: LockstepGroup, engine: Engine, gone: str, plan: Replacement, now: float) -> list[Effect]:
        effects = self._fail_commands(group, engine, gone)
        effects.append(CloseRendezvous(group.engine_ids, group.epoch))
        processes = engine.worker_pids
        began_at = now if group.began_at is None else group.began_at
        engine.lose(now, self._config.engine_restart_window_s)
        group.begin_anew(began_at)
        group.reason = gone
        lost = self._journal.publish(EventKind.ENGINE_LOST, group, engine, reason=gone)
        decided = self._journal.publish(EventKind.DECISION_MADE, group, engine, reason=f"{gone}; {plan.reason}")
        known_at = decided.event.sequence
        return [*effects, lost, decided, ReplaceEngine(engine.engine_id, plan.after_s, known_at, processes)]

    def _fail_commands(self, group: LockstepGroup, engine: Engine, error: str) -> list[Effect]:
        settled = self._commands.fail(group.group_id, error)
        settled += [Settle(command_id, error=error) for command_id in engine.armed]
        engine.armed.clear()
        return settled

    def returned(self, group: LockstepGroup, engine: Engine, fact: m.FromEngine, now: float) -> list[Effect]:
        """A report while another process is being started: only its own first one is news."""
        if not isinstance(fact, m.EngineAttached) or fact.pid == engine.lost_pid:
            return []
        began_at = now if group.began_at is None else group.began_at
        group.close_incident()
        effects = self._reports.take(group, engine, fact, now)
        restarted = self._journal.publish(EventKind.ENGINE_RESTARTED, group, engine, interruption_s=now - began_at)
        return [*effects, restarted]
