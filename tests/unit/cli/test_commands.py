from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from holdfast.core.faults.faults import Phase
from holdfast.core.poison.memory import FoundGuilty, GuiltKind
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import Pause
from holdfast.core.protocol.link_messages import GuiltReported
from support.control_plane import MemoryControl, some_fault
from support.live_server import LiveServer

Run = Callable[..., Any]


def test_status_shows_the_engines_as_a_table(run: Run, control: MemoryControl) -> None:
    control.break_down()
    shown = run("status")
    assert shown.exit_code == 0
    assert "paused" in shown.stdout
    assert "InjectedFault in engine 0" in shown.stdout
    assert "not ready · policy external · 4 events · notifies at tcp://127.0.0.1:22867" in shown.stdout


@pytest.mark.parametrize(("rank", "where"), [(0, "engine 0, rank 0"), (None, "engine 0")])
def test_status_shows_full_texts_on_request(run: Run, control: MemoryControl, rank: int | None, where: str) -> None:
    secret = "the prompt of somebody"
    control.hold(0, msgspec.structs.replace(some_fault(), rank=rank, place="model.py:7 forward", full_text=secret))
    assert secret not in run("status").stdout
    shown = " ".join(run("status", "--full-texts").stdout.split())
    assert f"InjectedFault in {where} (model.py:7 forward): {secret}" in shown


def test_status_shows_a_defeat(run: Run, control: MemoryControl) -> None:
    control.defeat()
    assert "defeated: a rank did not answer in time" in run("status").stdout


def test_status_shows_who_is_in_lockstep_and_what_was_paused_by_operator(run: Run, server: LiveServer) -> None:
    server.control = MemoryControl(((0, 1), (2,))).attach()
    server.control.obedient = True
    server.control.submit(Pause(command_id="c0ffee", engine_ids=(0,)))
    rows = [" ".join(line.replace("│", " ").split()) for line in run("status").stdout.splitlines() if "4001" in line]
    assert [row[: row.index(" 0 1 ")] for row in rows] == [
        "0 1 unhealthy paused by operator",
        "1 0 unhealthy paused by operator",
        "2 – healthy healthy",
    ]


def test_status_says_once_what_cannot_be_rebuilt(run: Run, server: LiveServer) -> None:
    server.control = MemoryControl(((0, 1),)).attach(unrebuildable=("graphs are captured",))
    shown = run("status").stdout
    assert "collectives of engine 0, 1 cannot be rebuilt: graphs are captured" in shown
    assert shown.count("graphs are captured") == 1


def test_status_as_json_is_what_the_server_says(run: Run) -> None:
    status = json.loads(run("status", "--json").stdout)
    assert (status["schema_version"], status["ready"]) == (1, True)


def test_apply_waits_for_the_end(run: Run, control: MemoryControl) -> None:
    control.break_down()
    shown = run("apply", "retry", "--engine", "0", "--timeout", "5")
    assert (shown.exit_code, shown.stdout) == (0, "Instruction executed successfully.\n")
    assert control.view().ready


def test_apply_pauses_and_lets_go_on(run: Run, control: MemoryControl) -> None:
    for instruction, state in [("pause", "paused"), ("resume", "healthy")]:
        shown = run("apply", instruction)
        assert (shown.exit_code, shown.stdout) == (0, "Instruction executed successfully.\n")
        assert control.view().engines[0].state == state


@pytest.mark.parametrize(("options", "soft"), [((), False), (("--soft",), True)])
def test_apply_pauses_as_hard_as_it_was_told(
    run: Run, control: MemoryControl, options: tuple[str, ...], soft: bool
) -> None:
    run("apply", "pause", *options)
    order = control.sent[-1].message
    assert isinstance(order, m.PauseEngine)
    assert order.soft is soft


def test_apply_may_name_several_engines(run: Run, server: LiveServer) -> None:
    server.control = MemoryControl(((0,), (1,), (2,))).attach()
    server.control.obedient = True
    assert run("apply", "pause", "--engine", "2", "--engine", "0").exit_code == 0
    assert [e.state for e in server.control.view().engines] == ["paused", "healthy", "paused"]


def test_apply_of_a_soft_retry_is_a_usage_error_that_says_why(run: Run, control: MemoryControl) -> None:
    control.break_down()
    shown = run("apply", "retry", "--soft")
    assert (shown.exit_code, "retry cannot be soft" in shown.stderr) == (2, True)


def test_apply_configure_changes_settings(run: Run, control: MemoryControl) -> None:
    changes = ("--set", "max-retries=100", "--set", "fault_policy=auto", "--set", "retry_window=2.5")
    shown = run("apply", "configure", *changes)
    assert (shown.exit_code, shown.stdout) == (0, "Instruction executed successfully.\n")
    settings = control.view().settings
    assert (settings.max_retries, settings.fault_policy, settings.retry_window_s) == (100, "auto", 2.5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("max_retrys=1",), "did you mean 'max_retries'?"),
        (("max_retries=-1",), "$.max_retries"),
        (("check_logits=true",), "check_logits is fixed at the start of the server"),
        (("max_ranks_out=half",), "neither a number of ranks nor a share"),
        (("max_retries=1", "retry_window=soon"), "$.retry_window"),
    ],
)
def test_apply_configure_of_what_cannot_be_is_a_usage_error_and_changes_nothing(
    run: Run, control: MemoryControl, options: tuple[str, ...], says: str
) -> None:
    before = control.view()
    shown = run("apply", "configure", *(part for option in options for part in ("--set", option)))
    assert (shown.exit_code, says in shown.stderr) == (2, True)
    assert control.view() == before


def test_apply_of_what_makes_no_sense_now_is_refused_with_the_reason(run: Run) -> None:
    shown = run("apply", "retry")
    assert shown.exit_code == 1
    assert "engine 0 is healthy" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_apply_that_does_not_end_in_time_fails(run: Run, control: MemoryControl) -> None:
    control.obedient = False
    control.break_down()
    shown = run("apply", "retry", "--timeout", "0.01")
    assert shown.exit_code == 1
    assert "Failed to handle fault. not finished within 0.01 s (poll /fault_tolerance/status)" in shown.stderr


@pytest.mark.parametrize(
    "line",
    [
        ("apply",),
        ("apply", "explode"),
        ("apply", "retry", "--engine", "x"),
        ("apply", "retry", "--engine", "0", "--engine", "0"),
        ("apply", "retry", "--timeout", "0"),
        ("apply", "configure"),
        ("apply", "configure", "--set", "max_retries"),
        ("apply", "configure", "--set", "=3"),
        ("apply", "configure", "--set", "max_retries=3", "--engine", "0"),
        ("apply", "retry", "--set", "max_retries=3"),
    ],
)
def test_apply_asked_wrongly_is_a_usage_error(run: Run, line: tuple[str, ...]) -> None:
    assert run(*line).exit_code == 2


def test_events_are_one_line_each(run: Run, control: MemoryControl) -> None:
    control.break_down()
    lines = run("events").stdout.splitlines()
    assert len(lines) == 4
    assert lines[1].endswith("engine 0 faulted: InjectedFault in engine 0, rank 0 at forward: injected fault")


def test_events_say_who_is_told_to_pause_and_why(run: Run, server: LiveServer) -> None:
    server.control = MemoryControl(((0, 1),)).attach().break_down(0)
    shown = run("events").stdout
    assert "engine 1 is told to pause: engine 0 of the same lockstep group has stopped" in shown


def test_events_as_json_are_one_object_per_line(run: Run, control: MemoryControl) -> None:
    control.break_down()
    shown = run("events", "--json", "--after", "2").stdout
    assert [json.loads(line)["sequence"] for line in shown.splitlines()] == [3, 4]


def test_events_of_another_instance_are_shown_from_the_first_and_that_is_said(run: Run, control: MemoryControl) -> None:
    control.break_down()
    for life, count in ((control.view().instance_id, 1), ("0" * 32, 4)):
        shown = run("events", "--after", "3", "--instance-id", life)
        assert (shown.exit_code, len(shown.stdout.splitlines())) == (0, count)
        assert ("the server was restarted" in shown.stderr) is (count == 4)
    assert run("events", "--instance-id", "nonsense").exit_code == 2


def test_inject_orders_the_fault_as_it_was_given(run: Run, control: MemoryControl) -> None:
    line = "inject --phase output-request --after-steps 4 --times 2 --request-index 3 --message boom"
    shown = run(*line.split())
    order = control.sent[-1].message
    assert shown.exit_code == 0
    assert isinstance(order, m.ArmFault)
    spec = order.spec
    assert (spec.phase, spec.after_steps, spec.times, spec.request_index) == ("output-request", 4, 2, 3)
    assert spec.message == "boom"


@pytest.mark.parametrize("phase", Phase)
def test_inject_knows_every_phase(run: Run, control: MemoryControl, phase: Phase) -> None:
    assert run("inject", "--phase", phase).exit_code == 0
    order = control.sent[-1].message
    assert isinstance(order, m.ArmFault)
    assert order.spec.phase is phase


@pytest.mark.parametrize("line", ["", "--phase lunch", "--phase forward --times 0", "--phase forward --rank 5"])
def test_inject_asked_wrongly_is_a_usage_error(run: Run, line: str) -> None:
    assert run("inject", *line.split()).exit_code == 2


def test_inject_into_an_unknown_engine_is_refused(run: Run) -> None:
    shown = run("inject", "--phase", "forward", "--engine", "7")
    assert (shown.exit_code, "there is no engine 7" in shown.stderr) == (1, True)


# ---- servers that cannot be talked to

EVERY_COMMAND = pytest.mark.parametrize(
    "line", [("status",), ("events",), ("apply", "retry"), ("inject", "--phase", "forward")], ids=lambda line: line[0]
)


@EVERY_COMMAND
def test_a_server_that_is_not_there_is_one_line_and_exit_2(run: Run, closed_url: str, line: tuple[str, ...]) -> None:
    shown = run(*line, "--url", closed_url)
    assert shown.exit_code == 2
    assert shown.stderr.startswith(f"holdfast: cannot reach {closed_url}: ")
    assert shown.stderr.count("\n") == 1


@EVERY_COMMAND
@pytest.mark.parametrize("key", ["", "wrong", "ünï"])
def test_a_missing_or_wrong_token_is_one_line_and_exit_1(
    run: Run, server: LiveServer, line: tuple[str, ...], key: str
) -> None:
    shown = run(*line, "--url", server.guarded_url, HOLDFAST_API_KEY=key)
    assert shown.exit_code == 1
    assert "token" in shown.stderr
    assert shown.stderr.count("\n") == 1


@pytest.mark.parametrize("key", ["secret", " secret\n"])
def test_the_token_comes_from_the_environment(run: Run, server: LiveServer, key: str) -> None:
    assert run("status", HOLDFAST_URL=server.guarded_url, HOLDFAST_API_KEY=key).exit_code == 0


def test_the_token_comes_from_the_flag(run: Run, server: LiveServer) -> None:
    assert run("status", "--api-key", "secret", HOLDFAST_URL=server.guarded_url + "/").exit_code == 0


@EVERY_COMMAND
def test_a_server_without_holdfast_is_told_apart(run: Run, server: LiveServer, line: tuple[str, ...]) -> None:
    shown = run(*line, "--url", server.foreign_url)
    assert (shown.exit_code, "no control endpoints" in shown.stderr) == (2, True)


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://x", "http://", "http://[::1", "127.0.0.1:8000", "http://a b"])
def test_a_url_that_is_none_is_a_usage_error(run: Run, url: str) -> None:
    shown = run("status", "--url", url)
    assert shown.exit_code == 2
    assert shown.stderr.count("\n") == 1


def test_a_proxy_in_the_environment_is_not_asked_for_this_machine(run: Run, closed_url: str) -> None:
    assert run("status", HTTP_PROXY=closed_url, http_proxy=closed_url, ALL_PROXY=closed_url).exit_code == 0


def test_apply_restarts_a_worker(run: Run, control: MemoryControl) -> None:
    control.obedient = True
    shown = run("apply", "restart-worker", "--engine", "0", "--rank", "0")
    assert (shown.exit_code, shown.stdout) == (0, "Instruction executed successfully.\n")
    assert control.view().engines[0].worker_restarts == 1


def test_apply_says_that_a_restart_needs_an_engine(run: Run) -> None:
    assert run("apply", "restart-worker").exit_code == 2


def test_status_shows_who_is_suspected_and_how_many_were_ended(run: Run, control: MemoryControl) -> None:
    control.judge(suspects=4, ended=("one", "two"))
    assert "requests of engine 0: 4 suspected, 2 ended as guilty" in run("status").output


def test_status_shows_what_is_remembered_of_guilty_requests(run: Run, control: MemoryControl) -> None:
    guilty = FoundGuilty(fingerprint="0123456789abcdef" * 2, kind=GuiltKind.REQUEST, incident="i1", error="why")
    control.tell_of_guilt(GuiltReported(guilty=guilty))
    shown = run("status").output
    assert "poison request 01234567: refused until" in shown and "0 times so far (incident i1)" in shown


def test_status_shows_worker_restarts_and_standbys(run: Run, control: MemoryControl) -> None:
    control.standbys(wanted=2, ready=1, memory_bytes=3 * 2**20)
    shown = run("status").stdout
    assert "restarts" in shown
    assert "standby workers of engine 0: 1 of 2 ready, 3 MiB" in shown


def test_status_of_several_servers_and_of_some_engines(run: Run, server: LiveServer) -> None:
    server.control = MemoryControl(((0,), (1,))).attach()
    both = ["--url", server.open_url, "--url", server.open_url + "/"]
    shown = run("status", *both).stdout
    assert shown.count("ready · policy external") == 2 and f"{server.open_url}\n" in shown
    assert set(json.loads(run("status", "--json", *both).stdout)) == {both[1], both[3]}
    assert [e["id"] for e in json.loads(run("status", "--json", "--engine", "1").stdout)["engines"]] == [1]
    unknown = run("status", "--engine", "7")
    assert unknown.exit_code == 1 and "`holdfast status` shows all: 0, 1" in unknown.stderr


def test_status_is_shown_anew_until_interrupted(
    run: Run, control: MemoryControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = iter([None, None])

    def pause(seconds: float) -> None:
        control.break_down()
        if next(rounds, KeyboardInterrupt) is KeyboardInterrupt:
            raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.cli.status.time.sleep", pause)
    shown = run("status", "--watch")
    assert shown.exit_code == 0 and "paused" in shown.stdout
    rounds = iter([None])
    assert len(run("status", "--watch", "--json").stdout.splitlines()) == 2


def test_events_of_some_engines(run: Run, server: LiveServer) -> None:
    server.control = MemoryControl(((0,), (1,))).attach()
    server.control.break_down(1)
    lines = run("events", "--engine", "0").stdout.splitlines()
    assert len(lines) == 1 and "engine 0 is protected" in lines[0]
