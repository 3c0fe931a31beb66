"""Pauses of the host (`/pause`, `/sleep`) beside rewound requests, over the host's real engine core and scheduler."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import msgspec
import pytest

pytest.importorskip("vllm")

from contract.hosts.rig import BLOCK_SIZE, Rig
from contract.hosts.test_streaming_sessions import TURNS, SessionRig, expected_of, total
from contract.hosts.vllm_rig import VllmRig
from holdfast.hosts.vllm.engine.runtime_state import Call
from holdfast.hosts.vllm.process.settings import RUNTIME_STATE

pytestmark = pytest.mark.host

LONG = 40


@pytest.fixture
def rig() -> Iterator[VllmRig]:
    made = VllmRig()
    yield made
    made.close()


def begin(rig: Rig, *names: str) -> None:
    for name in names:
        rig.add(name, LONG, [len(name), 8, 9])
    for _ in range(5):
        rig.step()


def lose_rank(rig: Rig) -> None:
    rig.spoil_kv()
    rig.recover(RuntimeError("lost"), replace=[0])


@pytest.mark.parametrize("kv_is_lost", [False, True])
@pytest.mark.parametrize("first", ["pause", "fault"])
def test_a_pause_that_waits_ends_after_every_answer_that_had_begun(rig: VllmRig, first: str, kv_is_lost: bool) -> None:
    begin(rig, "a", "bb")
    waits = rig._core.pause_scheduler("wait") if first == "pause" else None
    if kv_is_lost:
        lose_rank(rig)
    else:
        rig.recover(RuntimeError("a fault"))
    waits = waits or rig._core.pause_scheduler("wait")
    assert waits is not None
    rig.add("later", 3, [5, 5])
    for _ in range(3 * LONG):
        rig.step()
        if waits.done():
            break
    assert waits.done(), "the pause never completes"
    waits.result()
    assert [len(rig.answers[name]) for name in ("a", "bb", "later")] == [LONG, LONG, 0]
    rig._core.resume_scheduler()
    rig.run()
    assert rig.is_exact


def test_a_pause_that_waits_freezes_what_had_not_begun(rig: VllmRig) -> None:
    rig.add("a", LONG, [1, 8, 9])
    assert rig._core.pause_scheduler("wait") is None
    lose_rank(rig)
    rig.step()
    assert rig.answers["a"] == []
    rig._core.resume_scheduler()
    rig.run()
    assert rig.is_exact


@pytest.mark.parametrize("kv_is_lost", [False, True])
def test_a_pause_that_keeps_requests_works_right_after_a_rewind(rig: VllmRig, kv_is_lost: bool) -> None:
    """The host clears the caches, so no rewound request may hold a block."""
    begin(rig, "a", "bb")
    if kv_is_lost:
        lose_rank(rig)
    else:
        rig.recover(RuntimeError("a fault"))
    waits = rig._core.pause_scheduler("keep")
    if waits is not None:
        rig.step()
        waits.result(0)
    rig.spoil_kv()  # as other weights would
    said = {name: list(tokens) for name, tokens in rig.answers.items()}
    rig.step()
    assert rig.answers == said
    rig._core.resume_scheduler()
    rig.run()
    assert rig.is_exact


def test_a_pause_that_clears_the_caches_takes_the_kv_of_a_parked_session() -> None:
    """Plain vLLM refuses such a pause."""
    rig = SessionRig()
    rig.say(*TURNS[0])
    rig.until(total(1))
    assert rig._core.pause_scheduler("keep") is None
    rig.spoil_kv()
    rig._core.resume_scheduler()
    rig.say(*TURNS[1])
    rig.until(total(2))
    rig.finish()
    assert rig.said == expected_of(TURNS[:2])
    rig.close()


def test_without_a_rewind_nothing_of_a_pause_changes(rig: VllmRig) -> None:
    begin(rig, "a")
    assert rig._core.scheduler.reset_prefix_cache() is False, "a running request holds blocks"
    waits = rig._core.pause_scheduler("wait")
    assert waits is not None
    for _ in range(LONG):
        rig.step()
    assert waits.done()
    assert len(rig.answers["a"]) == LONG > BLOCK_SIZE
    assert rig.is_exact


@pytest.mark.parametrize("mode", ["keep", "wait", "abort"])
def test_an_engine_core_in_the_place_of_a_paused_one_is_paused(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Requests that move there wait for the resume."""
    calls = msgspec.msgpack.encode([Call("pause_scheduler", (mode,))])
    monkeypatch.setenv(RUNTIME_STATE, base64.b64encode(calls).decode())
    rig = VllmRig()
    rig.engine.state.repeat_inherited()
    rig.add("a", 5)
    for _ in range(3):
        rig.step()
    assert rig.answers["a"] == []
    rig._core.resume_scheduler()
    rig.run()
    assert rig.is_exact
    rig.close()
