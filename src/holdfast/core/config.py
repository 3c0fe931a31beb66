"""The settings: one frozen object, with the keys of the flags and of --additional-config.

Owns names, defaults, bounds and the errors about them. Knows no argument parser and no host.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from holdfast.core.errors import BadConfiguration
from holdfast.core.faults.classification import SETTING as FAULT_CLASSES
from holdfast.core.faults.classification import OwnRow, parse_rows

FaultPolicy = Literal["auto", "external", "dry-run"]
NotifyPort = Annotated[int, msgspec.Meta(ge=-1, le=65535)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]

NOTIFY_PORT = 22867
NO_NOTIFY_PORT = -1
NODE_PORT = 22868
_SET_BY_FRONT_END = ("runtime_dir", "node_count")

_UNSAFE = ("unsafe_keep_suspect_blocks", "unsafe_send_nan", "unsafe_skip_exit_check", "unsafe_skip_fence")

SettingValue = bool | int | float | str
S = TypeVar("S")

_RENAMED = {
    "engine_recovery_timeout_s": "engine_recovery_timeout",
    "retry_window_s": "retry_window",
    "poison_memory_s": "poison_memory",
    "drain_timeout_s": "drain_timeout",
    "rebuild_timeout_s": "rebuild_timeout",
    "acknowledge_timeout_s": "acknowledge_timeout",
    "api_server_restart_window_s": "api_server_restart_window",
    "gloo_comm_timeout_s": "gloo_comm_timeout",
    "node_return_timeout_s": "node_return_timeout",
    "containment_timeout_s": "containment_timeout",
    "engine_restart_window_s": "engine_restart_window",
    "engine_start_timeout_s": "engine_start_timeout",
    "worker_restart_window_s": "worker_restart_window",
    "worker_start_timeout_s": "worker_start_timeout",
}


class RuntimeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=_RENAMED):
    """Settings that an operator may change while the server runs: the policy, the budgets, the time limits."""

    fault_policy: FaultPolicy = "auto"
    external_fallback: Literal["none", "auto"] = "none"  # when no command came in time
    max_ranks_out: Count | str = "100%"  # at once, a number of ranks or a share of all
    engine_recovery_timeout_s: Seconds = 120.0
    accept_stale_state: bool = False  # let a new process serve without state that was set at run time
    max_retries: Count = 10
    retry_window_s: Seconds = 60.0
    drain_timeout_s: Seconds = 10.0
    containment_timeout_s: Seconds = 30.0
    acknowledge_timeout_s: Seconds = 5.0
    rebuild_timeout_s: Seconds = 30.0
    max_engine_restarts: Count = 5
    engine_restart_window_s: Seconds = 600.0
    engine_start_timeout_s: Seconds = 600.0
    min_engines: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1  # that serve on where one is left out
    max_api_server_restarts: Count = 5  # of each, and of the data-parallel coordinator
    api_server_restart_window_s: Seconds = 600.0
    max_worker_restarts: Count = 20
    worker_restart_window_s: Seconds = 600.0
    worker_start_timeout_s: Seconds = 600.0
    poison_memory_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 600.0  # 0: nothing is remembered

    def __post_init__(self) -> None:
        if self.external_fallback != "none" and self.fault_policy != "external":
            raise BadConfiguration(
                f"external_fallback {self.external_fallback} makes no sense with fault_policy {self.fault_policy}",
                hint="it goes with external",
            )
        _refuse_unknown_cap(self.max_ranks_out)

    @property
    def repairs_unasked(self) -> bool:
        """Whether a lost process is replaced without a command: no command could be sent to a lost process."""
        return "auto" in (self.fault_policy, self.external_fallback)


class HoldfastConfig(RuntimeSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=_RENAMED):
    """All settings. A key is the name of the flag with underscores."""

    enable_fault_tolerance: bool = True
    standby_workers: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0  # of each engine core
    standby_preload: bool = False
    wait_for_standby: bool = False  # before the instance is ready for the first time
    standby_engines: Annotated[int, msgspec.Meta(ge=0, le=8)] = 0  # of the instance
    adopt_workers: bool = False  # of an engine core that dies, by its replacement
    stall_detection: bool = True
    check_logits: bool = False
    fault_classes: tuple[OwnRow, ...] = ()  # rows that come before those of the table
    poison_detection: bool = True
    recovery_prefill_tokens: Count = 512  # of a step, beside requests that lost nothing; 0: as many as fit
    incident_dir: str = ""  # empty: the user's state folder
    max_incidents: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    max_incident_mib: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 256  # of all incidents together
    log_format: Literal["text", "json"] = "text"
    full_texts_file: str = ""  # empty: texts of exceptions as they are are kept in memory only
    # Of a gloo collective. None: the host's own; a prefill or a compilation on one rank keeps its peers waiting.
    gloo_comm_timeout_s: Seconds | None = None
    external_fault_notify_host: str = "127.0.0.1"
    # None: NOTIFY_PORT, or a free one where that is taken. -1: no notifications.
    external_fault_notify_port: NotifyPort | None = None
    open_notifications_to_network: bool = False
    max_held_requests: Count = 1024
    max_journal_mib: Count = 4096  # of multimodal inputs of open requests, in each API server
    control_token_file: str = ""  # empty: HOLDFAST_API_KEY, else a token made at start
    open_control_to_this_machine: bool = False
    enable_fault_injection: bool = False
    allow_unknown_host: bool = False
    node_secret_file: str = ""  # empty: HOLDFAST_NODE_SECRET
    node_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = NODE_PORT
    node_return_timeout_s: Seconds = 600.0
    # Supplies what the host's CPU platform lacks to run many ranks; no effect on another platform.
    cpu_enablement: bool = True
    # A failed rank takes part in what is left of its step, so that no collective needs to be broken.
    finish_steps: bool = True
    # Only with fault injection: leave what a failed step was to write in the prefix cache.
    # It makes answers wrong; it exists so that a test can show that eviction is needed.
    unsafe_keep_suspect_blocks: bool = False
    # Likewise: let a rank that raised take part in the next step, as it would without Holdfast.
    unsafe_skip_fence: bool = False
    # Likewise: deliver the result of a step although a rank raised in the step, or before.
    unsafe_skip_exit_check: bool = False
    # Likewise: a rank that takes part in the rest of its step sends NaN in place of zeros.
    unsafe_send_nan: bool = False
    # Set by the front end for the processes it starts; never by an operator.
    runtime_dir: str = ""
    node_count: int = 1

    def __post_init__(self) -> None:
        unsafe = {name for name in _UNSAFE if getattr(self, name)}
        if unsafe and not self.enable_fault_injection:
            raise BadConfiguration(
                f"{' and '.join(sorted(unsafe))} makes answers wrong and is for tests only",
                hint="it needs enable_fault_injection",
            )
        RuntimeSettings.__post_init__(self)


def _refuse_unknown_cap(cap: int | str) -> None:
    if isinstance(cap, str):
        try:
            share_of(cap)
        except ValueError as error:
            raise BadConfiguration(f"max_ranks_out: {error}") from None


def share_of(cap: str) -> float:
    """Return the share that a text such as "25%" names. Raises `ValueError` for any other text."""
    if not cap.endswith("%"):
        raise ValueError(f"{cap!r} is neither a number of ranks nor a share such as '25%'")
    try:
        share = float(cap[:-1]) / 100
    except ValueError:
        raise ValueError(f"{cap!r} is no share such as '25%'") from None
    if not 0 < share <= 1:
        raise ValueError(f"{cap!r} is not above 0% and at most 100%")
    return share


class SettingChange(msgspec.Struct, frozen=True, kw_only=True):
    """Change of a setting at run time; `name` is the key of the setting."""

    name: str
    old: SettingValue
    new: SettingValue

    def __str__(self) -> str:
        return f"{self.name} {_shown(self.old)} -> {_shown(self.new)}"


def _shown(value: SettingValue) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def known_keys() -> tuple[str, ...]:
    """Return the keys that an operator may set, in the order of the settings."""
    fields = msgspec.structs.fields(HoldfastConfig)
    return tuple(f.encode_name for f in fields if f.name not in _SET_BY_FRONT_END)


def changeable_keys() -> tuple[str, ...]:
    """Return the keys that an operator may change while the server runs, in the order of the settings."""
    return tuple(f.encode_name for f in msgspec.structs.fields(RuntimeSettings))


def parse_config(settings: Mapping[str, Any]) -> HoldfastConfig:
    """Return the configuration that a mapping describes.

    Raises:
        BadConfiguration: an unknown key, with the nearest known key as a hint; a bad value; a contradiction.
    """
    for key in settings:
        if key not in known_keys() and key not in _SET_BY_FRONT_END:
            raise BadConfiguration(f"unknown setting {key!r}", hint=_nearest(key, known_keys()))
    stated = dict(settings)
    if FAULT_CLASSES in stated:
        stated[FAULT_CLASSES] = parse_rows(stated[FAULT_CLASSES])
    return _convert(stated, HoldfastConfig)


def dump_config(config: HoldfastConfig) -> dict[str, Any]:
    """Return the plain mapping of a configuration, as `parse_config` reads it."""
    built: dict[str, Any] = msgspec.to_builtins(config)
    return built


def change_settings(config: HoldfastConfig, changes: Mapping[str, SettingValue]) -> HoldfastConfig:
    """Return the configuration with some settings changed at run time; all of them or none.

    Raises:
        BadConfiguration: no setting is named; an unknown key; a setting that is fixed at the start of the
            server, with those that can be changed as a hint; a bad value; a contradiction.
    """
    if not changes:
        raise BadConfiguration("no setting is named", hint="can be changed: " + ", ".join(changeable_keys()))
    for key in changes:
        if key not in known_keys():
            raise BadConfiguration(f"unknown setting {key!r}", hint=_nearest(key, changeable_keys()))
        if key not in changeable_keys():
            raise BadConfiguration(
                f"{key} is fixed at the start of the server", hint="can be changed: " + ", ".join(changeable_keys())
            )
    stated = {**msgspec.to_builtins(runtime_settings(config)), **changes}
    return adopt_settings(config, _convert(stated, RuntimeSettings))


def runtime_settings(config: HoldfastConfig) -> RuntimeSettings:
    """Return the part of a configuration that can be changed at run time."""
    return RuntimeSettings(**{f.name: getattr(config, f.name) for f in msgspec.structs.fields(RuntimeSettings)})


def adopt_settings(config: HoldfastConfig, settings: RuntimeSettings) -> HoldfastConfig:
    """Return the configuration with the settings in force in place of its own."""
    return msgspec.structs.replace(config, **msgspec.structs.asdict(settings))


def compare_settings(old: RuntimeSettings, new: RuntimeSettings) -> tuple[SettingChange, ...]:
    """Return what differs between two sets of run-time settings, in the order of the settings."""
    changed = [f for f in msgspec.structs.fields(RuntimeSettings) if getattr(old, f.name) != getattr(new, f.name)]
    return tuple(SettingChange(name=f.encode_name, old=getattr(old, f.name), new=getattr(new, f.name)) for f in changed)


def _convert(stated: dict[str, Any], kind: type[S]) -> S:
    try:
        return msgspec.convert(stated, kind)
    except msgspec.ValidationError as error:
        raise BadConfiguration(f"holdfast settings: {error}") from None


def _nearest(key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, known, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(known)
