"""Any story of lockstep groups: whatever happens, what must always hold holds, and every wait ends."""

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.errors import CommandConflict
from holdfast.core.faults.faults import FaultClass
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import BeginRecovery, End, LeaveOut, Publish, Send, Settle
from holdfast.core.states import EngineState
from support.groups_bench import orders
from support.instance_bench import AUTO, EXTERNAL, SPEC, Bench, a_fault

ENGINES = st.integers(0, 5)
FAULTS = st.sampled_from([FaultClass.TRANSIENT] * 16 + [FaultClass.COMMUNICATOR] * 8 + [FaultClass.UNRESPONSIVE])
# 0: of the present epoch; else of another one.
OFFSETS = st.sampled_from([0] * 10 + [-1, 1])
HAPPENINGS = st.one_of(
    st.tuples(st.just("faulted"), ENGINES, OFFSETS, FAULTS),
    st.tuples(st.just("paused_by_fault"), ENGINES, OFFSETS, FAULTS),
    st.tuples(st.just("paused"), ENGINES, OFFSETS, st.booleans()),
    st.tuples(st.just("paused"), ENGINES, st.just(0), st.booleans()),
    st.tuples(st.sampled_from(["recovered", "recovered", "aborted"]), ENGINES, OFFSETS, st.none()),
    st.tuples(st.sampled_from(["retry", "pause", "soft pause", "resume"]), st.none() | ENGINES, st.none(), st.none()),
    st.tuples(
        st.sampled_from(["paused", "paused", "paused", "recovered", "aborted"]).map("group {}".format),
        ENGINES,
        st.none(),
        st.none(),
    ),
    st.tuples(st.just("tick"), st.sampled_from([0.1, 0.1, 1.0, 1.0, 5.0, 29.0]), st.none(), st.none()),
    st.tuples(st.just("arm"), ENGINES, st.none(), st.none()),
)
GROUPS = [(0, 1), (2, 3, 4), (5,)]
REPORTS = ("faulted", "paused_by_fault", "paused", "recovered", "aborted")
STANDING = {EngineState.FAULTED, EngineState.PAUSING, EngineState.PAUSED}


class Story:
    """Tells an instance what happens and checks after each happening what must always hold."""

    def __init__(self, config):
        self.bench = Bench(config, groups=GROUPS)
        self.accepted = []
        self.epochs = dict.fromkeys(GROUPS, 0)

    def tell(self, number, happening):
        before, seen = self.bench.instance.view(), len(self.bench.effects)
        try:
            self._happens(f"cmd-{number}", *happening)
        except CommandConflict:
            assert self.bench.instance.view() == before
        self._check(before, self.bench.effects[seen:])
        if happening[0] in REPORTS and self._is_stale(before, *happening[1:3]):
            assert self.bench.instance.view() == before

    def _is_stale(self, view, engine, offset):
        epoch = view.engine(engine).epoch
        return max(0, epoch + offset) != epoch

    def _happens(self, command_id, what, engine, offset, about):
        bench = self.bench
        match what:
            case "faulted" | "paused_by_fault":
                epoch = max(0, bench.view(engine).epoch + offset)
                getattr(bench, what)(engine, epoch=epoch, fault=a_fault(engine, fault_class=about))
            case "paused":
                bench.paused(engine, epoch=max(0, bench.view(engine).epoch + offset), broken=about)
            case "recovered" | "aborted":
                getattr(bench, what)(engine, epoch=max(0, bench.view(engine).epoch + offset))
            case "group paused" | "group recovered" | "group aborted":
                for each in (engine, *bench.view(engine).lockstep_with):
                    getattr(bench, what.removeprefix("group "))(each)
            case "tick":
                bench.tick(engine)
            case _:
                self._order(command_id, what, engine)
                self.accepted.append(command_id)

    def _order(self, command_id, what, engine):
        engines = () if engine is None else (engine,)
        match what:
            case "retry":
                self.bench.retry(command_id, engine)
            case "resume":
                self.bench.resume(command_id, *engines)
            case "arm":
                self.bench.arm(command_id, InjectionSpec(phase=SPEC.phase, engine_id=engine))
            case _:
                self.bench.pause(command_id, *engines, soft=what == "soft pause")

    def _check(self, view, effects):
        for effect in effects:
            match effect:
                case Publish():
                    view = effect.view
                case LeaveOut(engine_id):
                    assert (engine_id,) in GROUPS, "nobody waits for one that is left out"
                    self.epochs[engine_id,] = 0
                case BeginRecovery(engine_ids=group, epoch=epoch):
                    assert group in GROUPS, "a group recovers whole"
                    assert {view.engine(e).state for e in group} == {EngineState.PAUSED}, "only who stands recovers"
                    assert epoch == self.epochs[group] + 1, "an epoch is used once"
                    self.epochs[group] = epoch
                case Send(engine_id, m.PauseEngine(epoch=epoch)):
                    assert epoch == next(self.epochs[g] for g in GROUPS if engine_id in g), "no pause is void"
        for group in GROUPS:
            assert {self.bench.view(e).epoch for e in group} == {self.epochs[group]}
            states = {self.bench.view(e).state for e in group}
            assert not (states & STANDING and EngineState.HEALTHY in states), "nobody runs on beside one that stands"

    def wait(self):
        """Nothing more happens: every wait ends."""
        for _ in range(40):
            self.bench.tick(10.0)
        for _ in range(6):
            self.bench.tick(AUTO.worker_start_timeout_s + 250.0)  # a new process may take that long

    def is_over(self, group):
        views = [self.bench.view(e) for e in group]
        healthy = all(v.state in (EngineState.HEALTHY, EngineState.LEFT_OUT) for v in views)
        by_operator = all(v.state is EngineState.PAUSED and v.paused_by_operator for v in views)
        return healthy or by_operator or self.bench.defeat is not None


@settings(max_examples=60, deadline=None)
@given(told=st.lists(HAPPENINGS, min_size=12, max_size=30), config=st.sampled_from([AUTO, EXTERNAL]))
def test_whatever_happens_a_group_stands_and_goes_on_as_one_and_every_story_ends(told, config):
    story = Story(config)
    for number, happening in enumerate(told):
        story.tell(number, happening)
    story.wait()
    bench = story.bench
    own = {o.command_id for o in orders(bench)} - set(story.accepted)
    assert sorted(s.command_id for s in bench.all(Settle)) == sorted([*story.accepted, *own]), "each is settled once"
    assert all(story.is_over(group) for group in GROUPS)
    assert len(bench.all(End)) == (bench.defeat is not None)
    assert [e.sequence for e in bench.events] == list(range(1, len(bench.events) + 1))
