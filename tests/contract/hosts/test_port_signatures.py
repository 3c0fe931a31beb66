"""Every implementation of a host port has the port's methods and properties, with the port's parameters."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from holdfast.core import ports

IMPLEMENTATIONS = [
    (ports.EngineHost, "holdfast.hosts.fake.engine", "FakeEngineCore"),
    (ports.RequestHost, "holdfast.hosts.fake.requests", "FakeRequests"),
    (ports.WorkerHost, "holdfast.hosts.fake.worker", "FakeWorker"),
    (ports.Communicators, "holdfast.hosts.fake.communicators", "FakeCommunicators"),
    (ports.EngineHost, "holdfast.hosts.vllm.engine.engine_core", "VllmEngineHost"),
    (ports.RequestHost, "holdfast.hosts.vllm.engine.request_admission", "VllmRequestHost"),
    (ports.WorkerHost, "holdfast.hosts.vllm.worker.worker", "VllmWorkerHost"),
    (ports.FrontEndHost, "holdfast.hosts.vllm.owner.owner", "VllmFrontEndHost"),
    (ports.Communicators, "holdfast.hosts.vllm.communicators.worker", "WorkerCommunicators"),
    (ports.Communicators, "holdfast.hosts.vllm.communicators.engine", "EngineCommunicators"),
]


def members(port: type) -> list[tuple[str, Any]]:
    """Return the methods and properties that a port declares, by name."""
    return [(name, member) for name, member in vars(port).items() if not name.startswith("_")]


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    """Return name, kind and default of each parameter."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def problem(implementation: type, name: str, declared: Any) -> str | None:
    """Return the problem with an implementation of a member, or None when the member conforms."""
    found = inspect.getattr_static(implementation, name, None)
    if isinstance(declared, property):  # an attribute of the instance will do
        assigned = f"self.{name} =" in inspect.getsource(implementation)
        return None if isinstance(found, property) or assigned else f"{name} is no property and never assigned"
    if not inspect.isfunction(found):
        return f"{name} is no method"
    expected, present = parameters(declared), parameters(found)
    return None if expected == present else f"{name} takes {present}, the port declares {expected}"


@pytest.mark.parametrize(
    ("port", "module", "name"), IMPLEMENTATIONS, ids=lambda value: getattr(value, "__name__", value)
)
def test_an_implementation_has_what_its_port_declares(port: type, module: str, name: str) -> None:
    """An implementation without a method of the port, or with different parameters, does not conform."""
    if module.startswith("holdfast.hosts.vllm"):
        pytest.importorskip("vllm")
    implementation = getattr(importlib.import_module(module), name)
    assert [p for member, declared in members(port) if (p := problem(implementation, member, declared))] == []


@pytest.mark.parametrize(
    "method", ["def end(self, request_id): ...", "end = 3", ""], ids=["other", "no method", "none"]
)
def test_a_drift_is_found(method: str) -> None:
    """Different parameters, an attribute in place of a method and a missing method are all found."""
    namespace: dict[str, Any] = {}
    exec(method, namespace)
    drifted = type("Drifted", (), {"end": namespace["end"]} if method else {})
    assert problem(drifted, "end", vars(ports.RequestHost)["end"])
