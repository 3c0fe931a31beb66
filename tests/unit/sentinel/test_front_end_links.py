"""An API server that does not own the engine cores: its link says what the owner says, and asks it for the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import msgspec
import pytest

from holdfast.core.config import HoldfastConfig, RuntimeSettings, runtime_settings
from holdfast.core.errors import (
    BadCommand,
    CommandConflict,
    HoldfastError,
    HookNotAttached,
    PeerSilent,
    RecoveryFailed,
    UnknownEngine,
    UnknownIncident,
)
from holdfast.core.faults.faults import Fault, FaultClass, Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.poison.memory import FoundGuilty, GuiltKind
from holdfast.core.protocol import link_messages as lm
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import Command, Configure, Credential, Giver, InjectFault, Pause, Resume, Retry
from holdfast.core.protocol.effects import End
from holdfast.core.protocol.events import EventKind, InstanceView
from holdfast.core.protocol.incidents import IncidentsPage
from holdfast.core.protocol.messages import Rendezvous
from holdfast.sentinel import ClientSentinel, FrontEndLink, client, forwarded_incidents, link_registry
from holdfast.sentinel import front_end_link as link
from holdfast.sentinel.forwarded_incidents import IncidentsForLinks, IncidentsFromOwner
from holdfast.sentinel.incident_store import IncidentStore, IncidentWriter
from holdfast.sentinel.link_registry import EVENTS_PER_MESSAGE, LinkRegistry
from holdfast.sentinel.refused import RefusedMessages
from holdfast.sentinel.thread import engine_identity, link_identity
from holdfast.wire import Delivery, MemoryNetwork
from support.control_plane import MemoryControl

WAIT_S = 10.0
FAULT = Fault(fault_class=FaultClass.TRANSIENT, error_type="InjectedFault", message="boom", engine_id=0)


class Host:
    """A front end that ends nothing and has no rendezvous."""

    def __init__(self) -> None:
        self.reason = ""

    def unrecoverable_reason(self) -> str:
        return ""

    def end_instance(self, order: End) -> None:
        self.reason = order.reason

    def open_rendezvous(self, group: tuple[int, ...], epoch: int) -> Rendezvous:
        return Rendezvous("127.0.0.1", 1, epoch)

    def close_rendezvous(self, group: tuple[int, ...], epoch: int) -> None:
        pass


class Owner:
    """The owner of two independent engine cores, which the test plays itself, and the links of its API servers."""

    def __init__(self, links: int = 2, **settings: object) -> None:
        self.network, self.config = MemoryNetwork(), HoldfastConfig(fault_policy="external", **settings)  # type: ignore[arg-type]
        self.host = Host()
        self.sentinel = ClientSentinel([[0], [1]], self.config, self.host, self.network.station(), "client")
        self.sentinel.expect_links(links)
        self.sentinel.start()
        self.engines = self.network.station()
        self.spokes = [self.engines.connect("client", engine_identity(i)) for i in (0, 1)]
        self.links: list[FrontEndLink] = []

    def attach(self) -> None:
        for engine_id in (0, 1):
            worker = m.WorkerAttached(rank=0, pid=2, hooks=("w",))
            self.say(m.EngineAttached(engine_id=engine_id, pid=1, hooks=("e",), workers=(worker,)))
        self.sentinel.await_attached(WAIT_S)

    def say(self, report: m.FromEngine) -> None:
        assert self.spokes[report.engine_id].send(m.encode(msgspec.structs.replace(report, pid=1)))

    def told(self) -> m.ToEngine:
        """The next order to any engine core."""
        delivery = self.engines.receive(WAIT_S)
        assert delivery is not None, "no order came"
        return m.decode_to_engine(delivery.data)

    def break_down(self, engine_id: int = 0) -> None:
        self.say(m.EngineFaulted(engine_id=engine_id, epoch=0, fault=FAULT))
        self.say(m.EnginePaused(engine_id=engine_id, epoch=0, fault=FAULT, unfinished_requests=1))

    def link(self, link_id: int = 0) -> FrontEndLink:
        """A link of this owner, attached."""
        made = self.make_link(link_id)
        made.start(("hook",))
        made.await_attached(WAIT_S)
        return made

    def make_link(self, link_id: int = 0) -> FrontEndLink:
        self.links.append(FrontEndLink(link_id, self.config, self.network.station(), "client"))
        return self.links[-1]

    def close(self) -> None:
        for sentinel in (*self.links, self.sentinel):
            sentinel.close()


@pytest.fixture
def make_owner() -> Iterator[Callable[..., Owner]]:
    made: list[Owner] = []

    def make(**settings: object) -> Owner:
        made.append(Owner(**settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for owner in made:
        owner.close()


@pytest.fixture
def owner(make_owner: Callable[..., Owner]) -> Owner:
    made = make_owner()
    made.attach()
    return made


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def ending(asked) -> HoldfastError | None:  # type: ignore[no-untyped-def]
    error = asked.exception(WAIT_S)
    assert error is None or isinstance(error, HoldfastError)
    return error


# ---- what it knows


def test_a_link_shows_what_the_owner_shows(owner: Owner) -> None:
    made = owner.link()
    assert made.view() == owner.sentinel.view()
    assert made.history() == owner.sentinel.history()


def test_a_link_follows_every_event(owner: Owner) -> None:
    first, second = owner.link(0), owner.link(1)
    owner.break_down()
    wait_until(lambda: owner.sentinel.view().engines[0].state == "paused")
    wait_until(lambda: first.history() == second.history() == owner.sentinel.history())
    assert first.view() == second.view() == owner.sentinel.view()


def test_a_link_is_not_ready_before_the_owner_has_answered(owner: Owner) -> None:
    assert not owner.make_link().view().ready


def test_a_link_that_comes_late_gets_a_long_history_whole(owner: Owner) -> None:
    for number in range(2 * EVENTS_PER_MESSAGE):
        owner.sentinel.submit(InjectFault(command_id=f"arm-{number}", spec=InjectionSpec(phase=Phase.DP_SYNC)))
        order = owner.told()
        assert isinstance(order, m.ArmFault)
        owner.say(m.EngineAnswered(engine_id=0, command_id=order.command_id))
    wait_until(lambda: len(owner.sentinel.history()) > 2 * EVENTS_PER_MESSAGE)
    assert owner.link().history() == owner.sentinel.history()


def test_history_after_a_number_is_what_follows_it(owner: Owner) -> None:
    made = owner.link()
    assert [e.sequence for e in made.history(after=1)] == [2]


def test_what_an_api_server_found_out_about_a_request_is_told_by_the_owner(owner: Owner) -> None:
    made = owner.link()
    made.poison_request_ended(lm.PoisonRequestEnded(engine_id=1, request_id="deadly", incident="i", reason="why"))
    wait_until(lambda: made.history()[-1].kind is EventKind.REQUEST_ENDED)
    [*_, event] = owner.sentinel.history()
    assert (event.engine_id, event.request_id, event.incident, event.reason) == (1, "deadly", "i", "why")


def test_a_verdict_of_one_api_server_is_known_to_the_others_and_to_a_late_one(owner: Owner) -> None:
    first, second = owner.link(0), owner.link(1)
    guilty = FoundGuilty(fingerprint="f", kind=GuiltKind.REQUEST, incident="i", error="why")
    first.tell_of_guilt(lm.GuiltReported(guilty=guilty))
    first.tell_of_guilt(lm.RequestsRefused(fingerprint="f", count=1))
    wait_until(lambda: [e.refusals for e in second.view().guilt.entries] == [1])
    assert len(second.view().guilt.key) == client.KEY_BYTES
    assert second.view().guilt == owner.sentinel.view().guilt


def test_a_link_that_missed_an_event_asks_for_it(owner: Owner) -> None:
    made = owner.link()
    event, view = owner.sentinel.history()[-1], owner.sentinel.view()
    torn = lm.Published(event=replaced(event, sequence=9), view=replaced(view, sequence=9))
    assert owner.sentinel._hub.send(link_identity(0), lm.encode(torn))
    owner.break_down()
    wait_until(lambda: made.view() == owner.sentinel.view() and made.history() == owner.sentinel.history())
    assert [e.sequence for e in made.history()] == list(range(1, made.view().sequence + 1))


def test_events_are_learned_in_order_also_when_the_portion_before_was_lost(
    make_owner: Callable[..., Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_registry, "EVENTS_PER_MESSAGE", 1)
    owner = make_owner()
    owner.attach()
    first, second = owner.sentinel.history()
    made = owner.make_link()
    for message in (lm.Past(events=(second,), after=first.sequence), lm.Present(view=owner.sentinel.view())):
        made._deliver(Delivery(made._owner, b"", lm.encode(message)))
    assert made.history() == ()
    made.start(("hook",))
    wait_until(lambda: made.history() == (first, second))


def test_what_was_heard_twice_is_known_once(owner: Owner) -> None:
    made = owner.link()
    again = lm.Published(event=owner.sentinel.history()[-1], view=owner.sentinel.view())
    assert owner.sentinel._hub.send(link_identity(0), lm.encode(again))
    owner.break_down()
    wait_until(lambda: made.history() == owner.sentinel.history())


def replaced(struct, **changes):  # type: ignore[no-untyped-def]
    import msgspec

    return msgspec.structs.replace(struct, **changes)


# ---- attaching


def test_the_owner_knows_which_hooks_every_link_reported(owner: Owner) -> None:
    owner.link(0)
    owner.link(1)
    assert {(r.link_id, r.hooks) for r in owner.sentinel.await_links(WAIT_S)} == {(0, ("hook",)), (1, ("hook",))}


def test_the_owner_does_not_wait_for_ever_for_a_link(owner: Owner) -> None:
    owner.link(1)
    assert [r.link_id for r in owner.sentinel.await_links(0.2)] == [1]


def test_a_link_without_an_owner_does_not_attach() -> None:
    alone = FrontEndLink(0, HoldfastConfig(), MemoryNetwork().station(), "client")
    alone.start(())
    with pytest.raises(HookNotAttached, match="API server 0 within"):
        alone.await_attached(0.2)
    alone.close()


@pytest.mark.parametrize("identity", [b"link-7", b"link-", b"link-x", b"link-00"])
def test_a_link_that_is_none_of_the_instances_is_not_served(
    owner: Owner, identity: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    station = owner.network.station()
    stranger = station.connect("client", identity)
    stranger.send(lm.encode(lm.LinkReported(link_id=0, pid=1, hooks=())))
    assert station.receive(0.2) is None
    assert owner.sentinel.await_links(0) == ()
    assert "none of the links" in caplog.text


@pytest.mark.parametrize("identity", [b"engine-1", b"worker-0", b"", b"\xff"])
def test_who_speaks_as_somebody_else_is_not_heard(owner: Owner, identity: bytes) -> None:
    stranger = owner.network.station().connect("client", identity)
    stranger.send(m.encode(m.EngineFaulted(engine_id=0, epoch=0, fault=FAULT)))
    owner.link()  # what was sent before it has been dealt with
    assert all(e.state == "healthy" for e in owner.sentinel.view().engines)


def test_garbage_of_a_link_changes_nothing(owner: Owner) -> None:
    owner.network.station().connect("client", link_identity(1)).send(b"\xc1garbage")
    assert owner.link().view().ready


# ---- what it is asked


def test_a_retry_is_followed_by_the_owner(owner: Owner) -> None:
    made = owner.link()
    owner.break_down(1)
    wait_until(lambda: made.view().engines[1].state == "paused")
    asked = made.submit(Retry(command_id="c1", engine_ids=(1,)))
    order = owner.told()
    assert isinstance(order, m.RecoverEngine)
    assert (order.command_id, order.epoch) == ("c1", 1)
    owner.say(m.EngineRecovered(engine_id=1, command_id="c1", epoch=1, report=m.RecoveryReport()))
    assert ending(asked) is None
    wait_until(lambda: made.view().engines[1].state == "healthy")


def test_a_retry_that_fails_says_why(owner: Owner) -> None:
    made = owner.link()
    owner.break_down()
    wait_until(lambda: made.view().engines[0].state == "paused")
    asked = made.submit(Retry(command_id="c1"))
    owner.told()
    owner.say(m.RecoveryAborted(engine_id=0, command_id="c1", epoch=1, fault=FAULT))
    error = ending(asked)
    assert isinstance(error, RecoveryFailed)
    assert "boom" in error.message


def test_a_pause_by_operator_and_a_resume_go_through(owner: Owner) -> None:
    made = owner.link()
    paused = made.submit(Pause(command_id="p", engine_ids=(0,), soft=True))
    order = owner.told()
    assert isinstance(order, m.PauseEngine)
    assert (order.command_id, order.soft) == ("p", True)
    owner.say(m.EnginePaused(engine_id=0, epoch=0, fault=None, unfinished_requests=0))
    assert ending(paused) is None
    resumed = made.submit(Resume(command_id="r", engine_ids=(0,)))
    assert isinstance(owner.told(), m.RecoverEngine)
    owner.say(m.EngineRecovered(engine_id=0, command_id="r", epoch=1, report=m.RecoveryReport()))
    assert ending(resumed) is None


def test_a_fault_is_armed_where_it_was_asked_for(owner: Owner) -> None:
    made, spec = owner.link(), InjectionSpec(phase=Phase.FORWARD, engine_id=1)
    armed = made.submit(InjectFault(command_id="a", spec=spec))
    assert owner.told() == m.ArmFault(command_id="a", spec=spec)
    owner.say(m.EngineAnswered(engine_id=1, command_id="a"))
    assert ending(armed) is None


def test_settings_that_are_changed_through_one_link_are_in_force_everywhere(owner: Owner) -> None:
    one, other = owner.link(0), owner.link(1)
    changed = one.submit(Configure(command_id="c", settings={"max_retries": 3, "drain_timeout": 2}))
    told = owner.told(), owner.told()
    assert ending(changed) is None
    wait_until(lambda: other.config.max_retries == one.config.max_retries == 3)
    assert owner.sentinel.config == one.config == other.config
    assert told == (m.ChangeSettings(settings=runtime_settings(one.config)),) * 2
    assert (
        owner.link(0).config.drain_timeout_s == 2.0
    )  # another process in place of the link, started with the old ones
    assert [e.kind for e in other.history()][-1] is EventKind.CONFIGURED


REFUSED: dict[str, tuple[Command, type[HoldfastError]]] = {
    "nothing to retry": (Retry(command_id="x", engine_ids=(0,)), CommandConflict),
    "an engine that does not exist": (Retry(command_id="x", engine_ids=(5,)), UnknownEngine),
    "nothing to resume": (Resume(command_id="x"), CommandConflict),
    "pausing an engine that does not exist": (Pause(command_id="x", engine_ids=(-1,)), UnknownEngine),
    "a setting that does not exist": (Configure(command_id="x", settings={"max_retrys": 3}), BadCommand),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_command_is_the_same_on_a_link_as_on_the_owner(owner: Owner, what: str) -> None:
    command, kind = REFUSED[what]
    there, here = ending(owner.sentinel.submit(command)), ending(owner.link().submit(command))
    assert type(here) is type(there) is kind
    assert vars(here) == vars(there)


def test_a_command_refused_by_an_engine_core_is_a_bad_instruction_on_a_link_too(owner: Owner) -> None:
    armed = owner.link().submit(InjectFault(command_id="a", spec=InjectionSpec(phase=Phase.FORWARD, rank=3)))
    owner.told()
    owner.say(m.EngineAnswered(engine_id=0, command_id="a", refused="engine 0 has no rank 3"))
    error = ending(armed)
    assert isinstance(error, BadCommand)
    assert error.message == "engine 0 has no rank 3"


def test_an_instruction_that_arrives_twice_is_followed_once(owner: Owner) -> None:
    made = owner.link()
    paused = made.submit(Pause(command_id="p", engine_ids=(0,)))
    owner.told()
    again = owner.network.station().connect("client", link_identity(0))
    (submission,) = made._waiting
    again.send(lm.encode(lm.Submitted(submission=submission, command=Pause(command_id="p", engine_ids=(0,)))))
    made._thread.post(made._report)  # answers go to this end again
    wait_until(lambda: owner.sentinel._hub.peers[link_identity(0)] is made._owner)  # type: ignore[attr-defined]
    owner.say(m.EnginePaused(engine_id=0, epoch=0, fault=None, unfinished_requests=0))
    assert ending(paused) is None


# ---- callers that repeat a command


@pytest.mark.parametrize("other_link", [0, 1])
def test_a_command_that_is_repeated_while_it_is_under_way_ends_for_both_callers(owner: Owner, other_link: int) -> None:
    links = [owner.link(0), owner.link(1)]
    first = links[0].submit(Pause(command_id="key", engine_ids=(0,)))
    assert isinstance(owner.told(), m.PauseEngine)
    again = links[other_link].submit(Pause(command_id="key", engine_ids=(0,)))
    wait_until(lambda: len(owner.sentinel._links._under_way) == 2)
    owner.say(m.EnginePaused(engine_id=0, epoch=0, fault=None, unfinished_requests=0))
    assert (ending(first), ending(again)) == (None, None)


@pytest.mark.parametrize("other_link", [0, 1])
def test_another_command_of_the_same_id_is_refused_on_every_link(owner: Owner, other_link: int) -> None:
    links = [owner.link(0), owner.link(1)]
    assert ending(links[0].submit(Configure(command_id="key", settings={"max_retries": 7}))) is None
    error = ending(links[other_link].submit(Configure(command_id="key", settings={"max_retries": 9})))
    assert isinstance(error, CommandConflict)
    assert owner.sentinel.view().settings.max_retries == 7


def test_a_refused_command_may_be_sent_again_on_the_same_link(owner: Owner) -> None:
    made = owner.link()
    assert isinstance(ending(made.submit(Retry(command_id="key"))), CommandConflict)
    owner.break_down()
    wait_until(lambda: made.view().engines[0].state == "paused")
    made.submit(Retry(command_id="key"))
    assert isinstance(owner.told(), m.RecoverEngine)


# ---- when the owner does not answer


def test_an_instruction_ends_in_an_error_when_the_owner_is_gone(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "REPORT_S", 0.02)
    monkeypatch.setattr(link, "_TICK_S", 0.02)
    made = owner.link()
    owner.sentinel.close()
    error = ending(made.submit(Retry(command_id="c1")))
    assert isinstance(error, PeerSilent)
    assert "does not answer" in error.message


def test_an_instruction_that_the_owner_never_settles_ends_in_its_deadline(
    make_owner: Callable[..., Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "MARGIN_S", -1.2)
    monkeypatch.setattr(link, "_TICK_S", 0.02)
    owner = make_owner(containment_timeout_s=0.5, drain_timeout_s=0.5, rebuild_timeout_s=0.5)
    owner.attach()
    assert isinstance(
        ending(owner.link().submit(InjectFault(command_id="a", spec=InjectionSpec(phase=Phase.FORWARD)))), PeerSilent
    )


# ---- the end


def test_the_owner_knows_when_every_link_has_heard_of_the_end(owner: Owner) -> None:
    heard: list[InstanceView] = []
    links = [owner.link(0), owner.link(1)]
    for made in links:
        made.tell(heard.append)
    owner.sentinel.engine_lost(1, "exit code -9", "nobody goes on with its requests")
    owner.sentinel.await_defeat_known(WAIT_S)
    assert [view.defeat for view in heard] == [
        "engine core 1 was lost: exit code -9; nobody goes on with its requests"
    ] * 2
    assert links[0].history()[-1].kind is EventKind.INSTANCE_DEFEATED


def test_the_owner_does_not_wait_for_ever_for_a_link_that_cannot_hear(owner: Owner) -> None:
    owner.link().close()
    owner.sentinel.engine_lost(0, "exit code -9", "nobody goes on with its requests")
    began = time.monotonic()
    owner.sentinel.await_defeat_known(0.2)
    assert time.monotonic() - began < WAIT_S


def test_no_thread_of_a_link_is_left_when_it_is_closed(owner: Owner) -> None:
    owner.link().close()
    assert not [t for t in threading.enumerate() if t.name.startswith("FrontEndLink")]


# ---- a process that is gone


def test_nobody_waits_for_an_api_server_that_is_gone(owner: Owner) -> None:
    made = owner.link(0)
    owner.link(1)
    made.close()
    owner.sentinel.process_lost("api-server-0", "exit code -9", "nobody starts another one in this test")
    wait_until(lambda: owner.sentinel.view().defeat is not None)
    owner.sentinel.await_defeat_known(WAIT_S)
    assert owner.sentinel.await_known(owner.sentinel.view().sequence, 0.0)
    assert [r.link_id for r in owner.sentinel.await_links(0.0)] == [1]


def test_a_late_word_of_a_process_that_is_gone_does_not_bring_it_back() -> None:
    links, said = make_links(), lm.LinkReported(link_id=0, pid=7, hooks=())
    links.deliver(link_identity(0), lm.encode(said))
    links.forget(0, None)
    links.deliver(link_identity(0), lm.encode(said))
    assert links.reports() == ()


def test_a_process_that_ended_before_its_first_report_is_not_taken_for_its_replacement() -> None:
    links = make_links()
    links.forget(0, 7)
    links.deliver(link_identity(0), lm.encode(lm.LinkReported(link_id=0, pid=7, hooks=())))
    assert links.reports() == ()
    links.deliver(link_identity(0), lm.encode(lm.LinkReported(link_id=0, pid=8, hooks=())))
    links.forget(0, 7)
    assert [r.pid for r in links.reports()] == [8]


def test_the_process_that_takes_its_place_is_waited_for_like_the_others() -> None:
    links = make_links()
    links.deliver(link_identity(0), lm.encode(lm.LinkReported(link_id=0, pid=7, hooks=())))
    links.forget(0, 7)
    links.deliver(link_identity(0), lm.encode(lm.LinkReported(link_id=0, pid=8, hooks=(), sequence=1)))
    assert [r.pid for r in links.reports()] == [8]
    assert links.behind(2) == [0]


def test_a_submission_that_arrives_again_after_its_end_is_answered_and_not_submitted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_registry, "MAX_ENDED", 1)
    sent: list[bytes] = []
    submitted: list[str] = []

    class Hub:
        def send(self, peer: bytes, data: bytes) -> bool:
            sent.append(data)
            return True

    class Control:
        def submit(self, command):  # type: ignore[no-untyped-def]
            submitted.append(command.command_id)
            ended: Future[None] = Future()
            ended.set_result(None)
            return ended

    links = LinkRegistry(Hub(), Control(), RefusedMessages("test"))  # type: ignore[arg-type]
    links.expect(1, lambda: None)
    for submission in ("a", "a", "b", "a"):
        command = Configure(command_id="same", settings={})
        links.deliver(link_identity(0), lm.encode(lm.Submitted(submission=submission, command=command)))
    assert len(submitted) == 3, "only the latest are remembered"
    told = [lm.decode_to_link(data) for data in sent]
    assert told == [lm.Settled(submission=submission) for submission in ("a", "a", "b", "a")]


def make_links() -> LinkRegistry:
    class Deaf:
        def send(self, peer: bytes, data: bytes) -> bool:
            return True

    class Quiet:
        def view(self) -> InstanceView:
            return InstanceView(engines=(), settings=RuntimeSettings())

    links = LinkRegistry(Deaf(), Quiet(), RefusedMessages("test"))  # type: ignore[arg-type]
    links.expect(1, lambda: None)
    return links


# ---- bounds


def test_the_latest_events_are_kept_and_the_history_is_bounded(
    make_owner: Callable[..., Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (client, link):
        monkeypatch.setattr(module, "MAX_HISTORY", 5)
    owner = make_owner()
    owner.attach()
    made = owner.link()
    for number in range(8):
        assert ending(made.submit(Configure(command_id=f"c{number}", settings={"max_retries": number}))) is None
    newest = [6, 7, 8, 9, 10]  # two engine cores have attached before
    wait_until(lambda: [e.sequence for e in made.history()] == newest)
    assert [e.sequence for e in owner.sentinel.history()] == newest


def test_a_link_that_missed_one_event_takes_no_later_event_before_the_gap_is_filled(owner: Owner) -> None:
    made = owner.link()
    made.close()
    last, view = made.history()[-1], made.view()
    late = msgspec.structs.replace(last, sequence=last.sequence + 2)
    made._take(late, msgspec.structs.replace(view, sequence=late.sequence))
    assert made.history()[-1] == last
    assert made.view() == view


def test_a_command_through_a_link_keeps_its_giver(owner: Owner) -> None:
    giver = Giver(credential=Credential.TOKEN_FROM_ENVIRONMENT, address="10.0.0.1", idempotency_key="k")
    made = owner.link()
    made.submit(Pause(command_id="c0ffee", engine_ids=(0,), given_by=giver))
    owner.told()
    wait_until(lambda: made.history()[-1].command_id == "c0ffee")
    assert made.history()[-1].given_by == giver
    assert made.view().instance_id == owner.sentinel.view().instance_id == made.history()[-1].instance_id


# ---- incidents are read by the owner


def test_an_api_server_forwards_questions_about_incidents_and_gets_large_answers_in_parts(
    make_owner: Callable[..., Owner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarded_incidents, "PART_BYTES", 100)
    owner = make_owner(incident_dir=str(tmp_path))
    link = owner.link(0)
    writer = IncidentWriter(owner.config)
    control = MemoryControl().attach()
    control.break_down()
    for event in control.events:
        writer.take(event, control.view())
    here, there = (each.incidents("").result(WAIT_S) for each in (owner.sentinel, link))
    assert here == there and len(there) > 200
    [summary] = msgspec.json.decode(there, type=IncidentsPage).incidents
    assert link.incidents(f"{summary.incident_id}.tar").result(WAIT_S) == IncidentStore(str(tmp_path)).tar(
        summary.incident_id
    )
    with pytest.raises(UnknownIncident, match="no such incident"):
        link.incidents("nothing").result(WAIT_S)


def test_a_question_that_the_owner_leaves_unanswered_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarded_incidents, "MAX_ASKED", 1)
    asked: list[lm.IncidentsAsked] = []

    def send(message: lm.IncidentsAsked) -> bool:
        asked.append(message)
        return len(asked) < 2

    link = IncidentsFromOwner(send)
    answers: list[Future[bytes]] = [Future(), Future(), Future()]
    link.ask("", answers[0])
    link.ask("", answers[1])  # one too many
    link.take(lm.IncidentsAnswered(question="of somebody else"))
    link.take(lm.IncidentsAnswered(question=asked[0].question, offset=7, part=b"late", total=20))
    link.tick(time.monotonic(), False)
    assert [a.done() for a in answers] == [False, True, False]
    link.tick(time.monotonic() + 60.0, False)
    link.ask("", answers[2])  # the message is not taken
    assert all(isinstance(a.exception(0), PeerSilent) for a in answers)


def test_the_owner_keeps_few_answers_of_which_parts_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarded_incidents, "PART_BYTES", 1)
    asked, told = [], []

    class Control:
        def incidents(self, question: str) -> Future[bytes]:
            asked.append(question)
            answer: Future[bytes] = Future()
            answer.set_result(b"ab")
            return answer

    answers = IncidentsForLinks(Control(), lambda call: call())  # type: ignore[arg-type]
    for number in range(9):
        answers.take(lm.IncidentsAsked(question=str(number), asked="x"), told.append)
    assert len(answers._answers) == forwarded_incidents.MAX_ANSWERS
    answers.take(lm.IncidentsAsked(question="8", asked="x", offset=1), told.append)
    assert len(asked) == 9 and told[-1].part == b"b"
    assert len(answers._answers) == forwarded_incidents.MAX_ANSWERS - 1
