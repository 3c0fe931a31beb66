"""Health of the devices from NVML, by the installed bindings or else by the host's copy."""

from __future__ import annotations

import importlib
from typing import Any

from holdfast.progress.devices import DeviceHealth, load_bindings


def device_health() -> DeviceHealth:
    """Return a started `DeviceHealth`, which records the devices' reports from now on."""
    health = DeviceHealth(_bindings)
    health.start()
    return health


def _bindings() -> Any:
    try:
        return load_bindings()
    except ImportError:
        return importlib.import_module("vllm.third_party.pynvml")
