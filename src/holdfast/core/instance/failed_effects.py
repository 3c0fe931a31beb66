"""What follows when an effect could not be carried out, for instance because no file or thread could be made.

A failed effect is a fault like any other: the repair that needed the effect has failed, and the ladder goes on. So the
state never claims what did not happen. Effects that are bounded by a deadline anyway need nothing more.
"""

from __future__ import annotations

from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.instance import reports
from holdfast.core.instance.group import FailedStart
from holdfast.core.instance.repair import close_rendezvous
from holdfast.core.instance.state import InstanceState
from holdfast.core.protocol.effects import BeginRecovery, Effect, LeaveOut, ReplaceEngine, ReplaceProcess
from holdfast.core.states import EngineState

TRY_AGAIN_AFTER_S = 1.0  # a short lack of threads or files uses up no whole budget


def effect_failed(state: InstanceState, effect: Effect, why: str, now: float) -> list[Effect]:
    """Take the report that an effect was not, or not wholly, carried out; `why` is the error in words."""
    match effect:
        case BeginRecovery():
            return _recovery_did_not_begin(state, effect, why, now)
        case ReplaceEngine():
            engine = state.roster.find(effect.engine_id)[1]
            if engine.state is not EngineState.RESTARTING:
                return []
            engine.worker_pids = effect.processes  # may still be there, and have to end first
            engine.failed_start = FailedStart(f"its replacement could not be started: {why}", kill=effect.kill)
            engine.replacement_due_at = now + max(effect.after_s, TRY_AGAIN_AFTER_S)
            return []
        case LeaveOut():
            # The next start of the engine core ends what is left of it first.
            state.roster.find(effect.engine_id)[1].worker_pids = effect.processes
            return []
        case ReplaceProcess():
            process = state.roster.processes[effect.process]
            process.failed_start = f"its replacement could not be started: {why}"
            process.replacement_due_at = now + max(effect.after_s, TRY_AGAIN_AFTER_S)
    return []


def _recovery_did_not_begin(state: InstanceState, effect: BeginRecovery, why: str, now: float) -> list[Effect]:
    """Fail the recovery of every engine core in the group, also of an engine core that was told to recover already."""
    group, _ = state.roster.find(effect.engine_ids[0])
    if group.epoch != effect.epoch:
        return []
    effects: list[Effect] = [*close_rendezvous(group)]
    for engine in group.in_state(EngineState.RECOVERING):
        fault = Fault(
            fault_class=FaultClass.TRANSIENT,
            error_type="RecoveryFailed",
            message=f"the recovery could not be begun: {why}",
            engine_id=engine.engine_id,
        )
        effects += reports.recovery_failed(state, group, engine, fault, now)
    return effects
