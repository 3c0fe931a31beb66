"""The count of the collectives of a step, and how a failed rank takes part in those that are left.

A collective is counted where the host's communicator carries it out. On the step path this is plain increments by the
main thread. A rank that finishes a failed step runs the model from its start: the collectives that it has taken part
in before are answered without the peers (muted), in all others it sends zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
        fill: what a finishing rank sends.
    """

    def __init__(self) -> None:
        self.entered = self.left = self.carried_out = 0
        self.is_opaque = False
        self.fill = 0.0
        self._is_finishing = False
        self._muted = 0

    def begin_step(self) -> None:
        """Count from zero again."""
        self.entered = self.left = 0
        self.is_opaque = False

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

    def counted_opaque(self, collective: Collective, *args: Any, **kwargs: Any) -> Any:
        """Carry out a collective that cannot be muted, so that no later exception of the step is finished."""
        self.is_opaque = True
        return collective(*args, **kwargs)


COUNT = CollectiveCount()
