"""Streaming sessions through faults, over the host's real scheduler: what an earlier turn said is never lost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest, EngineCoreRequestType

from contract.hosts.rig import PROMPT, RANKS
from contract.hosts.vllm_rig import VllmRig
from holdfast.core.faults.faults import Phase
from holdfast.hosts.fake import fault_free_output

pytestmark = pytest.mark.host

PHASES = [Phase.SCHEDULE_END, Phase.SAMPLE_END, Phase.OUTPUT_REQUEST, Phase.OUTPUT_END]
TURNS: list[tuple[Sequence[int], int]] = [(PROMPT, 5), ((7, 8, 9), 4), (tuple(range(50, 90)), 6)]


def expected_of(turns: Sequence[tuple[Sequence[int], int]]) -> list[int]:
    """Return all answers without faults. The host drops the last token of a turn: its KV was never computed."""
    said: list[int] = []
    answers: list[int] = []
    for prompt, tokens in turns:
        said += prompt
        answer = fault_free_output(said, tokens, RANKS)
        answers += answer
        said += answer[:-1]
    return answers


class SessionRig(VllmRig):
    """A session `s` beside a plain request."""

    def say(self, prompt: Sequence[int], tokens: int) -> None:
        self._core.add_request(*self._core.preprocess_add_request(self._input(prompt, tokens, resumable=True)))

    def end_session(self) -> None:
        self._core.add_request(*self._core.preprocess_add_request(self._input([0], 1, resumable=False)))

    def _input(self, prompt: Sequence[int], tokens: int, *, resumable: bool) -> Any:
        return EngineCoreRequest(
            request_id="s",
            prompt_token_ids=list(prompt),
            mm_features=None,
            sampling_params=SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True),
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            resumable=resumable,
        )

    @property
    def said(self) -> list[int]:
        return self.answers.get("s", [])

    def until(self, tokens: int) -> None:
        """Step until the session has so many tokens of answers."""
        for _ in range(100):
            if len(self.said) >= tokens:
                return
            self.step()
        raise AssertionError(f"the session stands at {len(self.said)} of {tokens} tokens")

    def lose_rank(self) -> None:
        """Replace a rank, with all KV lost."""
        self.spoil_kv()
        self.recover(RuntimeError("lost"), replace=[0])

    def finish(self) -> None:
        self.end_session()
        self.run()
        scheduler = self._core.scheduler
        assert not scheduler.requests
        assert scheduler.num_waiting_for_streaming_input == 0
        assert scheduler.reset_prefix_cache(), "a block is held by nobody"


@pytest.fixture
def rig() -> Iterator[SessionRig]:
    made = SessionRig()
    yield made
    made.close()


def total(turns: int) -> int:
    return sum(tokens for _, tokens in TURNS[:turns])


@pytest.mark.parametrize("turns", [1, 2])
def test_a_parked_session_survives_the_loss_of_its_kv(rig: SessionRig, turns: int) -> None:
    for number, (prompt, tokens) in enumerate(TURNS, 1):
        rig.say(prompt, tokens)
        rig.until(total(number))
        if number == turns:
            rig.lose_rank()
    rig.finish()
    assert rig.said == expected_of(TURNS)


@pytest.mark.parametrize("at", [1, 4, 5, 7, 9, 11])
def test_a_session_survives_the_loss_of_its_kv_within_a_turn(rig: SessionRig, at: int) -> None:
    for number, (prompt, tokens) in enumerate(TURNS, 1):
        rig.say(prompt, tokens)
        if total(number - 1) < at <= total(number):
            rig.until(at)
            rig.lose_rank()
        rig.until(total(number))
    rig.finish()
    assert rig.said == expected_of(TURNS)


def test_a_session_whose_kv_is_lost_twice_while_parked_keeps_all_its_turns(rig: SessionRig) -> None:
    for number, (prompt, tokens) in enumerate(TURNS, 1):
        rig.say(prompt, tokens)
        rig.until(total(number))
        rig.lose_rank()
        rig.lose_rank()
    rig.finish()
    assert rig.said == expected_of(TURNS)


@pytest.mark.parametrize("ahead", [False, True], ids=["turn by turn", "inputs ahead"])
@pytest.mark.parametrize("after_steps", [4, 9])
@pytest.mark.parametrize("phase", PHASES)
def test_a_session_survives_an_exception(rig: SessionRig, phase: Phase, after_steps: int, ahead: bool) -> None:
    """With inputs that wait, the next turn begins inside the step that ends the one before."""
    rig.add("other", 12, [3, 4, 5])
    rig.arm(phase, after_steps=after_steps)
    asked = 0
    for _ in range(100):
        while asked < len(TURNS) and (ahead or len(rig.said) >= total(asked)):
            rig.say(*TURNS[asked])
            asked += 1
        if len(rig.said) >= total(len(TURNS)):
            break
        try:
            rig.step()
        except Exception as error:
            if phase.in_worker:
                rig.await_report_of(0)
            rig.recover(error)
    rig.finish()
    assert rig.said == expected_of(TURNS)
    assert rig.is_exact


@pytest.mark.parametrize("ahead", [False, True], ids=["turn by turn", "inputs ahead"])
@pytest.mark.parametrize("where", ["as the turn has ended", "in the request behind"])
def test_a_turn_that_ends_in_a_step_whose_outputs_are_lost_ends_once(
    rig: SessionRig, monkeypatch: pytest.MonkeyPatch, where: str, ahead: bool
) -> None:
    """The session is parked, or in its next turn, and its output is not built or not sent yet."""
    scheduler = rig._core.scheduler
    name = "_handle_stopped_request" if where == "as the turn has ended" else "_update_request_with_output"
    original = getattr(scheduler, name)

    def raise_once(request: Any, *args: Any, **kwargs: Any) -> Any:
        if request.request_id == "other":
            if name == "_handle_stopped_request" or not has_ended:
                return original(request, *args, **kwargs)
        else:
            result = original(request, *args, **kwargs)
            has_ended.extend([True] if request.is_finished() else [])
            if name != "_handle_stopped_request":
                return result
        monkeypatch.setattr(scheduler, name, original)
        raise ValueError("injected")

    has_ended: list[bool] = []
    monkeypatch.setattr(scheduler, name, raise_once)
    for turn in TURNS if ahead else TURNS[:1]:
        rig.say(*turn)
    rig.add("other", 12, [3, 4, 5])
    rig.recover(rig.failing_step())
    rig.until(total(len(TURNS) if ahead else 1))
    for number, turn in enumerate(TURNS[1:] if not ahead else [], 2):
        rig.say(*turn)
        rig.until(total(number))
    rig.finish()
    assert rig.said == expected_of(TURNS)
    assert rig.is_exact


@pytest.mark.parametrize("after", [False, True], ids=["before the host has taken it", "afterwards"])
def test_an_input_whose_admission_raises_is_taken_once(
    rig: SessionRig, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    core, add = rig._core, rig._core.scheduler.add_request
    rig.say(*TURNS[0])
    rig.until(total(1))

    def raise_once(request: Any) -> None:
        monkeypatch.setattr(core.scheduler, "add_request", add)
        if after:
            add(request)
        raise ValueError("injected")

    monkeypatch.setattr(core.scheduler, "add_request", raise_once)
    asked = core.preprocess_add_request(rig._input(*TURNS[1], resumable=True))
    core.input_queue.put_nowait((EngineCoreRequestType.ADD, asked))
    rig.recover(rig.failing_step())
    rig.until(total(2))
    rig.finish()
    assert rig.said == expected_of(TURNS[:2])


def test_a_restore_counts_the_tokens_of_earlier_turns(rig: SessionRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under runner V1 a seeded session draws from one generator in all its turns."""
    positions: list[tuple[int, int]] = []
    restore = rig._core.model_executor.restore_workers

    def noting(command: Any, *args: Any) -> Any:
        positions.extend((p.output_tokens, p.drawn) for p in command.requests)
        return restore(command, *args)

    monkeypatch.setattr(rig._core.model_executor, "restore_workers", noting)
    rig.say(*TURNS[0])
    rig.until(total(1))
    rig.say(*TURNS[1])
    rig.until(total(1) + 2)
    rig.recover(RuntimeError("within a turn"))
    rig.until(total(2))
    rig.recover(RuntimeError("between two turns"))
    rig.say(*TURNS[2])
    rig.recover(RuntimeError("before the first step of a turn"))
    assert positions == [(2, 5), (4, 5), (0, 9)]
    rig.until(total(3))
    rig.finish()
    assert rig.said == expected_of(TURNS)
