"""Who is asked for the health of the devices: NVML, by its bindings if they are installed, else by the host's copy."""

from __future__ import annotations

import importlib
from typing import Any

from holdfast.progress.devices import DeviceHealth, load_bindings


def device_health() -> DeviceHealth:
    """Started: what the devices report is remembered from now on."""
    health = DeviceHealth(_bindings)
    health.start()
    return health


def _bindings() -> Any:
    try:
        return load_bindings()
    except ImportError:
        return importlib.import_module("vllm.third_party.pynvml")
