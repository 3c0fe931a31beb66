"""Commands that are not applicable now: the whole sentence that an operator reads, and the state that it names."""

import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import BadCommand, CommandConflict, UnknownEngine
from holdfast.core.protocol.commands import RestartEngine
from holdfast.core.protocol.events import EventKind
from support.instance_bench import AUTO, EXTERNAL, NO_RESTARTS, Bench

CANNOT = ("the shared-memory ring",)


def conflict(do):
    """Return the sentence and the state of a command that is in conflict with the present state."""
    with pytest.raises(CommandConflict) as caught:
        do()
    return str(caught.value), caught.value.state.value


def paused(config=EXTERNAL, **about):
    bench = Bench(config, **about)
    bench.faulted()
    bench.paused_by_fault()
    return bench


def restart_engine(bench, command_id="e", engine=0, unrecoverable_reason=""):
    command = RestartEngine(command_id=command_id, engine_id=engine)
    return bench.did(bench.instance.submit(command, bench.now, unrecoverable_reason))


def test_a_retry_of_a_healthy_engine_core_is_refused():
    assert conflict(Bench().retry) == (
        "engine 0 is healthy, there is nothing to retry (retry makes sense while an engine is paused)",
        "healthy",
    )


def test_a_resumption_of_a_healthy_engine_core_is_refused():
    assert conflict(Bench().resume) == (
        "engine 0 is healthy, there is nothing to resume (resume makes sense while an engine is paused)",
        "healthy",
    )


def test_a_second_recovery_is_refused_while_the_first_is_under_way():
    bench = paused()
    bench.retry("first")
    assert conflict(lambda: bench.retry("second")) == (
        "command first is already under way on engine 0 (wait for it to end; GET /fault_tolerance/status shows it)",
        "recovering",
    )


def test_a_pause_after_a_fault_is_retried_and_not_resumed():
    assert conflict(paused().resume) == ("engine 0 is paused after a fault, not by operator (use retry)", "paused")


def test_an_engine_core_that_is_not_healthy_cannot_be_paused():
    assert conflict(paused().pause) == (
        "engine 0 is paused, it cannot be paused now "
        "(pause makes sense while every engine of the lockstep group is healthy)",
        "paused",
    )


@pytest.mark.parametrize("state", ["starting", "restarting"])
def test_an_engine_core_that_starts_anyway_cannot_be_restarted(state):
    bench = Bench(EXTERNAL, attached=state == "restarting")
    if state == "restarting":
        restart_engine(bench, "first")
    assert conflict(lambda: restart_engine(bench, "second")) == (
        f"engine core 0 is {state} already (wait until it is healthy)",
        state,
    )


def test_an_engine_core_that_recovers_cannot_be_restarted():
    bench = paused()
    bench.retry("first")
    assert conflict(lambda: restart_engine(bench)) == (
        "command first is already under way on engine core 0 (wait for it to end)",
        "recovering",
    )


def test_an_engine_core_without_a_possible_replacement_cannot_be_restarted():
    bench = Bench()
    assert conflict(lambda: restart_engine(bench, unrecoverable_reason="the host is too old")) == (
        "engine core 0 cannot be replaced: the host is too old",
        "healthy",
    )


def test_an_engine_core_of_a_group_that_cannot_be_rebuilt_cannot_be_restarted():
    bench = Bench(groups=[(0, 1)], attached=False)
    bench.attached(0, unrebuildable=CANNOT, ranks=2)
    bench.attached(1, unrebuildable=("a second ring",))
    assert conflict(lambda: restart_engine(bench)) == (
        "engine core 0 cannot be replaced: the shared-memory ring; a second ring",
        "healthy",
    )
    assert conflict(lambda: restart_engine(bench, unrecoverable_reason="the host is too old")) == (
        "engine core 0 cannot be replaced: the host is too old",
        "healthy",
    )


@pytest.mark.parametrize(("groups", "hint"), [([(0,)], " (a soft pause breaks nothing)"), ([(0, 1)], "")])
def test_a_group_that_could_not_resume_is_not_paused(groups, hint):
    bench = Bench(groups=groups, attached=False)
    bench.attached(0, unrebuildable=CANNOT, ranks=2)
    if len(groups[0]) > 1:
        bench.attached(1, unrebuildable=("a second ring",), ranks=2)
    what = "; ".join((*CANNOT, "a second ring")[: len(groups[0])])
    assert conflict(bench.pause) == (
        "engine 0 could not resume after a pause: its collectives would be broken and cannot be rebuilt in place "
        f"({what}){hint}",
        "healthy",
    )


def test_the_workers_of_a_group_that_could_not_resume_are_not_restarted():
    bench = Bench(attached=False)
    bench.attached(0, unrebuildable=CANNOT, ranks=2)
    sentence, _ = conflict(bench.restart_workers)
    assert sentence.startswith("engine 0 could not resume after a pause")


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_does_not_exist_is_not_restarted(rank):
    bench = Bench(attached=False)
    bench.attached(0, ranks=2)
    with pytest.raises(BadCommand) as caught:
        bench.restart_workers(ranks=(0, rank))
    assert str(caught.value) == f"engine 0 has no rank {rank} (it has ranks 0 to 1)"


def test_an_engine_core_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(UnknownEngine) as caught:
        Bench(engines=(0, 1)).pause("p", 7)
    assert str(caught.value) == "there is no engine 7 (known: 0, 1)"


def test_a_command_after_the_end_is_refused_with_the_reason_of_the_end():
    bench = Bench(NO_RESTARTS)
    bench.lost()
    assert conflict(bench.pause) == (f"the instance has ended: {bench.defeat}", "dead")


def test_an_id_of_a_command_that_is_under_way_is_refused():
    sentence = "a command with the id same is already under way (every command needs an id of its own)"
    bench = Bench(AUTO)
    bench.arm("same")
    assert conflict(lambda: bench.pause("same")) == (sentence, "healthy")
    bench = Bench(AUTO)
    bench.pause("same")
    for again in (
        lambda: bench.configure("same", max_retries=1),
        lambda: bench.restart_workers("same"),
        lambda: restart_engine(bench, "same"),
        lambda: bench.arm("same"),
        lambda: bench.retry("same"),
    ):
        assert conflict(again) == (sentence, "pausing")


def test_an_engine_core_without_peers_is_restarted_although_its_collectives_cannot_be_rebuilt():
    bench = Bench(attached=False)
    bench.attached(0, unrebuildable=CANNOT, ranks=2)
    restart_engine(bench)
    assert bench.states(0) == ["restarting"]


def pause_reasons(bench):
    return [event.reason for event in bench.events if event.kind is EventKind.PAUSE_ORDERED]


def test_the_event_of_a_pause_says_what_ordered_it():
    bench = Bench()
    bench.pause()
    assert pause_reasons(bench) == ["ordered by operator"]
    bench = Bench()
    bench.restart_workers()
    assert pause_reasons(bench) == ["workers are to be restarted"]
    bench = Bench(groups=[(0, 1)])
    bench.faulted(1)
    assert pause_reasons(bench) == ["engine 1 of the same lockstep group has stopped"]


def test_an_engine_core_that_does_not_pause_for_a_restart_of_its_workers_is_given_up_in_time():
    bench = Bench(HoldfastConfig(max_engine_restarts=0, containment_timeout_s=30.0))
    bench.restart_workers()
    bench.tick(29.0)
    assert bench.defeat is None
    bench.tick(1.0)
    assert bench.defeat.startswith("engine 0 was told to pause and did not pause within 30 s; ")


def test_a_change_of_settings_that_cannot_be_made_is_refused_with_the_sentence_of_the_settings():
    bench = Bench(HoldfastConfig())
    with pytest.raises(BadCommand) as caught:
        bench.configure("c", max_retrys=1)
    assert str(caught.value) == "unknown setting 'max_retrys' (did you mean 'max_retries'?)"


def test_a_change_to_the_same_values_says_that_nothing_differs():
    bench = Bench(HoldfastConfig())
    bench.configure("c", max_retries=10)
    assert (bench.events[-1].reason, bench.events[-1].changes) == ("nothing differs", ())
