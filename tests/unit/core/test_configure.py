"""Settings that an operator changes while the server runs."""

import pytest

from holdfast.core.config import HoldfastConfig, changeable_keys, known_keys, runtime_settings
from holdfast.core.errors import BadCommand, CommandConflict
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Publish, Send, Settle
from holdfast.core.protocol.events import EventKind
from support.instance_bench import AUTO, EXTERNAL, Bench, a_loss, kinds

FIXED = [key for key in known_keys() if key not in changeable_keys()]


def in_force(bench):
    return bench.instance.view().settings


def test_a_change_is_in_force_at_once_and_ends_its_command():
    bench = Bench(AUTO)
    effects = bench.configure("c", max_retries=1, retry_window=5)
    assert (in_force(bench).max_retries, in_force(bench).retry_window_s) == (1, 5.0)
    assert effects[-1] == Settle("c")


def test_the_event_tells_old_and_new_values():
    bench = Bench(AUTO)
    bench.configure("c", max_retries=1, fault_policy="external")
    event = bench.events[-1]
    assert (event.kind, event.engine_id, event.process, event.command_id) == (EventKind.CONFIGURED, None, None, "c")
    assert [(c.name, c.old, c.new) for c in event.changes] == [
        ("fault_policy", "auto", "external"),
        ("max_retries", 3, 1),
    ]
    assert event.reason == "fault_policy auto -> external; max_retries 3 -> 1"


def test_a_budget_that_is_changed_counts_for_the_next_fault():
    bench = Bench(AUTO)
    bench.configure(max_retries=0, max_worker_restarts=0)
    bench.faulted()
    bench.paused_by_fault()
    assert "--max-retries 0" in bench.defeat


def test_every_engine_core_that_is_there_hears_of_it():
    bench = Bench(AUTO, engines=(0, 1))
    told = [e for e in bench.configure(drain_timeout=2) if isinstance(e, Send)]
    assert told == [Send(i, m.ChangeSettings(settings=in_force(bench))) for i in (0, 1)]


def test_a_replacement_of_an_engine_core_hears_of_it_before_anything_else():
    bench = Bench(HoldfastConfig(fault_policy="auto"))
    bench.configure(drain_timeout=2)
    bench.lost()
    bench.configure(rebuild_timeout=3)
    assert bench.attached(pid=9)[0] == Send(0, m.ChangeSettings(settings=in_force(bench)))
    assert in_force(bench).drain_timeout_s == 2.0
    assert in_force(bench).rebuild_timeout_s == 3.0


def test_nothing_is_sent_to_a_new_engine_core_while_the_settings_are_those_of_the_start():
    bench = Bench(AUTO)
    assert not bench.all(Send)


def test_a_group_that_waits_for_a_command_goes_on_once_the_policy_is_auto():
    bench = Bench(EXTERNAL)
    bench.faulted()
    bench.paused_by_fault()
    assert bench.states(0) == ["paused"]
    effects = bench.configure("c", fault_policy="auto")
    assert kinds(effects) == [
        "Send",
        "configured",
        "decision-made",
        "BeginRecovery",
        "recovery-started",
        "Settle",
    ]
    bench.recovered()
    assert bench.states(0) == ["healthy"]


def test_a_fault_after_the_change_to_external_waits():
    bench = Bench(AUTO)
    bench.configure(fault_policy="external", engine_recovery_timeout=7)
    bench.faulted()
    bench.paused_by_fault()
    assert "waiting up to 7 s" in bench.view().reason


def test_a_wait_for_a_command_begins_anew_with_a_change():
    bench = Bench(EXTERNAL)
    bench.faulted()
    bench.paused_by_fault()
    bench.tick(100.0)
    bench.configure(engine_recovery_timeout=30)
    bench.tick(29.0)
    assert bench.defeat is None
    bench.tick(1.0)
    assert "--engine-recovery-timeout" in bench.defeat


def test_a_group_that_the_operator_paused_stays_paused():
    bench = Bench(AUTO)
    bench.pause("p", 0)
    bench.paused()
    before = len(bench.events)
    bench.configure(max_retries=9)
    assert bench.states(0) == ["paused"]
    assert [e.kind for e in bench.events[before:]] == [EventKind.CONFIGURED]


def test_an_engine_core_that_was_left_out_is_tried_again_under_the_new_window():
    bench = Bench(HoldfastConfig(max_engine_restarts=1, engine_restart_window_s=600.0), engines=(0, 1))
    bench.lost()
    bench.lost()
    assert bench.states(0) == ["left-out"]
    bench.tick(10.0)
    assert bench.states(0) == ["left-out"]
    bench.configure(engine_restart_window=5)
    bench.tick()
    assert bench.states(0) == ["restarting"]


def test_a_worker_restart_budget_is_given_back_by_a_change():
    bench = Bench(HoldfastConfig(max_worker_restarts=0, max_engine_restarts=0, fault_policy="external"))
    bench.configure(max_worker_restarts=5, fault_policy="auto")
    bench.faulted(fault=a_loss())
    bench.paused_by_fault(fault=a_loss())
    assert bench.defeat is None
    assert bench.states(0) == ["recovering"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "no setting is named"),
        ({"max_retrys": 3}, "did you mean 'max_retries'"),
        ({"max_retries": -1}, r"\$\.max_retries"),
        ({"max_retries": "many"}, r"\$\.max_retries"),
        ({"fault_policy": "sometimes"}, r"\$\.fault_policy"),
        ({"external_fallback": "auto"}, "it goes with external"),
        ({"max_ranks_out": "half"}, "max_ranks_out"),
        ({"max_retries": 5, "drain_timeout": 0}, r"\$\.drain_timeout"),
        *(({key: 1}, f"{key} is fixed at the start of the server .can be changed: fault_policy") for key in FIXED),
        ({"runtime_dir": "/tmp"}, "unknown setting 'runtime_dir'"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_and_changes_nothing(settings, says):
    bench = Bench(AUTO)
    before = bench.instance.view()
    with pytest.raises(BadCommand, match=says):
        bench.configure(**settings)
    assert bench.instance.view() == before
    assert in_force(bench) == runtime_settings(AUTO)


def test_after_the_end_nothing_is_changed():
    bench = Bench(AUTO)
    bench.lost()
    assert bench.defeat
    with pytest.raises(CommandConflict):
        bench.configure(max_retries=1)


def test_the_view_of_every_event_has_the_settings_in_force():
    bench = Bench(AUTO)
    bench.configure(max_retries=1)
    bench.faulted()
    views = [e.view for e in bench.effects if isinstance(e, Publish)]
    assert [v.settings.max_retries for v in views] == [3, 1, 1]


def test_the_configuration_in_force_is_the_one_with_the_changes():
    bench = Bench()
    bench.configure(max_retries=7)
    assert (bench.instance.config.max_retries, bench.instance.config.retry_window_s) == (7, AUTO.retry_window_s)
