"""After a rewind the host's own scheduler goes on until every request has ended, whatever it was set to."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from hypothesis import example, given, settings
from hypothesis import strategies as st

from contract.hosts.scheduler_rig import BLOCK, LONG_PREFILL_IN_A_FULL_CACHE, MAX_TURNS, Core

pytestmark = pytest.mark.host

MAX_IDLE_TURNS = 5  # a preemption takes a turn or two in which nothing else is admitted


@st.composite
def setups(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of a scheduler with a cache that is soon full. The longest request fits alone, as the host demands."""
    blocks = draw(st.integers(8, 24))
    return {
        "policy": draw(st.sampled_from(["fcfs", "priority"])),
        "blocks": blocks,
        "step_tokens": draw(st.integers(4, 40)),
        "long_prefill_token_threshold": draw(st.sampled_from([0, 2, 5, 12])),
        "scheduler_reserve_full_isl": draw(st.sampled_from([True, True, False])),
        "max_num_seqs": draw(st.integers(1, 6)),
        "lookahead": draw(st.sampled_from([0, 0, 3, 9])),
        "watermark": draw(st.sampled_from([0.0, 0.2])),
        "is_async": draw(st.booleans()),
        "enable_prefix_caching": draw(st.booleans()),
    }


@st.composite
def loads(draw: st.DrawFn) -> dict[str, Any]:
    made = draw(setups())
    longest = (made["blocks"] - 1) * BLOCK - made["lookahead"]
    requests = []
    for _ in range(draw(st.integers(1, 8))):
        prompt = draw(st.integers(1, longest - 1))
        output = draw(st.integers(1, min(8, longest - prompt)))
        requests.append((draw(st.integers(0, 20)), prompt, output, draw(st.integers(0, 2)), draw(st.booleans())))
    return {**made, "requests": requests, "faults": draw(st.lists(st.integers(1, 25), min_size=1, max_size=3))}


def run(load: dict[str, Any]) -> None:
    """Run a load with its faults; fails where nothing runs although requests are open."""
    core, idle = Core(load), 0
    arrivals = sorted((turn, str(n), *rest) for n, (turn, *rest) in enumerate(load["requests"]))
    faults = set(load["faults"])
    for turn in range(MAX_TURNS):
        while arrivals and arrivals[0][0] <= turn:
            core.add(*arrivals.pop(0)[1:])
        if not core.scheduler.requests and not arrivals:
            return
        idle = 0 if core.turn() or not core.scheduler.requests else idle + 1
        assert idle < MAX_IDLE_TURNS, f"nothing runs: {core.waiting()}"
        if turn in faults:
            core.fail()
    pytest.fail("the requests do not end")


@settings(max_examples=100, deadline=None)
@given(loads())
@example(LONG_PREFILL_IN_A_FULL_CACHE)
@example({**LONG_PREFILL_IN_A_FULL_CACHE, "policy": "priority"})
def test_every_request_ends(load: dict[str, Any]) -> None:
    run(load)
