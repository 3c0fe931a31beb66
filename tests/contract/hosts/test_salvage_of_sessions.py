"""Salvage of streaming sessions over the host's real scheduler and engine step, with asynchronous scheduling.

A step is in flight as a turn ends: the host drops its output. The next input waits already, so that the next turn
begins within the step that ends the one before. Without drafts: see the failure model on sessions under speculation.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher
from vllm.v1.core.sched import scheduler as host_scheduler
from vllm.v1.request import Request

from contract.hosts import test_salvage_of_drafts as rig
from contract.hosts.rig import BLOCK_SIZE
from contract.hosts.vllm_rig import engine_config
from holdfast.hosts.vllm.engine.streaming_sessions import follow_sessions

pytestmark = pytest.mark.host

TURNS = {"a": (9, 14, 5), "b": (3, 1, 20), "c": (12, 2, 2)}
SITES = {
    "as a token is appended": (host_scheduler, "check_stop", False),
    "after the tokens were appended": ("scheduler", "_update_request_with_output", True),
    "as the turn has ended": ("scheduler", "_handle_stopped_request", True),
    "as blocks are cached": ("scheduler.kv_cache_manager", "cache_blocks", False),
    "as the next step is planned": ("scheduler", "schedule", True),
}


@functools.cache
def config() -> Any:
    return engine_config()


class SessionCore(rig.Core):
    """The same engine step with sessions in the place of requests."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, rig.ROOMY)
        self.scheduler.finish_requests(None, host_scheduler.RequestStatus.FINISHED_ABORTED)
        follow_sessions(self.scheduler)
        hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
        for request_id, turns in TURNS.items():
            for tokens in (*turns, 0):
                params = SamplingParams(max_tokens=tokens or 1, temperature=0.0, ignore_eos=True)
                prompt = [1] * 20 if tokens == turns[0] else [2] * 3
                asked = Request(request_id, prompt, params, None, block_hasher=hasher, resumable=tokens > 0)
                self.scheduler.add_request(asked)

    def _sample(self, request_id: str) -> list[int]:
        if any(new.req_id == request_id for new in self._step.scheduled_new_reqs):
            self.known[request_id] = 0
        return super()._sample(request_id)


@pytest.mark.parametrize("seed", range(2, 8))
@pytest.mark.parametrize("site", SITES)
def test_no_token_of_a_turn_is_lost_or_repeated(monkeypatch: pytest.MonkeyPatch, site: str, seed: int) -> None:
    monkeypatch.setattr(rig, "config", config)
    core = SessionCore(seed)
    owner, name, after = SITES[site]
    if isinstance(owner, str):
        owner = functools.reduce(getattr, owner.split("."), core)
    monkeypatch.setattr(owner, name, rig.Site(seed, after=after).around(getattr(owner, name)))
    core.run()
    expected = {i: [token for tokens in turns for token in rig.answer(i, tokens)] for i, turns in TURNS.items()}
    assert core.sent == expected
    assert core.scheduler.num_waiting_for_streaming_input == 0
