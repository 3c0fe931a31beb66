"""Every error that Holdfast raises, divided by whose fault it is.

    HoldfastError
    ├── OperatorError            the operator's: a setting, a command, a missing token
    │   ├── BadConfiguration     a key, a value or a combination that makes no sense
    │   ├── BadCommand       a command that cannot be understood                (400)
    │   ├── UnknownEngine        a command for an engine that does not exist        (404)
    │   └── CommandConflict  a command that makes no sense in this state        (409)
    ├── HostError                the host's: it is not what we know, or did not let us in
    │   ├── UnsupportedHost      a version we were never tested against
    │   └── HookNotAttached      a hook found nothing to hold on to
    ├── WorldError               the world's: a port in use, a process that does not answer
    │   ├── PortInUse
    │   ├── PeerSilent           a bounded wait ended without an answer
    │   └── NonFiniteLogits      a step computed what is no number
    └── RecoveryError            a recovery that did not work; a fault like any other
        ├── RankFenced           a failed rank refuses work until it is let back in
        └── RecoveryFailed

An error says what it is about and, in its hint, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class HoldfastError(Exception):
    """Base of all; `hint` says what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


class OperatorError(HoldfastError):
    """Something the operator said cannot be done as said."""


class BadConfiguration(OperatorError):
    """A setting is unknown, has the wrong type, or contradicts another one."""


class BadCommand(OperatorError):
    """An instruction cannot be understood."""


class UnknownEngine(OperatorError):
    """An instruction names an engine that this instance does not have."""


class CommandConflict(OperatorError):
    """An instruction makes no sense in the present state."""

    def __init__(self, message: str, *, state: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.state = state


class HostError(HoldfastError):
    """The host is not what Holdfast knows."""


class UnsupportedHost(HostError):
    """The host's version was never tested."""


class HookNotAttached(HostError):
    """A hook did not attach; the server must not start unprotected."""


class WorldError(HoldfastError):
    """The machine or another process did not do its part."""


class PortInUse(WorldError):
    """A port that is to be bound belongs to somebody else."""


class PeerSilent(WorldError):
    """A bounded wait ended without an answer. `rank` says whose, where that is known."""

    def __init__(self, message: str, *, hint: str = "", rank: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.rank = rank


class NonFiniteLogits(WorldError):
    """A step computed what is no number. `request_ids` says in whose part of it, `phase` where it was found."""

    phase: str | None = None

    def __init__(self, message: str, *, request_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.request_ids = tuple(request_ids)


class RecoveryError(HoldfastError):
    """A recovery did not work."""


class RankFenced(RecoveryError):
    """A rank that has failed refuses work until it is let back in."""


class RecoveryFailed(RecoveryError):
    """A step of a recovery raised or did not end in time."""
