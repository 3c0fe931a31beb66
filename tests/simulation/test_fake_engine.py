"""The pretend engine tells right from wrong: whoever reads KV that was never written gets another token."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.faults.classification import default_classifier
from holdfast.core.faults.faults import Fault, FaultClass, Phase
from holdfast.core.faults.injection import InjectedFault, InjectionSpec
from holdfast.core.ports import EngineHost, WorkerHost
from holdfast.hosts.fake import EngineOptions, FakeEngineCore, WorkerFailed, fault_free_output
from holdfast.hosts.fake.blocks import BlockPool
from holdfast.hosts.fake.model import KVMemory

PROMPTS = {"a": range(1, 14), "b": range(1, 10), "c": [7, 7, 7], "d": [*range(1, 13), 99, 98]}
LENGTHS = {"a": 9, "b": 12, "c": 15, "d": 6}
SYNC = EngineOptions()
ASYNC = EngineOptions(steps_in_flight=2)
TIGHT = EngineOptions(blocks=9, steps_in_flight=2, max_running=3)
TWO_RANKS = EngineOptions(ranks=2, steps_in_flight=2, step_tokens=7)
IN_RECOVERY = (Phase.RECOVERY, Phase.REBUILD, Phase.RESUME)
ALL = [SYNC, ASYNC, TIGHT, TWO_RANKS]


class Reports(list):
    def report(self, fault, epoch, *, finishes=False):
        self.append((fault, epoch))


class Driver:
    """An engine core, retried at once whenever it raises; what its clients have got so far."""

    def __init__(self, options, prompts=PROMPTS, lengths=LENGTHS):
        self.reports = Reports()
        self.engine = FakeEngineCore(0, options, self.reports)
        self.got = {name: [] for name in prompts}
        self.expected = {n: fault_free_output(list(p), lengths[n], options.ranks) for n, p in prompts.items()}
        self.errors, self.recoveries, self.epoch = [], [], 0
        for name, prompt in prompts.items():
            self.engine.add(name, list(prompt), lengths[name])

    def turn(self):
        """One step, recovered from if it raises; false when there is nothing left to do."""
        try:
            busy = self.engine.step()
        except (InjectedFault, WorkerFailed) as error:
            busy = True
            self.errors.append(error)
            self._recover(error)
        for output in self.engine.take_outputs():
            self.got[output.request_id].append(output.token)
        return busy

    def run(self):
        turns = 0
        while self.turn():
            turns += 1
            assert turns < 3000, "it never ends"
        return self.got

    def _recover(self, error):
        while True:
            self.epoch += 1
            try:
                self.recoveries.append(self.engine.recover(error, self.epoch, None))
                return
            except InjectedFault as again:
                self.errors.append(again)

    def arm(self, phase, after_steps=0, times=1, rank=0, request_index=1):
        spec = InjectionSpec(phase=phase, after_steps=after_steps, times=times, rank=rank, request_index=request_index)
        (self.engine.workers[rank] if phase.in_worker else self.engine).arm(spec)


def test_it_implements_the_ports():
    engine: EngineHost = Driver(SYNC).engine
    worker: WorkerHost = engine.workers[0]
    assert (engine.engine_id, engine.unfinished_requests(), engine.lost_ranks()) == (0, 4, ())
    assert worker.rank == 0


@pytest.mark.parametrize("options", ALL)
def test_without_faults_batches_blocks_and_preemption_change_no_token(options):
    driver = Driver(options)
    assert driver.run() == driver.expected
    assert driver.engine.unfinished_requests() == 0


@pytest.mark.parametrize("options", ALL)
@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("after_steps", range(6))
def test_a_fault_at_any_phase_of_any_step_changes_no_token(options, phase, after_steps):
    driver = Driver(options)
    driver.arm(phase, after_steps, rank=options.ranks - 1)
    if phase in IN_RECOVERY:
        driver.arm(Phase.FORWARD, after_steps)
        driver.arm(Phase.FORWARD, after_steps + 7, times=2)
    assert driver.run() == driver.expected
    assert driver.errors or phase in (Phase.OUTPUT_REQUEST, Phase.DP_SYNC, *IN_RECOVERY)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), options=st.sampled_from(ALL), block_size=st.sampled_from([1, 2, 4, 5]))
def test_any_faults_and_aborts_change_no_token_of_those_that_stay(data, options, block_size):
    driver = Driver(replace(options, block_size=block_size, blocks=options.blocks * 4 // block_size + 2))
    for _ in range(data.draw(st.integers(1, 6), "faults")):
        driver.arm(
            data.draw(st.sampled_from(Phase)),
            data.draw(st.integers(0, 25)),
            times=data.draw(st.integers(1, 3)),
            rank=data.draw(st.integers(0, options.ranks - 1)),
            request_index=data.draw(st.integers(0, 3)),
        )
    abort, at = data.draw(st.sampled_from(["nobody", *PROMPTS])), data.draw(st.integers(0, 12))
    for _ in range(at):
        driver.turn()
    driver.engine.abort(abort)
    driver.run()
    for name, tokens in driver.got.items():
        expected = driver.expected[name]
        assert tokens == (expected[: len(tokens)] if name == abort else expected)


@pytest.mark.parametrize("options", ALL)
def test_leaving_suspect_blocks_in_the_prefix_cache_gives_wrong_tokens(options):
    """The armed is real, and this engine shows it: the checks above are not empty."""
    options = replace(options, unsafe_keep_suspect_blocks=True, blocks=32)
    driver = Driver(options, prompts={"a": range(1, 14)}, lengths={"a": 5})
    driver.arm(Phase.STEP_START)
    assert driver.run() != driver.expected
    driver.engine.add("a", list(range(1, 14)), 5)  # and so are those of the next client with that prompt
    assert driver.run()["a"][5:] != driver.expected["a"]


def test_who_hit_the_blocks_of_one_that_left_while_in_flight_does_not_trust_them():
    driver = Driver(ASYNC, prompts={"writer": range(1, 14)}, lengths={"writer": 5})
    driver.arm(Phase.STEP_START)
    driver.turn()  # the writer's step is with the workers, where it fails
    driver.engine.abort("writer")
    driver.engine.add("reader", list(range(1, 14)), 5)  # hits what the writer was to write
    driver.got["reader"] = []
    driver.run()
    assert driver.got == {"writer": [], "reader": driver.expected["writer"]}


def test_a_fault_costs_only_what_was_in_flight():
    driver = Driver(SYNC, prompts={"a": range(1, 14)}, lengths={"a": 9})
    driver.arm(Phase.STEP_START, after_steps=4)
    driver.run()
    assert [r.tokens_to_recompute for r in driver.recoveries] == [1]


def test_stale_replies_are_dropped_and_processed_outputs_sent():
    driver = Driver(ASYNC)
    driver.arm(Phase.FORWARD, after_steps=3)
    driver.arm(Phase.OUTPUT_END, after_steps=5)
    driver.run()
    assert [r.stale_replies for r in driver.recoveries] == [1, 1]
    assert driver.recoveries[0].salvaged_outputs == 0 < driver.recoveries[1].salvaged_outputs


def test_a_fenced_rank_refuses_every_step_until_it_is_let_back_in():
    driver = Driver(ASYNC)
    driver.arm(Phase.SAMPLE_START)
    assert driver.engine.step()
    with pytest.raises(WorkerFailed, match="injected fault"):
        driver.engine.step()
    with pytest.raises(WorkerFailed, match="rank 0 is fenced"):
        driver.engine.step()
    driver.engine.recover(RuntimeError(), 3, None)
    assert (driver.engine.workers[0].fenced, driver.engine.workers[0].epoch) == (False, 3)


def test_the_rank_that_raised_reports_it_once_and_its_peers_stay_silent():
    driver = Driver(TWO_RANKS)
    driver.arm(Phase.FORWARD, rank=1)
    driver.run()
    fault = Fault(
        fault_class=FaultClass.TRANSIENT,
        error_type="InjectedFault",
        message="injected fault",
        engine_id=0,
        rank=1,
        phase="forward",
        class_reason=default_classifier().of_error("InjectedFault", "").reason,
        place=driver.reports[0][0].place,
        stack=driver.reports[0][0].stack,
    )
    assert fault.place.startswith("hosts/fake/worker.py:")
    assert fault.stack[-1].startswith(fault.place)
    assert driver.reports == [(fault, 0)]


def test_a_worker_that_is_gone_fails_the_step_and_a_recovery_puts_another_in_its_place():
    driver = Driver(SYNC)
    driver.engine.workers[0].gone = True
    with pytest.raises(WorkerFailed) as caught:
        driver.engine.step()
    assert driver.engine.lost_ranks() == (0,)
    assert driver.engine.recover(caught.value, 1, None).replaced_ranks == (0,)
    assert driver.engine.lost_ranks() == ()


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("options", ALL)
def test_a_rank_that_dies_and_comes_back_with_an_empty_memory_changes_no_token(options, after):
    driver = Driver(options)
    for _ in range(after):
        driver.turn()
    driver.engine.kill_rank(options.ranks - 1)
    assert driver.run() == driver.expected
    assert [r.replaced_ranks for r in driver.recoveries] == [(options.ranks - 1,)]
    assert driver.recoveries[0].kept_blocks == 0  # what one rank lost is lost for all


@pytest.mark.parametrize("options", ALL)
def test_a_healthy_rank_that_is_replaced_on_command_changes_no_token(options):
    driver = Driver(options)
    for _ in range(4):
        driver.turn()
    driver.engine.interrupt()
    driver.epoch += 1
    report = driver.engine.recover(RuntimeError("told to stand still"), driver.epoch, None, (0,))
    assert report.replaced_ranks == (0,)
    assert driver.run() == driver.expected


def test_what_was_cached_before_a_rank_lost_its_memory_is_never_hit_later():
    driver = Driver(SYNC)
    driver.run()
    driver.engine.kill_rank(0)
    driver.engine.recover(RuntimeError("rank 0 is gone"), 1, None)
    driver.engine.add("again", list(PROMPTS["d"]), LENGTHS["d"])
    driver.got["again"] = []
    assert driver.run()["again"] == driver.expected["d"]


def test_without_eviction_the_empty_memory_of_a_new_rank_makes_tokens_wrong(monkeypatch):
    monkeypatch.setattr(BlockPool, "evict_all", lambda pool: 0)
    driver = Driver(SYNC)
    driver.run()
    driver.engine.kill_rank(0)
    driver.engine.recover(RuntimeError("rank 0 is gone"), 1, None)
    driver.engine.add("again", list(PROMPTS["d"]), LENGTHS["d"])
    driver.got["again"] = []
    assert driver.run()["again"] != driver.expected["d"]


def test_a_request_that_could_never_fit_is_refused_at_the_door():
    with pytest.raises(ValueError, match="do not fit"):
        Driver(TIGHT).engine.add("big", [1] * 30, 30)


@pytest.mark.parametrize("recomputes", [True, False])
def test_kv_that_was_spoilt_earlier_is_no_more_used_once_it_is_computed_anew(recomputes):
    driver = Driver(SYNC)
    for _ in range(6):
        driver.turn()
    driver.engine.workers[0].memory = KVMemory(0, SYNC.blocks, SYNC.block_size)
    driver.arm(Phase.STEP_START)
    driver.turn()
    for name in driver.engine.requests.request_progress() if recomputes else ():
        driver.engine.requests.recompute(name)
    assert (driver.run() == driver.expected) is recomputes
