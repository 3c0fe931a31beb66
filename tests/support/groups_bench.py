"""Lockstep groups in the situations that stories begin with, and readers of the effects."""

from holdfast.core.faults.faults import FaultClass
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import BeginRecovery, Send
from support.instance_bench import AUTO, EXTERNAL, Bench, a_fault

LEFT_ALONE = a_fault(1, "connection closed by peer", FaultClass.COMMUNICATOR)


def a_pair(config=AUTO, attached=True):
    """Return engines 0 and 1 in lockstep, and engines 2 and 3 without peers."""
    return Bench(config, groups=[(0, 1), (2,), (3,)], attached=attached)


def two_pairs(config=AUTO):
    return Bench(config, groups=[(0, 1), (2, 3)])


def paused_after_a_fault(config=EXTERNAL):
    """Return a pair in which both engines are paused after a fault and wait for a command."""
    bench = a_pair(config)
    bench.faulted(0)
    bench.paused_by_fault(0, broken=True)
    bench.paused(1)
    return bench


def recovering(config=AUTO):
    bench = paused_after_a_fault(config)
    if config is EXTERNAL:
        bench.retry("cmd", 0)
    assert bench.states(0, 1) == ["recovering", "recovering"]
    return bench


def paused_by_operator(config=AUTO, soft=False):
    bench = a_pair(config)
    bench.pause("pause", 0, soft=soft)
    bench.paused(0, broken=not soft)
    bench.paused(1, broken=not soft)
    return bench


def told(effects):
    """Return the messages sent: engine id and type, in order."""
    return [(e.engine_id, type(e.message).__name__) for e in effects if isinstance(e, Send)]


def pauses(effects):
    return [(e.engine_id, e.message.soft) for e in effects if isinstance(e, Send) and _is_pause(e.message)]


def _is_pause(message):
    return isinstance(message, m.PauseEngine) and message.command_id != ""


def orders(bench):
    return bench.all(BeginRecovery)
