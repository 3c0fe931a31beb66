"""An input of a client that raises as the host's engine core takes the input: an admission, an abort."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import DPEngineCoreProc

from contract.hosts.vllm_rig import VllmRig
from holdfast.hosts.vllm.engine.salvage import input_under_way

pytestmark = pytest.mark.host


class Rig(VllmRig):
    """A rig to which inputs come as they do in a server: over the queue of the busy loop."""

    def _accept(self, *args: Any) -> None:
        add, self._core.add_request = self._core.add_request, self._enqueue
        try:
            super()._accept(*args)
        finally:
            self._core.add_request = add

    def _enqueue(self, request: Any, wave: int = 0) -> None:
        self._core.input_queue.put((EngineCoreRequestType.ADD, (request, wave)))

    def abort(self, request_id: str) -> None:
        self._core.input_queue.put((EngineCoreRequestType.ABORT, [request_id]))

    def raise_in(self, owner: Any, name: str, times: int = 1) -> None:
        """Have a method of the host raise a few times."""
        call: Callable[..., Any] = getattr(owner, name)
        left = iter(range(times))

        def run(*args: Any, **kwargs: Any) -> Any:
            if next(left, None) is not None:
                raise ValueError(f"injected in {name}")
            return call(*args, **kwargs)

        setattr(owner, name, run)

    @property
    def scheduler(self) -> Any:
        return self._core.scheduler


class Unknown(dict[str, Any]):
    """The requests of a scheduler; a new request cannot be noted once."""

    raises = True

    def __setitem__(self, request_id: str, request: Any) -> None:
        if self.raises and request_id == "new":
            self.raises = False
            raise MemoryError
        super().__setitem__(request_id, request)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    made.add("old", 8, [7, 8, 9])
    for _ in range(2):
        made.step()
    yield made
    made.close()


def test_a_request_whose_admission_raises_once_is_admitted_after_the_recovery(rig: Rig) -> None:
    """The retry takes the input again; the request gets every token, and no error."""
    rig.raise_in(rig.scheduler, "add_request")
    rig.add("new", 8)
    assert rig.recover(rig.failing_step()).failed_requests == 0
    rig.step()
    assert rig.engine.unfinished_requests() == 2
    rig.run()
    assert rig.ended == {}
    assert rig.is_exact


def test_a_request_that_was_queued_and_is_not_known_yet_is_admitted_once(rig: Rig) -> None:
    """The host queues a request before it notes the request."""
    rig.scheduler.requests = Unknown(rig.scheduler.requests)
    rig.add("new", 8)
    rig.recover(rig.failing_step())
    rig.step()
    rig.run()
    assert rig.is_exact


def test_a_request_whose_admission_raises_again_ends_alone(rig: Rig) -> None:
    rig.raise_in(rig.scheduler, "add_request", times=2)
    rig.add("new", 8)
    rig.recover(rig.failing_step())
    assert rig.recover(rig.failing_step()).failed_requests == 1
    rig.run()
    assert list(rig.ended) == ["new"]
    assert rig.is_exact


def test_an_abort_that_raises_is_carried_out_after_the_recovery(rig: Rig) -> None:
    """Nothing more is computed for a client that is gone."""
    rig.raise_in(rig.scheduler, "finish_requests")
    rig.abort("old")
    rig.recover(rig.failing_step())
    rig.step()
    assert rig.engine.unfinished_requests() == 0


def test_an_interrupt_is_no_input_to_take_again(rig: Rig) -> None:
    rig.engine.interrupt()
    rig.recover(rig.failing_step())
    rig.run()
    assert rig.is_exact


def test_in_lockstep_the_request_is_found_as_well() -> None:
    """The host's engine core of a lockstep group handles inputs by a method of its own, which calls the other."""
    engine = DPEngineCoreProc.__new__(DPEngineCoreProc)
    engine.input_queue = queue.Queue()
    engine.add_request = lambda *_: 1 // 0  # type: ignore[method-assign]
    engine._reject_add_in_shutdown = lambda _: False  # type: ignore[method-assign]
    engine.reject_new_requests = False  # an attribute since 0.33
    added = (SimpleNamespace(request_id="new"), 0)
    with pytest.raises(ZeroDivisionError) as raised:
        engine._handle_client_request(EngineCoreRequestType.ADD, added)
    assert input_under_way(raised.value) == (EngineCoreRequestType.ADD, added)
