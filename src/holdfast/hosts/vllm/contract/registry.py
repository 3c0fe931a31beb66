"""Registry of everything that Holdfast touches in the host.

A contract test walks the list against the installed host and the sources of every supported release.
"""

from __future__ import annotations

from holdfast.hosts.vllm.contract.communicator_touchpoints import COMMUNICATOR_TOUCHPOINTS
from holdfast.hosts.vllm.contract.connector_touchpoints import CONNECTOR_TOUCHPOINTS
from holdfast.hosts.vllm.contract.cpu_touchpoints import CPU_TOUCHPOINTS
from holdfast.hosts.vllm.contract.engine_touchpoints import ENGINE_TOUCHPOINTS
from holdfast.hosts.vllm.contract.front_end_touchpoints import FRONT_END_TOUCHPOINTS
from holdfast.hosts.vllm.contract.name_touchpoints import NAME_TOUCHPOINTS
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint
from holdfast.hosts.vllm.contract.worker_touchpoints import WORKER_TOUCHPOINTS

TOUCHPOINTS: tuple[Touchpoint, ...] = (
    *CPU_TOUCHPOINTS,
    *COMMUNICATOR_TOUCHPOINTS,
    *FRONT_END_TOUCHPOINTS,
    *WORKER_TOUCHPOINTS,
    *ENGINE_TOUCHPOINTS,
    *CONNECTOR_TOUCHPOINTS,
    *NAME_TOUCHPOINTS,
)


def touchpoints_of(release: str) -> tuple[Touchpoint, ...]:
    """Return the touchpoints that a supported release must have."""
    return tuple(t for t in TOUCHPOINTS if not t.releases or release in t.releases)
