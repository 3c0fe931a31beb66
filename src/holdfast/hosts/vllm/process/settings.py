"""Settings on the way to every process of an instance.

An operator's settings arrive in the host's `additional_config` and are removed before the engine cores start: the host
hashes that mapping into the key of its compile cache, and a run-time folder in the mapping would make every start
compile anew. The processes of the instance find the settings in the environment.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.core.config import HoldfastConfig, dump_config, parse_config
from holdfast.core.errors import BadConfiguration
from holdfast.core.faults.classification import SETTING as FAULT_CLASSES
from holdfast.hosts.vllm.process.sockets import VARIABLE as SOCKETS
from holdfast.hosts.vllm.process.sockets import holds_sockets
from holdfast.progress.places import has_reserve, reserve_of

KEY = "holdfast"
ENVIRONMENT = "HOLDFAST_SETTINGS"
MAX_FILE_CHARS = 1 << 18
JOINS_EPOCH = "HOLDFAST_JOINS_EPOCH"
RUNTIME_STATE = "HOLDFAST_RUNTIME_STATE"  # of the process in whose place a process starts, in base 64
PLACE = "HOLDFAST_PLACE"
ADOPTS = "HOLDFAST_ADOPTS"  # process ids of the workers that an engine core takes over, with commas


def take_settings(vllm_config: Any) -> HoldfastConfig | None:
    """Remove the operator's settings from the host's configuration and return them; None when there are none."""
    additional = vllm_config.additional_config
    if not isinstance(additional, dict) or KEY not in additional:
        return None
    settings = additional.pop(KEY)
    if not isinstance(settings, dict):
        raise BadConfiguration(f"additional_config[{KEY!r}] must be an object of settings")
    return parse_config(with_files_read(settings))


def read_rows(stated: str) -> object:
    """Return fault classes from a file, or from inline JSON. Raises `BadConfiguration`."""
    is_inline = stated.lstrip().startswith("[")
    name = "JSON given" if is_inline else stated
    try:
        text = stated if is_inline else _read_bounded(Path(stated))
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise BadConfiguration(f"{FAULT_CLASSES}: {name} cannot be read: {error}", hint="it holds a list") from None


def _read_bounded(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        text = file.read(MAX_FILE_CHARS + 1)
    if len(text) > MAX_FILE_CHARS:
        raise ValueError(f"more than {MAX_FILE_CHARS} characters")
    return text


def with_files_read(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the contents of named files. Raises `BadConfiguration` for an unreadable file."""
    rows = settings.get(FAULT_CLASSES)
    return {**settings, FAULT_CLASSES: read_rows(rows)} if isinstance(rows, str) else dict(settings)


def asks_for_protection(args: Any) -> bool:
    """Return whether the arguments of a serve command, or the host's configuration, ask for protection."""
    additional = getattr(args, "additional_config", None)
    settings = additional.get(KEY) if isinstance(additional, dict) else None
    return isinstance(settings, dict) and bool(settings.get("enable_fault_tolerance", True))


def inherited_settings() -> HoldfastConfig | None:
    """Return the settings of the instance that the process belongs to; None outside an instance."""
    encoded = os.environ.get(ENVIRONMENT)
    return parse_config(json.loads(encoded)) if encoded else None


def joins_epoch() -> int | None:
    """Return the epoch in which the process joins a running lockstep group; None when the group starts anew."""
    epoch = os.environ.get(JOINS_EPOCH)
    return int(epoch) if epoch else None


def adopted_workers() -> tuple[int, ...]:
    """Return the process ids of the workers that this engine core takes over; empty where it starts its own."""
    return tuple(int(pid) for pid in os.environ.get(ADOPTS, "").split(",") if pid)


@dataclass(frozen=True)
class Heritage:
    """What a process takes over from the process in whose place it starts.

    Attributes:
        joins_epoch: epoch of the lockstep group that an engine core joins; until it is admitted it has no peers.
        runtime_state: calls that set state, which an engine core repeats before it serves.
        adopts: process ids of the living workers that an engine core takes over; without any it starts workers.
    """

    joins_epoch: int | None = None
    runtime_state: bytes = b""
    adopts: Sequence[int] = ()

    def variables(self) -> dict[str, str]:
        """Return the environment variables that carry this to the process."""
        carried = {}
        if self.joins_epoch is not None:
            carried[JOINS_EPOCH] = str(self.joins_epoch)
        if self.runtime_state:
            carried[RUNTIME_STATE] = base64.b64encode(self.runtime_state).decode()
        if self.adopts:
            carried[ADOPTS] = ",".join(map(str, self.adopts))
        return carried


NOTHING = Heritage()


def inherited_variables(config: HoldfastConfig, heritage: Heritage, sockets: str | None) -> dict[str, str]:
    """Return the environment variables that a process of the instance inherits, see `handed_down`."""
    place = sockets or config.runtime_dir
    inherited = {ENVIRONMENT: json.dumps(dump_config(config)), **_place_of_sockets(place), **_temporary(config)}
    if place:
        inherited[PLACE] = place
    return inherited | heritage.variables()


@contextmanager
def handed_down(config: HoldfastConfig, heritage: Heritage = NOTHING, sockets: str | None = None) -> Iterator[None]:
    """Let processes started inside inherit `config`, the folder for `sockets`, and what they take over.

    The folder is the instance's own unless `sockets` names another.
    """
    inherited = inherited_variables(config, heritage, sockets)
    os.environ.update(inherited)
    try:
        yield
    finally:
        for name in inherited:
            os.environ.pop(name, None)


def place_of_files(runtime_dir: str) -> str:
    """Return the folder for sockets and files of this engine core and of the workers."""
    return os.environ.get(PLACE) or runtime_dir


def _temporary(config: HoldfastConfig) -> dict[str, str]:
    """Return variables that name the reserve as a temporary folder, for where the folder in use has no room left.

    Without any such folder the host could not even be imported.
    """
    if not has_reserve(config.runtime_dir):
        return {}
    wanted = {"TMPDIR": tempfile.gettempdir(), "TMP": str(reserve_of(config.runtime_dir))}
    return {name: path for name, path in wanted.items() if name not in os.environ}


def _place_of_sockets(folder: str) -> dict[str, str]:
    """Return the variable of the sockets' folder; empty when the operator set the variable or paths are too long."""
    is_ours = folder and SOCKETS not in os.environ and holds_sockets(folder)
    return {SOCKETS: folder} if is_ours else {}
