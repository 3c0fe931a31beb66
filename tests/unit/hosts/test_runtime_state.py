"""Calls that set state at run time are kept as far as they matter, and repeated in a new process."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

pytest.importorskip("vllm")

from vllm.lora.request import LoRARequest
from vllm.v1.engine.core import EngineCoreProc

from holdfast.core.protocol.messages import MAX_STATE_BYTES
from holdfast.hosts.vllm.engine.runtime_state import (
    FUNCTION,
    MAX_CALLS,
    SENT_WEIGHTS,
    TOO_MUCH,
    TRAINER,
    Call,
    KeptCalls,
    RuntimeState,
)
from holdfast.hosts.vllm.process.settings import RUNTIME_STATE
from holdfast.hosts.vllm.worker.handlers import repeat
from holdfast.hosts.vllm.worker.restore import decode_reply


def rpc(method: Any, *args: Any, **kwargs: Any) -> Call:
    return Call("collective_rpc", (method, None, args, kwargs))


def adapter(number: int) -> LoRARequest:
    return LoRARequest(f"adapter-{number}", number, f"/adapters/{number}")


RELOAD = rpc("reload_weights", weights_path="/new")


def kept(*calls: Call) -> KeptCalls:
    found = KeptCalls()
    for call in calls:
        found.keep(call)
    return found


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([Call("add_lora", (adapter(1),)), Call("pin_lora", (1,))], 2),
        ([Call("add_lora", (adapter(1),)), Call("pin_lora", (1,)), Call("remove_lora", (1,))], 0),
        ([Call("add_lora", (adapter(1),)), Call("remove_lora", (2,))], 1),
        ([Call("add_lora", (adapter(1),)), Call("add_lora", (adapter(1),))], 1),
        ([Call("sleep", (1,)), Call("wake_up")], 0),
        ([Call("sleep", (1,)), Call("wake_up", (["weights"],))], 2),
        ([Call("sleep", (1,)), Call("wake_up", (["weights"],)), Call("wake_up", (None,))], 0),
        ([Call("pause_scheduler", ("keep",)), Call("pause_scheduler", ("wait",))], 1),
        ([Call("pause_scheduler", ("keep",)), Call("resume_scheduler")], 0),
        ([Call("pause_scheduler", ("keep",)), Call("pause_generation", ("wait",))], 1),
        ([Call("pause_generation", ("abort",)), Call("pause_scheduler", ("keep",))], 2),
        ([Call("pause_generation", ("abort",)), Call("resume_scheduler")], 0),
        ([Call("sleep", (1,)), Call("pause_generation", ("wait",)), Call("wake_up")], 0),
        ([Call("set_weight_version", ("1",)), Call("set_weight_version", ("2",))], 1),
        ([Call("profile", (True,)), Call("profile", (False,))], 0),
        ([RELOAD, RELOAD], 1),
        ([rpc("compute_weight_checksums"), rpc("list_loras")], 0),
        ([rpc("somebodys_own", 1), rpc("somebodys_own", 1)], 2),
    ],
)
def test_only_calls_that_no_later_call_undoes_are_kept(calls: Sequence[Call], expected: int) -> None:
    assert len(kept(*calls).calls) == expected


@pytest.mark.parametrize(
    ("calls", "lost"),
    [
        ([RELOAD], ""),
        ([rpc("update_weights", {})], SENT_WEIGHTS),
        ([rpc("init_weight_transfer_engine", {})], TRAINER),
        ([rpc("init_weight_transfer_engine", {}), rpc("shutdown_weight_transfer_engine")], ""),
        ([rpc("update_weights", {}), RELOAD], ""),
        ([rpc(print)], FUNCTION),
        ([rpc("somebodys_own", n) for n in range(MAX_CALLS + 1)], TOO_MUCH),
        ([rpc("init_weight_transfer_engine", {}), rpc("update_weights", {})], f"{TRAINER} and {SENT_WEIGHTS}"),
    ],
    ids=["files", "sent", "connected", "disconnected", "files after sent", "function", "too many", "both"],
)
def test_state_that_no_call_brings_back_is_named(calls: Sequence[Call], lost: str) -> None:
    assert kept(*calls).unrepeatable == lost


def test_a_call_that_changes_nothing_is_no_news() -> None:
    assert not KeptCalls().keep(rpc("list_loras"))


@pytest.mark.parametrize(("argument", "lost"), [("x" * MAX_STATE_BYTES, TOO_MUCH), (object(), "cannot be kept")])
def test_calls_that_cannot_travel_are_unrepeatable(argument: Any, lost: str) -> None:
    calls = kept(rpc("somebodys_own", argument))
    assert calls.encode() == b""
    assert lost in calls.unrepeatable


@dataclass
class Engine:
    """An engine core that records what is called."""

    did: list[tuple[Any, ...]] = field(default_factory=list)
    broken: str = ""
    _convert_msgspec_args = staticmethod(EngineCoreProc._convert_msgspec_args)

    def _do(self, *call: Any) -> None:
        if call[0] == self.broken:
            raise RuntimeError("broken")
        self.did.append(call)

    def add_lora(self, lora_request: LoRARequest) -> bool:
        self._do("add_lora", lora_request)
        return True

    def remove_lora(self, lora_id: int) -> None:
        self._do("remove_lora", lora_id)

    def pin_lora(self, lora_id: int) -> None:
        self._do("pin_lora", lora_id)

    def sleep(self, level: int = 1, mode: str = "abort") -> Future[None]:
        self.pause_scheduler(mode)
        self._do("sleep", level)
        return Future()

    def wake_up(self, tags: list[str] | None = None) -> None:
        self._do("wake_up", tags)

    def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> None:
        self._do("collective_rpc", method, tuple(args), kwargs)

    def profile(self, is_start: bool = True, profile_prefix: str | None = None) -> None:
        self._do("profile", is_start)

    def set_weight_version(self, weight_version: str) -> None:
        self._do("set_weight_version", weight_version)

    def pause_scheduler(self, mode: str = "abort", clear_cache: bool = True) -> None:
        self._do("pause_scheduler", mode)

    def resume_scheduler(self) -> None:
        self._do("resume_scheduler")


Engine.add_lora.__annotations__["lora_request"] = LoRARequest  # the host's module does not postpone annotations


@dataclass
class Bench:
    """An engine core whose state is kept, and what was reported."""

    engine: Engine = field(default_factory=Engine)
    reports: list[tuple[bytes, str]] = field(default_factory=list)
    state: RuntimeState = field(init=False)

    def __post_init__(self) -> None:
        self.state = RuntimeState(self.engine, lambda calls, unrepeatable: self.reports.append((calls, unrepeatable)))

    def replacement(self, monkeypatch: pytest.MonkeyPatch, broken: str = "") -> Bench:
        monkeypatch.setenv(RUNTIME_STATE, base64.b64encode(self.reports[-1][0]).decode())
        made = Bench(Engine(broken=broken))
        made.state.repeat_inherited()
        return made


def test_a_new_engine_core_repeats_the_calls_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.engine.add_lora(adapter(1))
    bench.engine.collective_rpc("reload_weights", kwargs={"weights_path": "/new"})
    bench.engine.pause_scheduler(mode="keep")
    made = bench.replacement(monkeypatch)
    assert made.engine.did == bench.engine.did
    assert isinstance(made.engine.did[0][1], LoRARequest)


def test_a_new_engine_core_reports_the_same_state_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.engine.collective_rpc("reload_weights")
    bench.engine.pause_scheduler("keep")
    assert bench.replacement(monkeypatch).reports == [bench.reports[-1]]


def test_without_state_nothing_is_repeated_or_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUNTIME_STATE, raising=False)
    bench = Bench()
    bench.state.repeat_inherited()
    assert (bench.engine.did, bench.reports) == ([], [])


def test_an_engine_core_that_cannot_repeat_a_call_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.engine.collective_rpc("reload_weights")
    with pytest.raises(RuntimeError, match="broken"):
        bench.replacement(monkeypatch, broken="collective_rpc")


def test_an_adapter_that_is_gone_from_disk_keeps_no_engine_core_from_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.engine.add_lora(adapter(1))
    bench.engine.pause_scheduler("keep")
    assert bench.replacement(monkeypatch, broken="add_lora").engine.did == [("pause_scheduler", "keep")]


def test_a_call_that_fails_sets_no_state() -> None:
    bench = Bench(Engine(broken="collective_rpc"))
    with pytest.raises(RuntimeError):
        bench.engine.collective_rpc("reload_weights")
    assert bench.reports == []


def test_a_call_that_calls_another_counts_once_and_as_soon_as_it_is_done() -> None:
    bench = Bench()
    done = bench.engine.sleep(1)
    assert bench.reports == []
    done.set_result(None)
    assert msgspec.msgpack.decode(bench.reports[-1][0]) == [["sleep", [1]]]


def test_a_sleep_that_fails_sets_no_state() -> None:
    bench = Bench()
    bench.engine.sleep(1).set_exception(RuntimeError("no"))
    assert bench.reports == []


def test_names_that_set_no_state_are_never_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNTIME_STATE, base64.b64encode(msgspec.msgpack.encode([Call("shutdown")])).decode())
    with pytest.raises(ValueError, match="sets no state"):
        Bench().state.repeat_inherited()


def test_a_new_worker_repeats_what_reached_the_workers() -> None:
    bench = Bench()
    bench.engine.add_lora(adapter(1))
    bench.engine.collective_rpc("reload_weights", kwargs={"weights_path": "/new"})
    bench.engine.set_weight_version("2")
    bench.engine.profile(True)
    bench.engine.sleep(2).set_result(None)
    assert bench.state.calls_of_workers() == (
        ("add_lora", (adapter(1),), {}),
        ("reload_weights", (), {"weights_path": "/new"}),
        ("profile", (True,), {}),
        ("sleep", (), {"level": 2}),
    )


class Worker:
    """The host's worker, as far as calls are repeated there."""

    def __init__(self) -> None:
        self.did: list[Any] = []

    def reload_weights(self, weights_path: str) -> None:
        self.did.append(weights_path)

    def add_lora(self, lora_request: Any) -> None:
        raise FileNotFoundError("gone")

    def broken(self) -> None:
        raise RuntimeError("broken")


def repeated(rank: int, *calls: Any) -> tuple[list[Any], str | None]:
    worker = Worker()
    reply = decode_reply(repeat(SimpleNamespace(rank=rank, worker=worker), "nonce", (1,), calls))
    assert reply is not None
    return worker.did, reply.error


def test_only_replaced_ranks_repeat_calls() -> None:
    assert repeated(1, ("reload_weights", ("/new",), {})) == (["/new"], None)
    assert repeated(0, ("reload_weights", ("/new",), {})) == ([], None)


def test_a_rank_that_cannot_repeat_a_call_says_why() -> None:
    assert repeated(1, ("broken", (), {}))[1] == "RuntimeError: broken"


def test_an_adapter_that_is_gone_keeps_no_rank_out() -> None:
    assert repeated(1, ("add_lora", (None,), {}), ("reload_weights", ("/new",), {})) == (["/new"], None)
