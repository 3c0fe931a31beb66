"""Every event of an operator's command says who gave the command; what the instance does by itself names nobody."""

from __future__ import annotations

import pytest

from holdfast.core.errors import OperatorError
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.instance.state import MAX_GIVERS, Givers
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import (
    Configure,
    Credential,
    Giver,
    InjectFault,
    Pause,
    RestartEngine,
    RestartWorkers,
    Resume,
    Retry,
)
from support.instance_bench import AUTO, EXTERNAL, Bench

GIVER = Giver(credential=Credential.TOKEN_FROM_FILE, address="10.0.0.1", idempotency_key="k")
OTHER = Giver(credential=Credential.SAME_USER, uid=1000)
ABOUT = {"command_id": "cmd", "given_by": GIVER}


def told(bench, command_id="cmd"):
    return {e.kind.value: e.given_by for e in bench.events if e.command_id == command_id}


def test_events_of_pause_and_resume_name_their_givers():
    bench = Bench(EXTERNAL)
    bench.submit(Pause(**ABOUT))
    bench.paused()
    bench.submit(Resume(command_id="resume", given_by=OTHER))
    bench.recovered()
    assert told(bench) == {"pause-ordered": GIVER}
    assert told(bench, "resume") == {"recovery-started": OTHER, "engine-recovered": OTHER}


def test_events_of_a_retry_name_the_giver_also_when_the_retry_fails():
    bench = Bench(EXTERNAL)
    bench.paused_by_fault()
    bench.submit(Retry(**ABOUT))
    bench.aborted()
    assert told(bench) == {"recovery-started": GIVER, "recovery-failed": GIVER}


def test_events_of_a_restart_of_workers_name_the_giver():
    bench = Bench(AUTO)
    bench.submit(RestartWorkers(engine_id=0, **ABOUT))
    bench.paused()
    bench.recovered(replaced=(0,))
    assert told(bench) == {"pause-ordered": GIVER, "recovery-started": GIVER, "engine-recovered": GIVER}


def test_events_of_a_restart_of_an_engine_core_name_the_command_and_the_giver():
    bench = Bench(AUTO, engines=(0, 1))
    bench.submit(RestartEngine(engine_id=0, **ABOUT))
    bench.attached(0, pid=99)
    assert told(bench) == {"engine-lost": GIVER, "engine-restarted": GIVER}


def test_events_of_settings_and_of_an_armed_fault_name_the_giver():
    bench = Bench(AUTO)
    bench.submit(Configure(settings={"max_retries": 3}, **ABOUT))
    bench.submit(InjectFault(command_id="arm", spec=InjectionSpec(phase=Phase.FORWARD), given_by=OTHER))
    bench.observe(m.EngineAnswered(engine_id=0, command_id="arm"))
    assert told(bench) == {"configured": GIVER}
    assert told(bench, "arm") == {"fault-armed": OTHER}


def test_what_the_instance_does_by_itself_names_nobody():
    bench = Bench(AUTO, engines=(0, 1))
    bench.submit(Configure(settings={"max_retries": 3}, **ABOUT))
    bench.paused_by_fault()
    bench.recovered()
    bench.lost(1)
    bench.attached(1, pid=99)
    named = [e.kind.value for e in bench.events if e.given_by is not None]
    assert named == ["configured"]
    assert {e.command_id for e in bench.events if e.kind.value == "recovery-started"} == {"own-1"}


def test_a_refused_command_under_the_same_id_takes_no_command_from_its_giver():
    bench = Bench(EXTERNAL)
    bench.submit(Pause(**ABOUT))
    bench.paused()
    bench.submit(Resume(command_id="resume", given_by=GIVER))
    with pytest.raises(OperatorError, match="already under way"):
        bench.submit(Resume(command_id="resume", given_by=OTHER))
    bench.recovered()
    assert told(bench, "resume") == {"recovery-started": GIVER, "engine-recovered": GIVER}


def test_the_latest_givers_are_known_and_no_more():
    givers = Givers()
    for number in range(MAX_GIVERS + 1):
        givers.name(str(number), GIVER)
    assert (givers.find("0"), givers.find("1"), givers.find(str(MAX_GIVERS))) == (None, GIVER, GIVER)
    givers.name("1", None)
    assert givers.find("1") is None
    assert givers.find(None) is None
