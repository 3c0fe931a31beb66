"""The simulated front end: clients with their streams, and the journal with which requests move.

Checks that every stream gets the tokens of a fault-free run, each once, wherever tokens are computed.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.chaos.simulation.requests import Request
from holdfast.chaos.simulation.world import Engine, World
from holdfast.core.requests.journal import RequestJournal
from holdfast.core.states import EngineState
from holdfast.hosts.fake import OutputToken, fault_free_output


class SimulatedFrontEnd:
    """Streams of all clients, and the engine core that computes each stream."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._journal: RequestJournal[Request] = RequestJournal()
        self._homes: dict[str, int | None] = {}  # none: it waits for somebody who can take it
        self._streams: dict[str, list[int]] = {}
        self._expected: dict[str, list[int]] = {}
        self._unfinished: str | None = None  # a stream that was not whole at the last look
        self.moved = 0

    # ---- clients

    def expect(self, request: Request) -> None:
        """Note the tokens of a fault-free run, before the client comes."""
        self._expected[request.name] = fault_free_output(request.prompt, request.max_tokens, request.ranks)

    def accept(self, request: Request, engine_id: int) -> None:
        """Open a request and send the request to an engine core."""
        if request.name in self._expected:
            self._streams[request.name] = []
            self._journal.open(request.name, request)
            self._send([request.name], engine_id)

    def abort(self, name: str) -> None:
        """Forget a request because the client leaves; the request must not come back."""
        del self._expected[name]
        self._streams.pop(name, None)
        self._journal.close(name)
        home = self._homes.pop(name, None)
        if home is not None:
            self._world.engines[home].abort(name)

    def end(self, engine: Engine, request_ids: Iterable[str]) -> None:
        """Take requests that an engine core ended with an error."""
        for name in [one for one in request_ids if one in self._journal and self._homes[one] == engine.engine_id]:
            self._world.law(self._world.conditions.is_poison(name), f"request {name} is ended for a reason")
            del self._expected[name]
            del self._streams[name]
            self._journal.close(name)

    def deliver(self, engine: Engine, outputs: Iterable[OutputToken]) -> None:
        """Take outputs of an engine core; drop outputs of requests that have moved away."""
        is_current = self._world.engines[engine.engine_id] is engine
        for output in outputs:
            name = output.request_id
            if is_current and name in self._journal and self._homes[name] == engine.engine_id:
                self._take(name, output.token)

    def _take(self, name: str, token: int) -> None:
        stream, expected = self._streams[name], self._expected[name]
        right = len(stream) < len(expected) and expected[len(stream)] == token
        self._world.law(right, f"request {name} gets the tokens of a fault-free run")
        stream.append(token)
        self._journal.deliver(name, [token])
        if len(stream) == len(expected):
            self._journal.close(name)

    # ---- engines

    def lost(self, engine_id: int) -> None:
        """Move the requests of a lost engine core to a sibling, or keep them until a replacement comes."""
        self._send([name for name in self._journal if self._homes[name] == engine_id], engine_id)

    def returned(self, engine_id: int) -> None:
        """Send waiting requests to the replacement of an engine core."""
        self._send([name for name in self._journal if self._homes[name] is None], engine_id)

    def _send(self, names: list[str], engine_id: int) -> None:
        for name in names:
            entry = self._journal.get(name)
            assert entry is not None
            began = name in self._homes
            home = self._home_for(entry.request, engine_id)
            self._homes[name] = home
            if home is not None:
                self.moved += began
                self._world.engines[home].add(entry.request, list(entry.delivered))

    def _home_for(self, request: Request, preferred: int) -> int | None:
        gone = (EngineState.RESTARTING, EngineState.LEFT_OUT)
        takers = [e for e in self._world.client.view().engines if e.state not in gone]
        alike = [e.engine_id for e in takers if self._world.engines[e.engine_id].ranks == request.ranks]
        return preferred if preferred in alike else next(iter(alike), None)

    # ---- how it ended

    @property
    def is_done(self) -> bool:
        """Whether every stream is whole: this is asked after every call of a run."""
        if self._unfinished in self._expected and self._is_unfinished(self._unfinished):
            return False
        self._unfinished = next(filter(self._is_unfinished, self._expected), None)
        return self._unfinished is None

    def _is_unfinished(self, name: str) -> bool:
        return self._streams.get(name) != self._expected[name]

    @property
    def finished(self) -> int:
        return sum(self._streams.get(name) == tokens for name, tokens in self._expected.items())
