"""Whatever is said to an instance in whatever order, its laws hold."""

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.errors import CommandConflict, UnknownEngine
from holdfast.core.faults.faults import FaultClass, Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import BeginRecovery, End, Publish, Settle
from holdfast.core.states import EngineState
from support.instance_bench import AUTO, EXTERNAL, NO_RESTARTS, Bench, a_fault

# ---- any order whatsoever

asked = st.sampled_from(["cmd-1", "cmd-2", "arm-1", "?"])  # nobody outside knows an id before it is made
texts = st.sampled_from(["own-1", "own-2", "own-3"]) | asked
engines = st.integers(0, 2)
epochs = st.integers(0, 4)
any_fault = st.builds(a_fault, engines, fault_class=st.sampled_from([FaultClass.TRANSIENT] * 4 + list(FaultClass)))
facts = st.one_of(
    st.builds(m.EngineAttached, engine_id=engines, pid=st.just(1), hooks=st.just(()), workers=st.just(())),
    st.builds(m.EngineFaulted, engine_id=engines, epoch=epochs, fault=any_fault),
    st.builds(m.EnginePaused, engine_id=engines, epoch=epochs, fault=any_fault, unfinished_requests=st.just(0)),
    st.builds(m.EngineRecovered, engine_id=engines, command_id=texts, epoch=epochs, report=st.just(m.RecoveryReport())),
    st.builds(m.RecoveryAborted, engine_id=engines, command_id=texts, epoch=epochs, fault=any_fault),
    st.builds(m.EngineAnswered, engine_id=engines, command_id=texts, refused=st.none() | st.just("no")),
)
happenings = st.one_of(
    facts,
    st.tuples(st.just("retry"), asked, st.none() | engines),
    st.tuples(st.just("arm"), asked, engines),
    st.tuples(st.just("restart"), asked, engines),
    st.tuples(st.just("tick"), st.sampled_from([0.1, 0.1, 1.0, 5.0, 15.0, 200.0]), st.none()),
)


@settings(max_examples=400, deadline=None)
@given(story=st.lists(happenings, max_size=40), config=st.sampled_from([AUTO, EXTERNAL, NO_RESTARTS]))
def test_whatever_is_said_in_whatever_order_the_laws_of_an_instance_hold(story, config):
    bench = Bench(config, engines=(0, 1), attached=False)
    accepted = []
    for happening in story:
        match happening:
            case ("retry" | "arm" | "restart" as what, command_id, engine):
                try:
                    instruct(bench, what, command_id, engine)
                except (CommandConflict, UnknownEngine):
                    continue
                accepted.append(command_id)
            case ("tick", after_s, _):
                bench.tick(after_s)
            case fact:
                bench.observe(fact)
    for _ in range(6):  # after silence long enough, every wait has ended
        bench.tick(config.worker_start_timeout_s + 250.0)
    own = {order.command_id for order in bench.all(BeginRecovery)} - set(accepted)  # one may be for two groups
    assert sorted(s.command_id for s in bench.all(Settle)) == sorted([*accepted, *own])
    assert [e.sequence for e in bench.events] == list(range(1, len(bench.events) + 1))
    assert [p.view.sequence for p in bench.all(Publish)] == [e.sequence for e in bench.events]
    assert len(bench.all(End)) == (bench.instance.view().defeat is not None)
    over = {EngineState.STARTING, EngineState.HEALTHY, EngineState.LEFT_OUT}
    open_states = {bench.view(i).state for i in (0, 1)} - over
    assert not open_states or bench.instance.view().defeat is not None


def instruct(bench, what, command_id, engine):
    match what:
        case "retry":
            bench.retry(command_id, engine)
        case "restart":
            bench.restart_workers(command_id, engine)
        case "arm":
            bench.arm(command_id, InjectionSpec(phase=Phase.FORWARD, engine_id=engine))
