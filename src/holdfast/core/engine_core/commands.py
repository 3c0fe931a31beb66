"""Commands for the busy loop of an engine core, which are followed while the busy loop is paused."""

from __future__ import annotations

from collections import deque

from holdfast.core.protocol import messages as m

Command = m.RecoverEngine | m.EndEngine


class CommandQueue:
    """Commands in order of arrival, and the time of the client's last message."""

    def __init__(self) -> None:
        self._waiting: deque[Command] = deque()
        self._heard_at = 0.0

    def heard(self, now: float) -> None:
        """Note that the client is alive."""
        self._heard_at = now

    def put(self, command: Command) -> None:
        """Keep a command until the busy loop is paused."""
        self._waiting.append(command)

    def next(self, epoch: int) -> Command | None:
        """Take the next command that is not void in `epoch`; return None when no command is left."""
        while self._waiting:
            command = self._waiting.popleft()
            if isinstance(command, m.EndEngine) or command.epoch > epoch:
                return command
        return None

    def end_when_silent(self, bound_s: float, now: float) -> m.EndEngine | None:
        """Return a command to end when the client has been silent for `bound_s`; None otherwise."""
        if now - self._heard_at < bound_s:
            return None
        return m.EndEngine(command_id="", reason=f"the client has been silent for {bound_s:g} s")
