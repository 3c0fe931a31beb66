"""The commands of an operator: one tagged union, the same from the HTTP call to the instance.

An API server parses a request into a command; a front-end link forwards the command as it is; the instance matches
it. A new command is a class here, a case in `Instance`, and a case in `api.requests`.
"""

from __future__ import annotations

import enum

import msgspec

from holdfast.core.config import RuntimeSettings, SettingValue
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol.decoding import Message


class Credential(enum.StrEnum):
    """Reason to admit the giver of a command: the control token, by its source, or the connection itself."""

    TOKEN_FROM_ENVIRONMENT = "token-from-environment"
    TOKEN_FROM_FILE = "token-from-file"
    TOKEN_MADE_AT_START = "token-made-at-start"
    SAME_USER = "same-user"  # a process of the server's own user, on a unix socket
    OPEN_TO_THIS_MACHINE = "open-to-this-machine"  # no token: the operator has opened control
    PAGE_SESSION = "page-session"  # the cookie of a page that somebody with the token logged in to


class Giver(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Giver of a command. `uid` is the user at the other end of a unix socket, `address` that of a TCP connection.

    Both are None for a peer that the transport does not know. Behind a proxy, the peer is the proxy.
    """

    credential: Credential
    address: str | None = None
    uid: int | None = None
    idempotency_key: str | None = None


class BaseCommand(Message, frozen=True, kw_only=True):
    """Base of the commands. `command_id` stays the same down to the last worker, and in every event."""

    command_id: str
    given_by: Giver | None = None

    def longest_s(self, settings: RuntimeSettings) -> float:
        """Return the seconds within which the instance ends the command, with success or an error."""
        return settings.containment_timeout_s + settings.drain_timeout_s + settings.rebuild_timeout_s

    def repeats(self, other: BaseCommand) -> bool:
        """Return whether another command is the same one, whoever gave each."""
        return msgspec.structs.replace(self, given_by=None) == msgspec.structs.replace(other, given_by=None)


class Retry(BaseCommand, frozen=True, kw_only=True, tag="retry"):
    """Recover the lockstep groups of some engines; without `engine_ids` every paused group."""

    engine_ids: tuple[int, ...] = ()

    def longest_s(self, settings: RuntimeSettings) -> float:
        """Return the bound; a rank may need a new process before the group can resume."""
        return super().longest_s(settings) + settings.worker_start_timeout_s


class Pause(BaseCommand, frozen=True, kw_only=True, tag="pause"):
    """Pause the lockstep groups of some engines, or all. Soft: at the next step boundary; else at once."""

    engine_ids: tuple[int, ...] = ()
    soft: bool = False


class Resume(BaseCommand, frozen=True, kw_only=True, tag="resume"):
    """Resume groups that the operator paused; without `engine_ids` every paused group."""

    engine_ids: tuple[int, ...] = ()

    def longest_s(self, settings: RuntimeSettings) -> float:
        """Return the bound; a rank may need a new process before the group can resume."""
        return super().longest_s(settings) + settings.worker_start_timeout_s


class RestartWorkers(BaseCommand, frozen=True, kw_only=True, tag="restart-workers"):
    """Give ranks of a healthy engine a new process; without `ranks` every rank."""

    engine_id: int
    ranks: tuple[int, ...] = ()

    def longest_s(self, settings: RuntimeSettings) -> float:
        """Return the bound; a new process loads the model."""
        return super().longest_s(settings) + settings.worker_start_timeout_s


class RestartEngine(BaseCommand, frozen=True, kw_only=True, tag="restart-engine"):
    """Replace the processes of an engine core and of its workers, in any state."""

    engine_id: int

    def longest_s(self, settings: RuntimeSettings) -> float:
        """Return the bound; the old process is waited for, the new one loads the model."""
        return super().longest_s(settings) + settings.engine_start_timeout_s + settings.containment_timeout_s


class Configure(BaseCommand, frozen=True, kw_only=True, tag="configure"):
    """Change settings at run time, by key; all of the changes are made, or none."""

    settings: dict[str, SettingValue]


class InjectFault(BaseCommand, frozen=True, kw_only=True, tag="inject-fault"):
    """Arm a fault, on a server with fault injection."""

    spec: InjectionSpec


Command = Retry | Pause | Resume | RestartWorkers | RestartEngine | Configure | InjectFault
