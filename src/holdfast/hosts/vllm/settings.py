"""How the settings reach every process of an instance.

An operator's settings arrive in the host's `additional_config`. They leave it before the engine cores
start: the host hashes that mapping into the key of its compile cache, and a run-time folder in it
would make every start compile anew. The processes of the instance find them in their environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from holdfast.core.config import HoldfastConfig, dump_config, parse_config
from holdfast.core.errors import BadConfiguration

KEY = "holdfast"
ENVIRONMENT = "HOLDFAST_SETTINGS"
JOINS_EPOCH = "HOLDFAST_JOINS_EPOCH"


def take_settings(vllm_config: Any) -> HoldfastConfig | None:
    """The operator's settings, removed from the host's configuration; none when there are none."""
    additional = vllm_config.additional_config
    if not isinstance(additional, dict) or KEY not in additional:
        return None
    settings = additional.pop(KEY)
    if not isinstance(settings, dict):
        raise BadConfiguration(f"additional_config[{KEY!r}] must be an object of settings")
    return parse_config(settings)


def is_asked_for(args: Any) -> bool:
    """Whether the arguments of a serve command ask for protection."""
    settings = (getattr(args, "additional_config", None) or {}).get(KEY)
    return isinstance(settings, dict) and bool(settings.get("enable_fault_tolerance", True))


def inherited_settings() -> HoldfastConfig | None:
    """The settings of the instance that this process belongs to; none outside of one."""
    encoded = os.environ.get(ENVIRONMENT)
    return parse_config(json.loads(encoded)) if encoded else None


def joins_epoch() -> int | None:
    """The epoch of the lockstep group that the engine core of this process joins; none where it starts with it."""
    epoch = os.environ.get(JOINS_EPOCH)
    return int(epoch) if epoch else None


@contextmanager
def handed_down(config: HoldfastConfig, joins_epoch: int | None = None) -> Iterator[None]:
    """Processes started inside inherit `config`, and which epoch they join."""
    os.environ[ENVIRONMENT] = json.dumps(dump_config(config))
    if joins_epoch is not None:
        os.environ[JOINS_EPOCH] = str(joins_epoch)
    try:
        yield
    finally:
        del os.environ[ENVIRONMENT]
        os.environ.pop(JOINS_EPOCH, None)
