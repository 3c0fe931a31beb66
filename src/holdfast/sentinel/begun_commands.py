"""Memory of the commands that were begun: a repeated command gets the outcome of the first, and runs once.

A caller repeats a command when the answer was lost. Both have the same id, made from the caller's idempotency key.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass

from holdfast.core.errors import CommandConflict, RecoveryFailed
from holdfast.core.protocol.commands import Command
from holdfast.core.protocol.events import InstanceView

MAX_REMEMBERED = 1024
REMEMBERED_S = 24 * 3600.0
_UNKNOWN = "the first caller of this command has left, and the outcome went to nobody"


@dataclass(frozen=True)
class _Begun:
    command: Command
    outcome: Future[None]
    begun_at: float


class BegunCommands:
    """The commands of the last 24 hours, each with the future of its outcome. Refused commands are not remembered."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Begun] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, command: Command, outcome: Future[None], now: float) -> None:
        """Remember a command that was begun; forget the oldest beyond the bound."""
        self._known[command.command_id] = _Begun(command, outcome, now)
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)

    def answer_again(self, command: Command, ended: Future[None], view: InstanceView, now: float) -> bool:
        """Have `ended` end as the first command of the same id does; return False for a new id.

        Another command of the same id fails with `CommandConflict`.
        """
        self._forget_old(now)
        known = self._known.get(command.command_id)
        if known is None:
            return False
        if command.repeats(known.command):
            known.outcome.add_done_callback(lambda done: _pass_on(done, ended))
        else:
            text = "the idempotency key was used for another command"
            hint = "send a new key with a new command"
            ended.set_exception(CommandConflict(text, state=view.engines[0].state, hint=hint))
        return True

    def _forget_old(self, now: float) -> None:
        while self._known and next(iter(self._known.values())).begun_at <= now - REMEMBERED_S:
            self._known.popitem(last=False)


def _pass_on(done: Future[None], ended: Future[None]) -> None:
    if not ended.set_running_or_notify_cancel():  # the caller has left
        return
    error = RecoveryFailed(_UNKNOWN, hint="poll the status") if done.cancelled() else done.exception()
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)
