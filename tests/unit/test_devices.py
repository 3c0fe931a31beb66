"""The health of devices, by a stand-in for NVML's bindings: never run on a device."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import Any

from holdfast.progress.devices import ANSWER_S, DeviceHealth


class NVMLError(Exception):
    """As the bindings raise it."""


@dataclass(frozen=True)
class Xid:
    """An event as the bindings hand it over."""

    device: int
    eventData: int


@dataclass
class Nvml:
    """Two devices, of which the second does not count errors of its memory."""

    events: list[Xid] = field(default_factory=list)
    registered: list[int] = field(default_factory=list)
    gate: threading.Event | None = None
    NVMLError: type[Exception] = NVMLError
    NVML_TEMPERATURE_GPU: int = 0
    NVML_MEMORY_ERROR_TYPE_CORRECTED: int = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED: int = 1
    NVML_VOLATILE_ECC: int = 0
    nvmlEventTypeXidCriticalError: int = 8

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return f"GPU-{handle}".encode()

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "a device"

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        if self.gate is not None:
            self.gate.wait()
        return 71

    def nvmlDeviceGetTotalEccErrors(self, handle: int, kind: int, counter: int) -> int:
        if handle == 1:
            raise NVMLError("Not Supported")
        return 3 * kind

    def nvmlDeviceGetRemappedRows(self, handle: int) -> tuple[int, int, bool, bool]:
        return (1, 2, True, False)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return 0x01 | 0x40

    def nvmlEventSetCreate(self) -> str:
        return "events"

    def nvmlDeviceRegisterEvents(self, handle: int, types: int, events: str) -> None:
        self.registered.append(handle)

    def nvmlEventSetWait_v2(self, events: str, timeout_ms: int) -> Xid:
        if not self.events:
            raise NVMLError("Timeout")
        return self.events.pop(0)


def started(nvml: Any) -> DeviceHealth:
    health = DeviceHealth(lambda: nvml)
    health.start()
    return health


def test_each_device_tells_its_errors_and_why_it_is_slow() -> None:
    first, second = started(Nvml()).look()
    assert (first["uuid"], first["name"], first["temperature_c"]) == ("GPU-0", "a device", 71)
    assert (first["ecc_corrected"], first["ecc_uncorrected"]) == (0, 3)
    assert first["remapped_rows"] == {"corrected": 1, "uncorrected": 2, "pending": True, "failed": False}
    assert first["throttled_by"] == ["hardware thermal slowdown"]
    assert second["ecc_uncorrected"] == "unknown: Not Supported"
    json.dumps([first, second])


def test_a_critical_error_of_a_device_is_remembered_as_its_own() -> None:
    nvml = Nvml()
    health = started(nvml)
    assert [one["xids"] for one in health.look()] == [[], []]
    nvml.events += [Xid(1, 79), Xid(1, 48)]
    assert [one["xids"] for one in health.look()] == [[], [79, 48]]
    assert [one["xids"] for one in health.look()] == [[], [79, 48]]
    assert nvml.registered == [0, 1]


def test_where_there_are_no_bindings_there_is_nothing_to_say() -> None:
    def absent() -> Any:
        raise ImportError("No module named 'pynvml'")

    health = DeviceHealth(absent)
    health.start()
    assert health.look() == []


def test_nobody_is_asked_before_the_start() -> None:
    assert DeviceHealth(Nvml).look() == []


def test_a_driver_that_does_not_answer_is_waited_for_once() -> None:
    gate = threading.Event()
    health = started(Nvml(gate=gate))
    try:
        threads = threading.active_count()
        assert [health.look() for _ in range(3)] == 3 * [[{"error": "the driver did not answer"}]]
        assert threading.active_count() <= threads + 1
    finally:
        gate.set()
    assert ANSWER_S < 1, "whatever is done about the stall waits for it"
