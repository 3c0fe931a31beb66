"""What is refused at the start, in one line: the topologies and features that no test has shown to be exact."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from holdfast.core.errors import BadConfiguration
from holdfast.hosts.vllm.contract.name_touchpoints import GRPC_SERVER, OWN_SCHEDULERS
from holdfast.hosts.vllm.contract.topology import refuse_other_front_ends, refuse_unprotected
from holdfast.hosts.vllm.serving.offline import refuse_in_process

PROTECTED = {
    "data_parallel_backend": "mp",
    "data_parallel_external_lb": False,
    "data_parallel_hybrid_lb": False,
    "data_parallel_rank_local": None,
    "data_parallel_size": 2,
    "data_parallel_size_local": 2,
    "decode_context_parallel_size": 1,
    "enable_batch_sharded_sampling": None,
    "enable_elastic_ep": False,
    "enable_eplb": False,
    "enable_fault_tolerance": False,
    "nnodes": 1,
    "prefill_context_parallel_size": 1,
    "tensor_parallel_size": 2,
}


class Scheduler:
    """A scheduler of somebody else."""


def refuse(scheduler: str | type | None = None, **parallel: Any) -> None:
    refuse_unprotected(
        SimpleNamespace(
            parallel_config=SimpleNamespace(**{**PROTECTED, **parallel}),
            scheduler_config=SimpleNamespace(scheduler_cls=scheduler),
        )
    )


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "holdfast")


@pytest.mark.parametrize("scheduler", [None, *OWN_SCHEDULERS])
def test_the_schedulers_of_the_host_are_protected(scheduler: str | None) -> None:
    refuse(scheduler)


@pytest.mark.parametrize("scheduler", ["mine.Scheduler", Scheduler])
def test_another_scheduler_is_refused_by_its_name(scheduler: str | type) -> None:
    with pytest.raises(BadConfiguration, match=r"does not protect the scheduler .*Scheduler"):
        refuse(scheduler)


def test_the_host_s_own_scheduler_given_as_a_class_is_protected() -> None:
    own = type("Scheduler", (), {"__module__": "vllm.v1.core.sched.scheduler"})
    refuse(own)


@pytest.mark.parametrize(
    ("parallel", "named"),
    [
        ({"enable_fault_tolerance": True}, "the host's own fault tolerance"),
        ({"enable_eplb": True}, "--enable-eplb"),
        ({"enable_batch_sharded_sampling": True}, "--enable-batch-sharded-sampling"),
        ({"decode_context_parallel_size": 2}, "context parallelism"),
        ({"prefill_context_parallel_size": 2}, "context parallelism"),
        ({"enable_elastic_ep": True}, "elastic expert parallelism"),
        ({"data_parallel_backend": "ray"}, "Ray"),
    ],
)
def test_what_no_test_has_shown_is_refused_and_named(parallel: dict[str, Any], named: str) -> None:
    with pytest.raises(BadConfiguration, match=named) as refused:
        refuse(**parallel)
    assert "--no-enable-fault-tolerance" in str(refused.value)


def test_split_sampling_on_one_rank_splits_nothing_and_is_protected() -> None:
    refuse(enable_batch_sharded_sampling=True, tensor_parallel_size=1)


def test_a_grpc_server_is_refused_under_the_host_s_own_command(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    refuse_other_front_ends()
    monkeypatch.setitem(sys.modules, GRPC_SERVER, ModuleType(GRPC_SERVER))
    with pytest.raises(BadConfiguration, match="--grpc"):
        refuse_other_front_ends()


@pytest.mark.parametrize("settings", [{}, {"enable_fault_tolerance": False}, None])
def test_an_engine_core_in_the_caller_s_process_is_refused_where_protection_is_asked_for(settings: Any) -> None:
    made: list[Any] = []

    def make(client: Any, vllm_config: Any, executor_class: Any, log_stats: bool) -> None:
        made.append(vllm_config)

    config = SimpleNamespace(additional_config={} if settings is None else {"holdfast": settings})
    if settings == {}:
        with pytest.raises(BadConfiguration, match="unset VLLM_ENABLE_V1_MULTIPROCESSING"):
            refuse_in_process(make, None, config, None, log_stats=False)
    else:
        refuse_in_process(make, None, config, None, log_stats=False)
    assert made == ([] if settings == {} else [config])
