"""Main function of a standby engine core: import everything, wait for an order, then run the engine core."""

from __future__ import annotations

import contextlib
import importlib
import os
from multiprocessing.connection import Connection
from typing import Any

from holdfast.hosts.vllm.process import priority
from holdfast.hosts.vllm.process.bootstrap import importing
from holdfast.hosts.vllm.protocol import decode_engine_order

READY = b"ready"

# Modules imported inside functions on the way to the first step. A missing module costs time, nothing else.
_IMPORTED_LATE = (
    "setproctitle",
    "vllm.v1.core.sched.async_scheduler",
    "vllm.v1.structured_output",
    "xgrammar",
)


def standby_engine_main(orders: Connection, **kwargs: Any) -> None:
    """Run a standby until it is given an order, and then the engine core. Ends with the owner's end of `orders`.

    Args:
        orders: pipe over which the order arrives.
        kwargs: of the host's `EngineCoreProc.run_engine_core`.
    """
    _import_everything(kwargs["vllm_config"])
    try:
        orders.send_bytes(READY)
        order = decode_engine_order(orders.recv_bytes())
    except (EOFError, OSError):
        return
    orders.close()
    priority.end()
    os.environ.update(order.environment)
    from vllm.v1.engine.core import EngineCoreProc

    EngineCoreProc.run_engine_core(**{**kwargs, "handshake_address": order.handshake_address})


def _import_everything(vllm_config: Any) -> None:
    with importing():
        from vllm.plugins import load_general_plugins
        from vllm.v1.engine import core

        load_general_plugins()
        vllm_config.scheduler_config.get_scheduler_cls()
        for name in _IMPORTED_LATE:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        with contextlib.suppress(Exception):  # read again where it cannot be kept
            tokenizers = importlib.import_module("vllm.tokenizers")
            tokenizers.cached_tokenizer_from_config(model_config=vllm_config.model_config)
        import setproctitle  # the host's

        assert core
        setproctitle.setproctitle("VLLM::StandbyEngine")
