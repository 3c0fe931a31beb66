"""Attachment of the count of collectives to the host's CPU communicator.

Only collectives that carry a step out are counted: a collective that calls another one is not, or it would count twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holdfast.hosts.vllm.contract.communicator_touchpoints import (
    COUNTED_ALL_GATHER,
    COUNTED_ALL_REDUCE,
    COUNTED_GATHER,
    STAGE_RECEIVE,
    STAGE_SEND,
)
from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.process.collective_count import COUNT


def attach_collective_count() -> None:
    """Count the collectives of the steps of this process from now on. Idempotent."""
    attach(COUNTED_ALL_REDUCE, COUNT.counted(lambda communicator, input_: input_))
    attach(COUNTED_ALL_GATHER, COUNT.counted(_gathered_alone))
    attach(COUNTED_GATHER, COUNT.counted_opaque)
    attach(STAGE_RECEIVE, COUNT.receive)
    attach(STAGE_SEND, COUNT.send)


def _gathered_alone(communicator: Any, input_: Tensor, dim: int = -1) -> Tensor:
    return torch.cat([input_] * communicator.world_size, dim)
