"""Streaming sessions of a serving process: requests whose input arrives in turns.

The journal's request of a session holds everything that was said before the present turn, as the host's scheduler keeps
it, so that any engine core can take the session over. Between two turns no engine core is needed.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from holdfast.core.errors import HoldfastError
from holdfast.core.requests.journal import OpenRequest, RequestJournal
from holdfast.hosts.vllm.serving.kept_inputs import keep_more

_ENDS = ("error", "abort")  # reasons that end a session; all others end a turn


class SessionLost(HoldfastError):
    """An input of a session that has ended with an error: it would be answered without what was said before."""


@dataclass
class _Turns:
    inputs: deque[Any] = field(default_factory=deque)  # have arrived, and no turn has begun with them
    drawn: int = 0  # tokens delivered in earlier turns
    is_parked: bool = False
    unsent: deque[Any] | None = None  # while `sending`


class StreamingSessions:
    """The open sessions of a router, and those that ended with an error while their client still sends inputs."""

    def __init__(self, journal: RequestJournal[Any]) -> None:
        self._journal = journal
        self._turns: dict[str, _Turns] = {}
        self._failed: set[str] = set()

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._turns or request_id in self._failed

    def open(self, request: Any) -> Any:
        """Return what the journal keeps of a new request. The host's output processor extends the prompt itself."""
        if not request.resumable:
            return request
        self._turns[request.request_id] = _Turns()
        kept = copy.copy(request)
        kept.prompt_token_ids = list(request.prompt_token_ids or ())
        kept.mm_features = list(request.mm_features or ()) or None
        return kept

    def progress(self, request_id: str) -> int:
        """Return how many tokens of a request were delivered, over all turns."""
        entry = self._journal.get(request_id)
        return self.drawn(request_id) + (0 if entry is None else len(entry.delivered))

    def drawn(self, request_id: str) -> int:
        """Return how many tokens were delivered in earlier turns; 0 for a request that is no session."""
        turns = self._turns.get(request_id)
        return 0 if turns is None else turns.drawn

    def is_parked(self, request_id: str) -> bool:
        """Return whether a request is a session that waits for its next input."""
        turns = self._turns.get(request_id)
        return turns is not None and turns.is_parked

    def take(self, request: Any) -> bool:
        """Take a further input, or the message after the last; return True when the session has ended with it.

        Raises:
            SessionLost: the session has ended with an error before.
        """
        request_id = request.request_id
        if request_id in self._failed:
            if not request.resumable:
                self._failed.discard(request_id)
                return True
            raise SessionLost("the streaming session has ended with an error", hint="start a new session")
        turns = self._turns[request_id]
        turns.inputs.append(request)
        return turns.is_parked and self._begin_turn(request_id, turns)

    def ends(self, output: Any) -> bool:
        """Return whether the last output of a turn, or of a request that is no session, ends the request as well."""
        turns = self._turns.get(output.request_id)
        if turns is None:
            return True
        if str(output.finish_reason) in _ENDS:
            return True
        turns.is_parked = True
        return bool(turns.inputs) and self._begin_turn(output.request_id, turns)

    def _begin_turn(self, request_id: str, turns: _Turns) -> bool:
        """Begin the next turn as the host does: the last token of the turn before is dropped."""
        following, entry = turns.inputs.popleft(), self._journal.get(request_id)
        if entry is None or not following.resumable:
            return True
        turns.is_parked = False
        turns.drawn += len(entry.delivered)
        if following.mm_features:
            entry.unmovable = entry.unmovable or keep_more(self._journal, entry, following)
        _continue(entry, following)
        return False

    def fail(self, output: Any) -> list[Any]:
        """Refuse further inputs of a session that ends with this output.

        Return the outputs that end the turns of inputs that wait: the host's output processor expects one for each.
        """
        turns = self._turns.get(output.request_id)
        if turns is None or str(output.finish_reason) not in _ENDS:
            return []
        unanswered = [i for i in turns.inputs if i.resumable]
        if len(unanswered) == len(turns.inputs):  # the message after the last input has not come
            self._failed.add(output.request_id)
        return [type(output)(output.request_id, [], finish_reason=output.finish_reason) for _ in unanswered]

    def close(self, request_id: str) -> None:
        """Forget a session that has ended, but not that it failed."""
        turns = self._turns.pop(request_id, None)
        if turns is not None:
            turns.unsent = None

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget failed sessions whose clients send nothing more."""
        self._failed.difference_update(request_ids)

    # ---- sending again

    def sending(self, request: Any) -> Iterator[Any]:
        """Iterate over what to send for a request: for a session the inputs too, also those that arrive meanwhile."""
        turns = self._turns.get(request.request_id)
        if turns is None:
            yield request
            return
        turns.unsent = unsent = deque([request, *turns.inputs])
        while unsent and turns.unsent is unsent:
            yield unsent.popleft()
        if turns.unsent is unsent:
            turns.unsent = None

    def stop_sending(self, request_ids: Iterable[str]) -> None:
        """Stop sending inputs of sessions: their engine core is lost."""
        for request_id in request_ids:
            if (turns := self._turns.get(request_id)) is not None:
                turns.unsent = None

    def send_later(self, request: Any) -> bool:
        """Return True for an input that `sending` sends, behind the inputs before it."""
        turns = self._turns.get(request.request_id)
        if turns is None or turns.unsent is None:
            return False
        turns.unsent.append(request)
        return True


def _continue(entry: OpenRequest[Any], following: Any) -> None:
    """Let the journal's request hold what was said in its turn, and the next input."""
    request = entry.request
    request.prompt_token_ids.extend(entry.delivered[:-1])
    if following.mm_features and not entry.unmovable:
        request.mm_features = [*(request.mm_features or ()), *_moved(following, len(request.prompt_token_ids))]
    request.prompt_token_ids.extend(following.prompt_token_ids or ())
    request.sampling_params = following.sampling_params
    request.arrival_time = following.arrival_time
    del entry.delivered[:]


def _moved(following: Any, tokens: int) -> list[Any]:
    """Return the features of an input at their positions behind so many tokens."""
    moved = []
    for feature in following.mm_features:
        again = copy.copy(feature)
        again.mm_position = replace(feature.mm_position, offset=feature.mm_position.offset + tokens)
        moved.append(again)
    return moved
