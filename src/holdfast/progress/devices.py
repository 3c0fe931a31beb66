"""Health of NVIDIA devices by NVML, if the Python bindings are installed: errors, throttling, memory.

A failing driver may never answer: every question has a bounded wait, and after a timeout no further question is asked.
Written from NVML's reference, tested against a stub; never run on a device.
"""

from __future__ import annotations

import importlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("holdfast")

ANSWER_S = 0.5
MAX_DEVICES = 64
MAX_XIDS = 64
_NO_ANSWER = "the driver did not answer"

# Relevant reasons for throttled clocks: the bits of NVML.
_THROTTLES = {
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}

Load = Callable[[], Any]
Health = dict[str, Any]


def load_bindings() -> Any:
    """Import NVML's bindings (`nvidia-ml-py`). Raises `ImportError` when they are not installed."""
    return importlib.import_module("pynvml")


class DeviceHealth:
    """Asks NVML on separate threads. Without bindings, a driver or a device, every answer is empty."""

    def __init__(self, load: Load = load_bindings) -> None:
        self._load = load
        self._nvml: Any = None
        self._events: Any = None
        self._handles: list[Any] = []
        self._xids: list[Health] = []
        self._is_silent = False
        self._starting = threading.Thread(target=self._start, name="DeviceHealth", daemon=True)

    def start(self) -> None:
        """Have the driver record critical errors (XID) from now on. Does not wait; call once."""
        self._starting.start()

    def look(self) -> list[Health]:
        """Return each device's health, or the reason why nothing is known; empty before the start. Bounded."""
        if self._starting.ident is None:
            return []
        if self._is_silent:
            return [{"error": _NO_ANSWER}]
        answer: list[Health] | None = self._bounded(self._look)
        return [{"error": _NO_ANSWER}] if answer is None else answer

    def _bounded(self, ask: Callable[[], Any]) -> Any:
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def answer() -> None:
            try:
                answers.put(ask())
            except Exception as error:  # the bindings' own, ctypes', a library of another release
                answers.put([{"error": f"{type(error).__name__}: {error}"}])

        threading.Thread(target=answer, name="DeviceHealth", daemon=True).start()
        try:
            return answers.get(timeout=ANSWER_S)
        except queue.Empty:
            self._is_silent = True
            logger.warning("device driver did not answer within %g s; no further questions are asked", ANSWER_S)
            return None

    # ---- on a thread that may never come back

    def _start(self) -> None:
        try:
            nvml = self._load()
            nvml.nvmlInit()
            count = min(nvml.nvmlDeviceGetCount(), MAX_DEVICES)
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
            self._nvml = nvml
            self._events = self._event_set()
        except Exception as error:  # no bindings, no driver, no such event: report nothing
            logger.debug("device health: %s", error)

    def _event_set(self) -> Any:
        events = self._nvml.nvmlEventSetCreate()
        for handle in self._handles:
            self._nvml.nvmlDeviceRegisterEvents(handle, self._nvml.nvmlEventTypeXidCriticalError, events)
        return events

    def _look(self) -> list[Health]:
        self._starting.join()
        if self._nvml is None:
            return []
        self._take_xids()
        return [self._health(index, handle) for index, handle in enumerate(self._handles)]

    def _take_xids(self) -> None:
        """Read the XIDs since the last look; the driver raises when none is left."""
        for _ in range(MAX_XIDS if self._events is not None else 0):
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
            except self._nvml.NVMLError:
                return
            uuid = _said(self._nvml.nvmlDeviceGetUUID, event.device)
            self._xids = [*self._xids, {"xid": int(event.eventData), "uuid": uuid}][-MAX_XIDS:]

    def _health(self, index: int, handle: Any) -> Health:
        nvml, uuid = self._nvml, _said(self._nvml.nvmlDeviceGetUUID, handle)
        questions: dict[str, Callable[[], Any]] = {
            "name": lambda: _text(nvml.nvmlDeviceGetName(handle)),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "utilization_percent": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "memory_used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "memory_total_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
            "ecc_uncorrected": lambda: self._ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            "ecc_corrected": lambda: self._ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            "remapped_rows": lambda: _remapped(nvml.nvmlDeviceGetRemappedRows(handle)),
            "throttled_by": lambda: _throttles(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            "processes": lambda: [p.pid for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle)],
        }
        answers = {name: _said(ask) for name, ask in questions.items()}
        return {
            "index": index,
            "uuid": uuid,
            **answers,
            "xids": [one["xid"] for one in self._xids if one["uuid"] == uuid],
        }

    def _ecc(self, handle: Any, kind: Any) -> int:
        """Return the number of ECC errors since the driver was loaded."""
        return int(self._nvml.nvmlDeviceGetTotalEccErrors(handle, kind, self._nvml.NVML_VOLATILE_ECC))


def _said(ask: Callable[..., Any], *about: Any) -> Any:
    """Return the answer, or the reason for a missing answer: many devices do not support every question."""
    try:
        return _text(ask(*about))
    except Exception as error:
        return f"unknown: {error}"


def _text(answer: Any) -> Any:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else answer


def _throttles(bits: int) -> list[str]:
    return [reason for bit, reason in _THROTTLES.items() if bits & bit]


def _remapped(rows: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(("corrected", "uncorrected", "pending", "failed"), rows, strict=False))
