from __future__ import annotations

import msgspec

from holdfast.api import formats
from holdfast.core.poison.memory import FoundGuilty, GuiltKind
from holdfast.core.protocol.commands import Pause
from holdfast.core.protocol.link_messages import GuiltReported
from holdfast.core.states import EngineState
from support.control_plane import FINGERPRINT_KEY, MemoryControl

ALONE, TOGETHER = ((0,), (1,)), ((0, 1),)


def test_a_healthy_instance_looks_as_the_hosts_own_status_does_with_our_additions() -> None:
    status = msgspec.to_builtins(formats.render_status(MemoryControl(ALONE).attach().view()))
    engine = status["engines"][1]
    assert status["schema_version"] == 1
    assert status["total_engines"] == 2
    assert engine.items() >= {"id": 1, "status": "healthy", "state": "healthy", "epoch": 0, "pid": 4001}.items()
    assert not {"fault_info", "ft_error", "last_ft_request_id", "defeat"} & (engine.keys() | status.keys())
    assert status["notify_address"] == "tcp://127.0.0.1:22867"


def test_a_paused_engine_is_unhealthy_and_says_why() -> None:
    status = formats.render_status(MemoryControl(ALONE).attach().break_down(1).view())
    engine = status.engines[1]
    assert (status.ready, status.engines[0].status) == (True, "healthy")
    assert (engine.status, engine.state) == ("unhealthy", EngineState.PAUSED)
    assert engine.fault_info == "InjectedFault in engine 1, rank 0 at forward: injected fault"


def test_readiness_names_the_state_that_holds_things_up() -> None:
    view = MemoryControl(TOGETHER).attach().break_down(1).hold(0).view()
    assert formats.render_readiness(view) == formats.Readiness(ready=False, state=EngineState.PAUSED)


def test_an_instance_that_serves_with_one_engine_less_is_ready_and_names_the_state_of_that_one() -> None:
    view = MemoryControl(ALONE).attach().break_down(1).view()
    assert formats.render_readiness(view) == formats.Readiness(ready=True, state=EngineState.PAUSED)


def test_the_status_and_every_event_show_the_beginning_of_a_fingerprint_and_never_the_key() -> None:
    control = MemoryControl(ALONE).attach()
    guilty = FoundGuilty(fingerprint="0123456789abcdef" * 2, kind=GuiltKind.REQUEST, incident="i1", error="why")
    control.tell_of_guilt(GuiltReported(guilty=guilty))
    view = control.view()
    [shown] = formats.render_status(view).remembered
    assert (shown.fingerprint, shown.refused, shown.refusals) == ("01234567", True, 0)
    assert shown.until == 1_700_000_000.0 + view.settings.poison_memory_s
    texts = [formats.render_status(view), *(formats.render_notification(e, view) for e in control.events)]
    for text in map(msgspec.json.encode, texts):
        assert b"0123456789" not in text and FINGERPRINT_KEY not in text


def test_the_status_says_who_pauses_with_whom() -> None:
    status = formats.render_status(MemoryControl(((0, 1, 2), (3,))).view())
    assert [e.lockstep_with for e in status.engines] == [(1, 2), (0, 2), (0, 1), ()]


def test_the_status_says_which_engines_were_paused_by_operator() -> None:
    control = MemoryControl(ALONE).attach()
    control.submit(Pause(command_id="c0ffee", engine_ids=(1,)))
    assert [e.paused_by_operator for e in formats.render_status(control.view()).engines] == [False, True]


def test_the_status_says_what_cannot_be_rebuilt() -> None:
    status = formats.render_status(MemoryControl().attach(unrebuildable=("graphs are captured",)).view())
    assert status.engines[0].unrebuildable == ("graphs are captured",)


def test_a_defeated_instance_is_dead_whatever_its_engines_do() -> None:
    view = MemoryControl(ALONE).attach().break_down(0).defeat(1).view()
    assert formats.instance_state(view) is EngineState.DEAD


def test_a_status_reads_back_as_it_was_written() -> None:
    status = formats.render_status(MemoryControl().attach().break_down().view())
    assert msgspec.json.decode(msgspec.json.encode(status), type=formats.Status) == status
