"""The count of the collectives of a step, and how a failed rank takes part in those that are left.

A collective is counted where the host's communicator carries it out. On the step path this is plain increments by the
main thread. A rank that finishes a failed step runs the model from its start: the collectives that it has taken part
in before are answered without the peers (muted), in all others it sends zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Collective = Callable[..., Any]


class CollectiveCount:
    """Collectives of the step under way. Main thread.

    Attributes:
        entered: begun in this step.
        left: ended in this step; an exception between the two lies inside a collective.
        carried_out: with peers, since the last restore; equal on all ranks of a group.
        is_opaque: this step had a collective that cannot be muted.
        received: transfers from the stage before, begun in this step; None before.
        is_sent: whether this step's transfer to the stage behind was begun.
        fill: what a finishing rank sends.
    """

    def __init__(self) -> None:
        self.entered = self.left = self.carried_out = 0
        self.is_opaque = False
        self.received: Sequence[OnlyOnce] | None = None
        self.is_sent = False
        self.fill = 0.0
        self._is_finishing = False
        self._muted = 0

    def begin_step(self) -> None:
        """Count from zero again."""
        self.entered = self.left = 0
        self.is_opaque = self.is_sent = False
        self.received = None

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Mute as many collectives as this step has had, and send nothing of use in all others."""
        self._muted, self._is_finishing = self.left, True
        self.begin_step()
        try:
            yield
        finally:
            self._is_finishing = False

    def counted(self, muted: Collective) -> Collective:
        """Return a wrapper of a collective, to attach to the host; `muted` answers in place of the collective."""

        def run(collective: Collective, communicator: Any, input_: Any, *args: Any, **kwargs: Any) -> Any:
            self.entered += 1
            if self._is_finishing:
                if self.entered <= self._muted:
                    self.left += 1
                    return muted(communicator, input_, *args, **kwargs)
                input_ = input_.new_full(input_.shape, self.fill)
            result = collective(communicator, input_, *args, **kwargs)
            self.left += 1
            self.carried_out += 1
            return result

        return run

    def receive(self, begin: Collective, *args: Any, **kwargs: Any) -> Any:
        """Begin to receive from the stage before. The transfers may be waited for twice."""
        self.entered += 1
        tensors, handles, afterwards = begin(*args, **kwargs)
        self.received = [OnlyOnce(self, handle) for handle in handles]
        self.left += 1
        self.carried_out += 1
        return tensors, self.received, afterwards

    def send(self, begin: Collective, *args: Any, **kwargs: Any) -> Any:
        """Begin to send to the stage behind. The transfers may be waited for twice."""
        self.entered += 1
        handles = [OnlyOnce(self, handle) for handle in begin(*args, **kwargs)]
        self.is_sent = True
        self.left += 1
        self.carried_out += 1
        return handles

    def counted_opaque(self, collective: Collective, *args: Any, **kwargs: Any) -> Any:
        """Carry out a collective that cannot be muted, so that no later exception of the step is finished."""
        self.is_opaque = True
        return collective(*args, **kwargs)


class OnlyOnce:
    """Stands for the handle of a transfer: gloo blocks where a receive is waited for a second time."""

    def __init__(self, count: CollectiveCount, handle: Any) -> None:
        self._count = count
        self._handle = handle

    def is_completed(self) -> bool:
        return self._handle is None or bool(self._handle.is_completed())

    def wait(self) -> None:
        """Wait unless waited for before. An exception of the wait lies inside a collective."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._count.entered += 1
            handle.wait()
            self._count.left += 1


COUNT = CollectiveCount()
