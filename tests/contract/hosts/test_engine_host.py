"""What an `EngineCoreSentinel` relies on of an `EngineHost`, for every host."""

from __future__ import annotations

import threading
import time

import pytest

from contract.hosts.rig import BLOCK_SIZE, LONG_S, PROMPT, RANKS
from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Phase
from holdfast.core.stalls.standing import NothingScheduled

ENGINE_PHASES = [
    Phase.SCHEDULE_START,
    Phase.SCHEDULE_END,
    Phase.OUTPUT_START,
    Phase.OUTPUT_REQUEST,
    Phase.OUTPUT_END,
]
WORKER_PHASES = [Phase.STEP_START, Phase.FORWARD, Phase.STEP_END, Phase.SAMPLE_START, Phase.SAMPLE_END]


def await_lost_worker(rig):
    deadline = time.monotonic() + LONG_S
    while not rig.engine.lost_ranks():
        assert time.monotonic() < deadline, "the death of a worker is not noticed"
        time.sleep(0.005)


# ---- what it says of itself


def test_without_faults_every_request_gets_its_tokens(rig):
    """An accepted request is unfinished until the last token was sent."""
    rig.add("a", 5)
    rig.add("b", 3, [7, 8, 9])
    assert rig.engine.unfinished_requests() == 2
    rig.run()
    assert rig.is_exact
    assert rig.engine.unfinished_requests() == 0


def test_an_engine_core_alone_shares_no_collectives(rig):
    """Without data-parallel peers there is no lockstep, nothing to break and nothing that cannot be rebuilt."""
    assert rig.engine.engine_id == 0
    assert rig.engine.in_lockstep is False
    assert rig.engine.pipeline_stages == 1
    assert rig.engine.break_collectives() == 0
    assert rig.engine.unrebuildable() == ()


def test_on_a_cpu_without_a_compiler_no_step_compiles_and_no_device_tells_of_its_health(rig):
    """Stall detection is off here: no device is observed."""
    assert rig.engine.compiles_in_steps is False
    assert rig.engine.devices is None


def test_without_a_coordinator_there_is_nobody_to_introduce_to(rig):
    """The introduction may come at any time, and changes nothing in the engine core."""
    rig.add("a")
    rig.engine.introduce_to_coordinator()
    rig.run()
    assert rig.is_exact


# ---- interrupts


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_an_interrupt_ends_the_busy_loop_at_the_next_step_boundary(rig, busy):
    """The busy loop raises, whether busy or idle, and `is_interrupt` knows the error."""
    if busy:
        rig.add("a", 20)
        rig.step()
    thread = threading.Thread(target=rig.engine.interrupt)
    thread.start()
    thread.join(LONG_S)
    with pytest.raises(Exception) as raised:
        rig.step()
    assert rig.engine.is_interrupt(raised.value)
    assert not rig.engine.is_workers_reply(raised.value)


def test_a_recovery_takes_back_the_interrupts_before_it(rig):
    """Two interrupts end the busy loop once: after the recovery steps run again."""
    rig.add("a", 20)
    rig.step()
    rig.engine.interrupt()
    rig.engine.interrupt()
    rig.recover(rig.failing_step())
    rig.run()
    assert rig.is_exact


def test_the_reply_of_a_step_whose_collectives_were_broken_is_not_delivered(rig):
    """Another rank has reported a fault meanwhile: the busy loop ends as interrupted, and the step is repeated."""
    rig.add("a", 8)
    rig.step()
    sent = list(rig.answers["a"])
    rig.engine.break_collectives()
    error = rig.failing_step()
    assert rig.engine.is_interrupt(error)
    assert rig.answers["a"] == sent
    rig.recover(error)
    rig.run()
    assert rig.is_exact


# ---- faults


@pytest.mark.parametrize("phase", ENGINE_PHASES)
@pytest.mark.parametrize("after_steps", [0, 1, 3])
def test_after_a_fault_of_the_engine_core_no_token_is_lost_repeated_or_changed(rig, phase, after_steps):
    """An armed fault goes off once, is taken for no worker's reply and no interrupt, and costs no token."""
    rig.add("a", 8)
    rig.add("b", 6, [7, 8, 9])
    rig.arm(phase, after_steps=after_steps)
    error = rig.failing_step()
    assert not rig.engine.is_workers_reply(error)
    assert not rig.engine.is_interrupt(error)
    begun = sum(standing.reached > 0 for standing in rig.requests.request_progress().values())
    assert rig.recover(error).requests == begun
    rig.run()
    assert rig.is_exact


@pytest.mark.parametrize("phase", WORKER_PHASES)
@pytest.mark.parametrize("rank", range(RANKS))
def test_after_a_fault_of_a_rank_no_token_is_lost_repeated_or_changed(rig, phase, rank):
    """The busy loop raises the text of a worker's error; after the recovery every rank takes steps again."""
    rig.add("a", 8)
    rig.add("b", 6, [7, 8, 9])
    rig.arm(phase, rank=rank, after_steps=2)
    error = rig.failing_step()
    assert rig.engine.is_workers_reply(error)
    assert not rig.engine.is_interrupt(error)
    rig.recover(error)
    rig.run()
    assert rig.is_exact


def test_good_kv_is_kept_and_the_report_counts_it(rig):
    """A decoding request keeps the blocks that were written and recomputes only the last token."""
    rig.add("a", 8)
    for _ in range(3):
        rig.step()
    rig.arm(Phase.FORWARD, rank=1)
    report = rig.recover(rig.failing_step())
    assert report.requests == 1
    assert report.kept_blocks == -(-len(PROMPT) // BLOCK_SIZE)
    assert report.tokens_to_recompute == 1
    assert report.replaced_ranks == ()
    rig.run()
    assert rig.is_exact


def test_suspect_kv_leaves_the_prefix_cache(rig):
    """A prompt that no rank has finished writing is no prefix for the next request."""
    rig.add("a", 8)
    rig.arm(Phase.FORWARD, rank=1)
    report = rig.recover(rig.failing_step())
    assert report.evicted_blocks == len(PROMPT) // BLOCK_SIZE
    assert report.kept_blocks == 0
    rig.requests.end("a", "so that b is the first to have this prompt")
    rig.add("b", 8)
    rig.run()
    assert rig.is_exact


def test_blocks_that_left_with_a_request_in_flight_are_suspect(rig):
    """The blocks of a request that ended with a step in flight are no prefix either."""
    rig.add("a", 8)
    rig.arm(Phase.FORWARD, rank=1)
    error = rig.failing_step()
    rig.requests.end("a", "while its step is in flight")
    rig.recover(error)
    rig.add("b", 8)
    rig.run()
    assert rig.is_exact


def test_outputs_that_were_computed_and_not_sent_are_salvaged(rig):
    """A fault behind the outputs of a step loses none of them, and the report counts them."""
    rig.add("a", 8)
    rig.add("b", 8, [7, 8, 9])
    rig.arm(Phase.OUTPUT_END)
    error = rig.failing_step()
    assert rig.answers == {"a": [], "b": []}
    assert rig.recover(error).salvaged_outputs == 2
    assert [len(tokens) for tokens in rig.answers.values()] == [1, 1]
    rig.run()
    assert rig.is_exact


@pytest.mark.parametrize("phase", [Phase.RECOVERY, Phase.REBUILD, Phase.RESUME])
def test_a_recovery_that_raises_may_be_tried_again(rig, phase):
    """A fault during a recovery raises, and the next recovery in a newer epoch works."""
    rig.add("a", 8)
    rig.step()
    rig.arm(Phase.FORWARD, rank=1)
    error = rig.failing_step()
    rig.arm(phase, rank=1 if phase.in_worker else 0)
    with pytest.raises(Exception):  # noqa: B017 - each host's own
        rig.recover(error)
    rig.recover(error)
    rig.run()
    assert rig.is_exact


def test_without_a_rendezvous_collectives_that_were_not_broken_serve_on(rig):
    """A fault of the engine core alone is recovered from without rebuilding collectives."""
    rig.add("a", 8)
    rig.step()
    rig.arm(Phase.SCHEDULE_START)
    rig.engine.recover(rig.failing_step(), 1, None)
    rig.run()
    assert rig.is_exact


def test_settings_may_change_while_requests_run(rig):
    """A recovery that begins later follows the new settings, and costs no token."""
    rig.add("a", 8)
    rig.step()
    rig.engine.configure(HoldfastConfig(drain_timeout_s=LONG_S, rebuild_timeout_s=LONG_S))
    rig.arm(Phase.FORWARD, rank=1)
    rig.recover(rig.failing_step())
    rig.run()
    assert rig.is_exact


# ---- ranks that are replaced


def test_a_killed_rank_is_noticed_and_its_place_is_taken(rig):
    """A recovery replaces every rank whose process is gone, named or not; no KV is good after a replacement."""
    rig.add("a", 8)
    for _ in range(3):
        rig.step()
    assert rig.engine.lost_ranks() == ()
    rig.engine.kill_rank(1)
    await_lost_worker(rig)
    assert rig.engine.lost_ranks() == (1,)
    report = rig.recover(rig.failing_step())
    assert report.replaced_ranks == (1,)
    assert report.kept_blocks == 0
    assert report.tokens_to_recompute == len(PROMPT) + len(rig.answers["a"])
    assert rig.engine.lost_ranks() == ()
    rig.run()
    assert rig.is_exact


def test_an_error_after_the_loss_of_a_rank_is_no_interrupt(rig):
    """A busy loop that ends because a worker is gone was not told to."""
    rig.add("a", 8)
    rig.step()
    rig.engine.kill_rank(1)
    await_lost_worker(rig)
    assert not rig.engine.is_interrupt(rig.failing_step())


def test_ranks_that_live_are_replaced_when_they_are_named(rig):
    """A named rank gets a new process, and the requests go on behind the tokens that were sent."""
    rig.add("a", 8)
    rig.add("b", 6, [7, 8, 9])
    for _ in range(3):
        rig.step()
    rig.engine.interrupt()
    report = rig.recover(rig.failing_step(), replace=(0,))
    assert report.replaced_ranks == (0,)
    assert report.kept_blocks == 0
    rig.run()
    assert rig.is_exact


# ---- clients


def test_nothing_more_is_computed_for_a_client_that_is_gone(rig):
    """The requests of a lost API server are dropped before the next step; other requests go on."""
    rig.add("a", 20, client_index=1)
    rig.add("b", 6, [7, 8, 9], client_index=2)
    rig.step()
    thread = threading.Thread(target=rig.engine.drop_requests_of, args=(1,))
    thread.start()
    thread.join(LONG_S)
    rig.step()
    sent = list(rig.answers["a"])
    assert list(rig.requests.request_progress()) == ["b"]
    rig.run()
    assert rig.answers["a"] == sent
    assert rig.answers["b"] == rig.expected("b")


# ---- an engine core that has work and schedules nothing


def test_turns_of_the_scheduler_and_steps_are_counted(rig):
    """A request is ready until it ends; each step counts once its outputs are processed."""
    rig.add("a", 3)
    assert rig.engine.ready_requests() == 1
    before = rig.engine.planning()
    rig.run()
    after = rig.engine.planning()
    assert after.steps - before.steps >= 3
    assert after.turns - before.turns >= after.steps - before.steps
    assert rig.engine.ready_requests() == 0


def test_after_such_a_fault_no_request_keeps_kv_and_every_request_gets_its_tokens(rig):
    """KV that waiting requests hold may be what keeps the others out."""
    rig.add("a", 5)
    rig.add("b", 5, [7, 8, 9])
    for _ in range(2):
        rig.step()
    report = rig.recover(NothingScheduled(2, 10.0))
    assert (report.requests, report.kept_blocks) == (2, 0)
    rig.run()
    assert rig.is_exact
