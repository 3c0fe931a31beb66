"""Instructions to lockstep groups: resume and retry, over one group and over several."""

import pytest

from holdfast.core.errors import CommandConflict
from holdfast.core.protocol.commands import Retry
from holdfast.core.protocol.effects import BeginRecovery, Publish, Settle
from support.groups_bench import a_pair, orders, paused_after_a_fault, paused_by_operator, recovering, two_pairs
from support.instance_bench import AUTO, EXTERNAL, a_fault

# ---- resume and retry


def test_a_resume_lets_the_whole_group_go_on_and_is_no_retry():
    bench = paused_by_operator()
    for number in range(AUTO.max_retries + 2):
        bench.resume(f"resume-{number}", 1)
        bench.recovered(0)
        bench.recovered(1)
        bench.pause(f"pause-{number}", 0)
        bench.paused(0)
        bench.paused(1)
    assert [o.engine_ids for o in orders(bench)] == [(0, 1)] * (AUTO.max_retries + 2)
    assert bench.defeat is None


def test_a_resume_without_a_name_resumes_what_was_paused_by_operator_and_nothing_else():
    bench = paused_by_operator(EXTERNAL)
    bench.paused_by_fault(2)
    bench.resume("r")
    assert bench.states(0, 1, 2) == ["recovering", "recovering", "paused"]


def test_a_resume_of_what_runs_is_a_conflict():
    for engines in ((), (0,)):
        with pytest.raises(CommandConflict, match="is healthy, there is nothing to resume"):
            a_pair().resume("r", *engines)


def test_a_resume_of_what_still_comes_to_a_stand_is_a_conflict():
    bench = a_pair()
    bench.pause("p", 0)
    bench.paused(0)
    with pytest.raises(CommandConflict, match="engine 1 is pausing"):
        bench.resume("r", 0)


def test_a_resume_after_a_fault_is_a_conflict_that_names_retry():
    with pytest.raises(CommandConflict, match="use retry"):
        paused_after_a_fault().resume("r", 1)


def test_a_retry_lets_go_on_what_was_paused_by_operator():
    bench = paused_by_operator()
    bench.retry("retry", 0)
    assert bench.view(0).paused_by_operator is False
    bench.recovered(0)
    assert bench.recovered(1)[-1] == Settle("retry")


def test_a_retry_of_one_engine_is_a_retry_of_its_group():
    bench = paused_after_a_fault()
    bench.retry("cmd", 1)
    assert orders(bench) == [BeginRecovery((0, 1), "cmd", 1, rebuild=True)]


def test_a_retry_before_the_peer_stands_is_a_conflict_that_names_the_peer():
    bench = a_pair(EXTERNAL)
    bench.faulted(0)
    bench.paused_by_fault(0)
    with pytest.raises(CommandConflict, match="engine 1 is pausing, there is nothing to retry") as caught:
        bench.retry("cmd", 0)
    assert caught.value.state == "pausing"


def test_a_retry_while_one_side_still_recovers_is_a_conflict():
    bench = recovering(EXTERNAL)
    bench.aborted(0)
    with pytest.raises(CommandConflict, match="command cmd is already under way"):
        bench.retry("again", 0)


def test_a_pause_by_operator_whose_resume_fails_goes_the_way_of_every_fault():
    bench = paused_by_operator()
    bench.resume("r", 0)
    bench.aborted(0)
    assert bench.aborted(1)[2] == Settle("r", error=a_fault(0, "again").summary())
    assert [o.epoch for o in orders(bench)] == [1, 2]


# ---- over several groups


def both_pairs_paused(config=EXTERNAL):
    bench = two_pairs(config)
    for engine in (0, 2):
        bench.paused_by_fault(engine)
        bench.paused(engine + 1)
    return bench


def test_a_retry_of_several_groups_settles_once_when_the_last_is_done():
    bench = both_pairs_paused()
    bench.retry("all", None)
    assert [(o.engine_ids, o.command_id) for o in orders(bench)] == [((0, 1), "all"), ((2, 3), "all")]
    for engine in (0, 3, 1):
        bench.recovered(engine)
    assert bench.all(Settle) == []
    bench.recovered(2)
    assert bench.all(Settle) == [Settle("all")]


def test_a_retry_that_fails_on_one_of_several_groups_says_so_when_the_last_is_done():
    bench = both_pairs_paused()
    bench.retry("all", None)
    bench.aborted(0)
    bench.aborted(1)
    assert bench.all(Settle) == []
    bench.recovered(2)
    bench.recovered(3)
    assert bench.all(Settle) == [Settle("all", error=a_fault(0, "again").summary())]
    assert bench.states(0, 1, 2, 3) == ["paused", "paused", "healthy", "healthy"]


def test_a_pause_over_several_groups_settles_once_although_one_was_resumed_meanwhile():
    bench = two_pairs()
    bench.pause("p")
    bench.paused(0)
    bench.paused(1)
    bench.resume("r", 0)
    bench.recovered(0)
    bench.recovered(1)
    bench.paused(2)
    bench.paused(3)
    assert bench.all(Settle) == [Settle("r"), Settle("p")]


def test_of_several_groups_none_is_touched_when_one_cannot_follow():
    bench = two_pairs(EXTERNAL)
    bench.paused_by_fault(0)
    bench.paused(1)
    before = bench.instance.view()
    with pytest.raises(CommandConflict, match="engine 2 is healthy"):
        bench.submit(Retry(command_id="some", engine_ids=(0, 2)))
    assert bench.instance.view() == before


def test_each_group_has_an_epoch_and_retries_of_its_own():
    bench = two_pairs()
    for _ in range(2):
        bench.paused_by_fault(0)
        bench.paused(1)
        bench.recovered(0)
        bench.recovered(1)
    bench.paused_by_fault(3)
    decided = bench.paused(2)
    assert [bench.view(e).epoch for e in range(4)] == [2, 2, 1, 1]
    assert "retry 1 of 3" in next(e.event.reason for e in decided if isinstance(e, Publish) and e.event.reason)


def test_the_end_settles_commands_over_several_groups_once():
    bench = both_pairs_paused()
    bench.retry("all", None)
    bench.recovered(0)
    bench.lost(2)
    assert bench.defeat.startswith("engine core 2 was lost: killed by signal 9; with --fault-policy external")
    assert bench.all(Settle) == [Settle("all", error=bench.defeat)]
