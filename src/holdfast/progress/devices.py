"""The health of NVIDIA devices by NVML, where its Python bindings are: errors, throttling, memory. Requires nothing.

A driver that is ill may never answer: whoever asks waits for a bounded time, and asks no more after that was over.
Written from NVML's reference, tried against a stand-in; never run on a device.
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

# Why clocks are lower than they could be, as far as it is of interest: the bits of NVML.
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
    """NVML's bindings (`nvidia-ml-py`). Raises `ImportError` where they are not installed."""
    return importlib.import_module("pynvml")


class DeviceHealth:
    """Asks NVML on threads of its own. Without bindings, a driver or a device there is nothing to say."""

    def __init__(self, load: Load = load_bindings) -> None:
        self._load = load
        self._nvml: Any = None
        self._events: Any = None
        self._handles: list[Any] = []
        self._xids: list[Health] = []
        self._is_silent = False
        self._starting = threading.Thread(target=self._start, name="DeviceHealth", daemon=True)

    def start(self) -> None:
        """Have the driver remember critical errors (XID) from now on. Does not wait, and is called once."""
        self._starting.start()

    def look(self) -> list[Health]:
        """Each device's health, or the one reason why it is not known; none before the start. Bounded."""
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
            logger.warning("the driver of the devices did not answer within %g s; it is not asked again", ANSWER_S)
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
        except Exception as error:  # no bindings, no driver, no such event: what is not there is not told
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
        """What has come since the last look; the driver says that there is no more by an error."""
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
        """Since the driver was loaded."""
        return int(self._nvml.nvmlDeviceGetTotalEccErrors(handle, kind, self._nvml.NVML_VOLATILE_ECC))


def _said(ask: Callable[..., Any], *about: Any) -> Any:
    """The answer, or why there is none: many a device does not support many a question."""
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
