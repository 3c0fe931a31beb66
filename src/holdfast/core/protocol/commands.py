"""The commands of an operator: one tagged union, the same from the HTTP call to the instance.

An API server parses a request into a command; a front-end link forwards the command as it is; the instance matches
it. A new command is a class here, a case in `Instance.submit`, and a case in `api.requests`.
"""

from __future__ import annotations

from holdfast.core.config import RuntimeSettings, SettingValue
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol.messages import Message


class BaseCommand(Message, frozen=True):
    """Base of the commands. `command_id` stays the same down to the last worker, and in every event."""

    command_id: str

    def longest_s(self, settings: RuntimeSettings) -> float:
        """Return the seconds within which the instance ends the command, with success or an error."""
        return settings.containment_timeout_s + settings.drain_timeout_s + settings.rebuild_timeout_s


class Retry(BaseCommand, frozen=True, tag="retry"):
    """Recover the lockstep groups of some engines; without `engine_ids` every paused group."""

    engine_ids: tuple[int, ...] = ()

    def longest_s(self, settings: RuntimeSettings) -> float:
        """Return the bound; a rank may need a new process before the group can resume."""
        return super().longest_s(settings) + settings.worker_start_timeout_s


class Pause(BaseCommand, frozen=True, tag="pause"):
    """Pause the lockstep groups of some engines, or all. Soft: at the next step boundary; else at once."""

    engine_ids: tuple[int, ...] = ()
    soft: bool = False


class Resume(BaseCommand, frozen=True, tag="resume"):
    """Resume groups that the operator paused; without `engine_ids` every paused group."""

    engine_ids: tuple[int, ...] = ()

    def longest_s(self, settings: RuntimeSettings) -> float:
        """Return the bound; a rank may need a new process before the group can resume."""
        return super().longest_s(settings) + settings.worker_start_timeout_s


class RestartWorkers(BaseCommand, frozen=True, tag="restart-workers"):
    """Give ranks of a healthy engine a new process; without `ranks` every rank."""

    engine_id: int
    ranks: tuple[int, ...] = ()

    def longest_s(self, settings: RuntimeSettings) -> float:
        """Return the bound; a new process loads the model."""
        return super().longest_s(settings) + settings.worker_start_timeout_s


class RestartEngine(BaseCommand, frozen=True, tag="restart-engine"):
    """Replace the processes of an engine core and of its workers, in any state."""

    engine_id: int

    def longest_s(self, settings: RuntimeSettings) -> float:
        """Return the bound; the old process is waited for, the new one loads the model."""
        return super().longest_s(settings) + settings.engine_start_timeout_s + settings.containment_timeout_s


class Configure(BaseCommand, frozen=True, tag="configure"):
    """Change settings at run time, by key; all of the changes are made, or none."""

    settings: dict[str, SettingValue]


class InjectFault(BaseCommand, frozen=True, tag="inject-fault"):
    """Arm a fault, on a server with fault injection."""

    spec: InjectionSpec


Command = Retry | Pause | Resume | RestartWorkers | RestartEngine | Configure | InjectFault
