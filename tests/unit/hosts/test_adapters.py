"""A worker that cannot load an adapter names the adapter in the fault."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from holdfast.core.faults.classification import Classifier, OwnRow, default_classifier, fault_of
from holdfast.core.faults.faults import FaultClass
from holdfast.hosts.vllm.worker.adapters import _load_adapter

ADAPTER = SimpleNamespace(lora_int_id=3)


def missing(manager: object, lora_request: object) -> None:
    raise FileNotFoundError("no adapter")


def failed() -> Exception:
    with pytest.raises(FileNotFoundError) as raised:
        _load_adapter(missing, None, ADAPTER)
    return raised.value


def test_the_fault_names_the_adapter_and_leaves_the_process_alone() -> None:
    fault = fault_of(failed(), default_classifier(), engine_id=0)
    assert (fault.adapter_id, fault.fault_class) == (3, FaultClass.TRANSIENT)
    assert fault.class_reason == "an adapter cannot be loaded; the processes are intact"
    assert fault_of(FileNotFoundError("no file"), default_classifier(), engine_id=0).adapter_id == 0


def test_a_row_of_the_operator_comes_first() -> None:
    own = Classifier([OwnRow(fault_class=FaultClass.DEVICE, error_type="FileNotFoundError")])
    assert fault_of(failed(), own, engine_id=0).fault_class is FaultClass.DEVICE


def test_an_adapter_that_loads_is_returned() -> None:
    assert _load_adapter(lambda manager, lora_request: "loaded", None, ADAPTER) == "loaded"
