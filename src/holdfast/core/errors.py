"""Every error that Holdfast raises, divided by whose fault it is.

    HoldfastError
    ├── OperatorError            the operator's: a setting, a command, a missing token
    │   ├── BadConfiguration     a key, a value or a combination that makes no sense
    │   ├── BadCommand       a command that cannot be understood                (400)
    │   ├── UnknownEngine        a command for an engine that does not exist        (404)
    │   ├── UnknownIncident      an incident that is not kept, or never was         (404)
    │   └── CommandConflict  a command that is not applicable now        (409)
    ├── HostError                the host's: an unknown version, or a hook without a target
    │   ├── UnsupportedHost      a version we were never tested against
    │   └── HookNotAttached      a hook found nothing to hold on to
    ├── WorldError               the world's: a port in use, a process that does not answer
    │   ├── PortInUse
    │   ├── PeerSilent           a bounded wait ended without an answer
    │   └── NonFiniteLogits      a step computed NaN or Inf
    └── RecoveryError            a recovery that did not work; a fault like any other
        ├── RankFenced           a failed rank refuses work until it is let back in
        └── RecoveryFailed

An error names its subject and, in the hint, a remedy.
"""

from __future__ import annotations

from collections.abc import Sequence


class HoldfastError(Exception):
    """Base of all errors of Holdfast; `hint` names a remedy."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


class OperatorError(HoldfastError):
    """A setting or a command of the operator cannot be carried out."""


class BadConfiguration(OperatorError):
    """A setting is unknown, has the wrong type, or contradicts a second setting."""


class BadCommand(OperatorError):
    """A command cannot be understood."""


class UnknownEngine(OperatorError):
    """A command names an engine that does not exist."""


class UnknownIncident(OperatorError):
    """A call names an incident that is not kept."""


class CommandConflict(OperatorError):
    """A command is not applicable in the present state."""

    def __init__(self, message: str, *, state: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.state = state


class HostError(HoldfastError):
    """The host differs from the tested releases."""


class UnsupportedHost(HostError):
    """The host's version was never tested."""


class HookNotAttached(HostError):
    """A hook did not attach; the server must not start unprotected."""


class WorldError(HoldfastError):
    """The machine or a foreign process failed."""


class PortInUse(WorldError):
    """A port to bind is in use by a foreign process."""


class PeerSilent(WorldError):
    """A bounded wait ended without an answer; `rank` is the silent rank, if known."""

    def __init__(self, message: str, *, hint: str = "", rank: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.rank = rank


class NonFiniteLogits(WorldError):
    """A step computed NaN or Inf. `request_ids` are the affected requests, `phase` the phase of the check."""

    phase: str | None = None

    def __init__(self, message: str, *, request_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.request_ids = tuple(request_ids)


class RecoveryError(HoldfastError):
    """A recovery did not work."""


class RankFenced(RecoveryError):
    """A failed rank refuses work until the recovery lets the rank back in."""


class RecoveryFailed(RecoveryError):
    """A step of a recovery raised or did not end in time."""
