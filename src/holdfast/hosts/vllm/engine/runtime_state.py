"""State that callers set in an engine core at run time, and its repetition in a new process.

Adapters, weights, sleep, a pause of the host and whatever `collective_rpc` did are in no configuration: a new process
starts without them. The calls that set them are kept in order, as far as they matter; a new worker, a standby and a new
engine core repeat them before they serve. Weights that a trainer sent cannot be repeated: where such state would be
lost, no process is replaced.
"""

from __future__ import annotations

import base64
import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from holdfast.core.protocol.messages import MAX_STATE_BYTES
from holdfast.hosts.vllm.contract import name_touchpoints as host
from holdfast.hosts.vllm.process.settings import RUNTIME_STATE
from holdfast.hosts.vllm.protocol import WorkerCall

logger = logging.getLogger("holdfast")

MAX_CALLS = 256
PROFILE_OPTIONS = ("delay_iterations", "max_iterations", "profiler_kwargs")  # the last only since 0.33
PAUSES = (host.PAUSE, host.PAUSE_AND_REFUSE)
OF_ADAPTERS = (host.ADD_LORA, host.PIN_LORA)

SENT_WEIGHTS = "weights that a trainer sent (update_weights)"
TRAINER = "the connection to a trainer (init_weight_transfer_engine)"
FUNCTION = "what a function did in the workers (collective_rpc)"
TOO_MUCH = f"the effect of more than {MAX_CALLS} calls, or {MAX_STATE_BYTES >> 10} KiB of calls, that set state"


class Call(msgspec.Struct, frozen=True, array_like=True):
    """A call of a method of the engine core that sets state; `arguments` as the caller gave them."""

    method: str
    arguments: tuple[Any, ...] = ()

    def argument(self, position: int, default: Any) -> Any:
        """Return an argument, or the default of the host's method."""
        return self.arguments[position] if position < len(self.arguments) else default

    @property
    def worker_method(self) -> str:
        """The method of the workers that a `collective_rpc` calls; empty for a function, and for other calls."""
        called = self.argument(0, None) if self.method == host.COLLECTIVE_RPC else None
        return called if isinstance(called, str) else ""

    @property
    def adapter(self) -> Any:
        """The number of the adapter that the call is about; None for other calls."""
        subject = self.argument(0, None) if self.method in (*OF_ADAPTERS, host.REMOVE_LORA) else None
        return getattr(subject, "lora_int_id", subject)


class KeptCalls:
    """The calls that make the present state out of a fresh start, in order. Forgets calls that later calls undo."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._unrepeatable: dict[str, None] = {}  # in order

    @property
    def unrepeatable(self) -> str:
        """Names of the state that no call brings back; empty when there is none."""
        return " and ".join(self._unrepeatable)

    def keep(self, call: Call) -> bool:
        """Keep a call that succeeded, and return whether anything has changed."""
        before = list(self.calls), list(self._unrepeatable)
        match call.method:
            case host.REMOVE_LORA:
                self._forget(lambda kept: kept.adapter == call.adapter)
            case host.RESUME:
                self._forget(lambda kept: kept.method in PAUSES)
            case host.WAKE_UP if call.argument(0, None) is None:  # the host resumes with the last part
                self._forget(lambda kept: kept.method in (host.SLEEP, host.WAKE_UP, *PAUSES))
            case host.PAUSE_AND_REFUSE:
                self._forget(lambda kept: kept.method in PAUSES)
                self._append(call)
            case host.PROFILE if not call.argument(0, True):
                self._forget(lambda kept: kept.method == host.PROFILE)
            case host.COLLECTIVE_RPC:
                self._keep_call_of_workers(call)
            case host.PAUSE | host.SET_WEIGHT_VERSION | host.PROFILE:
                self._forget(lambda kept: kept.method == call.method)
                self._append(call)
            case host.ADD_LORA | host.PIN_LORA:
                self._forget(lambda kept: kept.method == call.method and kept.adapter == call.adapter)
                self._append(call)
            case _:
                self._append(call)
        return before != (self.calls, list(self._unrepeatable))

    def _keep_call_of_workers(self, call: Call) -> None:
        match call.worker_method:
            case "":
                self._unrepeatable[FUNCTION] = None
            case host.BEGIN_WEIGHT_TRANSFER:
                self._unrepeatable[TRAINER] = None
            case host.END_WEIGHT_TRANSFER:
                self._unrepeatable.pop(TRAINER, None)
            case host.UPDATE_WEIGHTS:
                self._unrepeatable[SENT_WEIGHTS] = None
            case host.RELOAD_WEIGHTS:  # all weights are those of files again
                self._unrepeatable.pop(SENT_WEIGHTS, None)
                self._forget(lambda kept: kept.worker_method == host.RELOAD_WEIGHTS)
                self._append(call)
            case name if name not in host.READING_CALLS and name not in host.WEIGHT_TRANSFER:
                self._append(call)

    def _append(self, call: Call) -> None:
        if len(self.calls) < MAX_CALLS:
            self.calls.append(call)
        else:
            self._unrepeatable[TOO_MUCH] = None

    def _forget(self, is_undone: Callable[[Call], bool]) -> None:
        self.calls = [call for call in self.calls if not is_undone(call)]

    def encode(self) -> bytes:
        """Encode the calls for another process; calls that cannot be encoded become unrepeatable."""
        try:
            data = msgspec.msgpack.encode(self.calls) if self.calls else b""
        except (TypeError, ValueError, OverflowError):
            self._unrepeatable["the effect of a call with arguments that cannot be kept"] = None
            return b""
        if len(data) > MAX_STATE_BYTES:
            self._unrepeatable[TOO_MUCH] = None
            return b""
        return data


_calls = msgspec.msgpack.Decoder(list[Call])


class RuntimeState:
    """The state of an engine core; keeps every call that sets some. Busy loop's thread.

    Args:
        report: is given the encoded calls and what is unrepeatable, after every change.
    """

    def __init__(self, engine: Any, report: Callable[[bytes, str], None]) -> None:
        self._engine = engine
        self._report = report
        self._kept = KeptCalls()
        self._depth = 0  # a call may call further methods that set state
        for name in filter(functools.partial(hasattr, engine), host.STATE_CALLS):  # not every release has all
            setattr(engine, name, self._keeping(name, getattr(engine, name)))

    def _keeping(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            try:
                result = method(*args, **kwargs)
            finally:
                self._depth -= 1
            if not self._depth:
                self._keep_once_done(Call(name, _positional(method, args, kwargs)), result)
            return result

        return call

    def _keep_once_done(self, call: Call, result: Any) -> None:
        if isinstance(result, Future):
            result.add_done_callback(lambda done: None if done.exception() else self._keep(call))
        else:
            self._keep(call)

    def _keep(self, call: Call) -> None:
        if self._kept.keep(call):
            self._tell()

    def _tell(self) -> None:
        calls = self._kept.encode()  # may find more that is unrepeatable
        self._report(calls, self._kept.unrepeatable)

    def repeat_inherited(self) -> None:
        """Repeat the calls that set the state of the process in whose place the engine core starts.

        Raises:
            Exception: a call failed; the engine core must not serve.
        """
        encoded = os.environ.get(RUNTIME_STATE)
        if not encoded:
            return
        calls = _calls.decode(base64.b64decode(encoded))
        report, self._report = self._report, lambda calls, unrepeatable: None
        for call in calls:
            self._repeat(call)
        self._report = report
        self._tell()
        logger.info("the new engine core has repeated %d calls that set state at run time", len(calls))

    def _repeat(self, call: Call) -> None:
        if call.method not in host.STATE_CALLS:
            raise ValueError(f"{call.method} sets no state")
        method = getattr(self._engine, call.method)
        try:
            method(*self._engine._convert_msgspec_args(method, call.arguments))
        except Exception:
            if call.method not in OF_ADAPTERS:
                raise
            logger.exception("the new engine core cannot load an adapter; requests for it will end with that error")

    def calls_of_workers(self) -> tuple[WorkerCall, ...]:
        """Return the calls that a new worker repeats, in order."""
        return tuple(_of_workers(call) for call in self._kept.calls if call.method in host.CALLS_OF_WORKERS)


def _of_workers(call: Call) -> WorkerCall:
    """Return the call of the workers that a call of the engine core becomes."""
    match call.method:
        case host.COLLECTIVE_RPC:
            return call.worker_method, tuple(call.argument(2, None) or ()), dict(call.argument(3, None) or {})
        case host.SLEEP:
            return host.SLEEP, (), {"level": call.argument(0, 1)}
        case host.WAKE_UP:
            return host.WAKE_UP, (), {"tags": call.argument(0, None)}
        case host.PROFILE:
            options = {name: call.argument(place, None) for place, name in enumerate(PROFILE_OPTIONS, 2)}
            return host.PROFILE, call.arguments[:2], {name: o for name, o in options.items() if o is not None}
    return call.method, call.arguments, {}


def _positional(method: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of a call in the order of the parameters."""
    bound = inspect.signature(method).bind(*args, **kwargs)
    if kwargs:
        bound.apply_defaults()
    return bound.args
