"""Command lines and environment of the servers for the demo and the benchmarks.

Owns no process: provides model, arguments and log.
"""

from __future__ import annotations

import os
from pathlib import Path

from holdfast.bench.loads import SERVER_ARGUMENTS
from holdfast.bench.topologies import Topology
from holdfast.chaos.model import default_model_folder, default_moe_folder, make_dense_model, make_moe_model
from holdfast.chaos.server import CPU_ENVIRONMENT, ServerSpec

# The port for notifications is the system's choice: two measurements may run side by side.
FAULT_ARGUMENTS = ("--enable-fault-injection", "--external-fault-notify-port", "0")
# A benchmark breaks the server more often than its defaults allow within their window.
MANY_FAULTS = (
    *("--max-retries", "100000"),
    *("--max-worker-restarts", "100000"),
    *("--max-engine-restarts", "100000"),
    *("--max-api-server-restarts", "100000"),
    # Short windows: a loss must not count as a failed start of the last replacement, which would delay the next one.
    *("--engine-restart-window", "1"),
    *("--api-server-restart-window", "1"),
)
READY_TIMEOUT_S = 240.0  # for each rank: on few cores they start one after another
BENCH_VARIABLES = "HOLDFAST_BENCH_"


def make_model(topology: Topology) -> Path:
    """Make the topology's model unless it exists; return its folder. Raises `OperatorError`."""
    if topology.model == "moe":
        return make_moe_model(default_moe_folder())
    return make_dense_model(default_model_folder())


def server_arguments(topology: Topology, *more: str) -> tuple[str, ...]:
    standbys = topology.standby.arguments(topology.ranks_per_engine)
    return (*SERVER_ARGUMENTS, *topology.arguments, *standbys, *FAULT_ARGUMENTS, *more)


def server_spec(topology: Topology, log: Path, *more: str) -> ServerSpec:
    """Return the specification of the topology's server, with fault injection; make the model if necessary."""
    return ServerSpec(
        model=make_model(topology),
        log=log,
        arguments=server_arguments(topology, *more),
        ready_timeout_s=READY_TIMEOUT_S * topology.ranks,
    )


def relevant_environment() -> dict[str, str]:
    """Return the variables that influence the measurement: of benchmarks, and of the CPU build."""
    chosen = {name: value for name, value in os.environ.items() if name.startswith(BENCH_VARIABLES)}
    return {**chosen, **{name: os.environ.get(name, usual) for name, usual in CPU_ENVIRONMENT.items()}}
