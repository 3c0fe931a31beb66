"""The executor of a further node: the host's own, whose workers belong to an agent.

The host makes the executor in its headless process, waits in `start_worker_monitor`, and ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

import msgspec
from vllm.utils.system_utils import get_mp_context
from vllm.v1.executor.multiproc_executor import MultiprocExecutor, set_multiprocessing_worker_envs

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import HookNotAttached
from holdfast.hosts.vllm.agent.agent import NodeAgent
from holdfast.hosts.vllm.engine.worker_pool.spawning import seed_of
from holdfast.hosts.vllm.owner.guard import Guard
from holdfast.hosts.vllm.process.bootstrap import bootstrapped
from holdfast.hosts.vllm.process.init_store import attach_init_store
from holdfast.hosts.vllm.process.limits import make_instance_folder, raise_descriptor_limit
from holdfast.hosts.vllm.process.logs import write_log_beside
from holdfast.hosts.vllm.process.members import end_dead_instances, record_owner, remove_folder
from holdfast.hosts.vllm.process.nodes import ENGINE_ADDRESS, NODE, refuse_open_wire, wire_address
from holdfast.hosts.vllm.process.settings import handed_down, take_settings

logger = logging.getLogger("holdfast")


class NodeExecutor(MultiprocExecutor):
    """`MultiprocExecutor` of a further node. Main thread of the headless process."""

    def __init__(self, vllm_config: Any, monitor_workers: bool = True) -> None:
        config = take_settings(vllm_config)
        if config is None:
            raise HookNotAttached("Holdfast's settings are missing in the headless process")
        parallel = vllm_config.parallel_config
        refuse_open_wire(config, parallel.master_addr)
        self._files = contextlib.ExitStack()
        self._config = self._open_folder(config, parallel.nnodes)
        self._agent: NodeAgent | None = None
        super().__init__(vllm_config, monitor_workers=False)

    def _open_folder(self, config: HoldfastConfig, nodes: int) -> HoldfastConfig:
        raise_descriptor_limit()
        write_log_beside()
        for folder in end_dead_instances():
            logger.warning("ended what a killed server of this user had left behind, known by %s", folder)
        folder = make_instance_folder()
        record_owner(folder)
        self._files.callback(Guard(folder).close)
        self._files.callback(remove_folder, folder)
        return msgspec.structs.replace(config, runtime_dir=folder, node_count=nodes)

    def _init_executor(self) -> None:
        parallel = self.parallel_config
        address = wire_address(parallel.master_addr, self._config.node_port)
        os.environ[ENGINE_ADDRESS], os.environ[NODE] = address, str(parallel.node_rank)
        self._files.enter_context(handed_down(self._config))
        self._get_parallel_sizes()
        first = self.local_world_size * parallel.node_rank_within_dp
        ranks = range(first, first + self.local_world_size)
        self._agent = NodeAgent(
            self._config, parallel.node_rank, ranks, address, seed_of(self.vllm_config), self._is_driver_worker
        )
        if self._agent.join():
            attach_init_store()
            with bootstrapped(get_mp_context(), background=False):
                super()._init_executor()
            self._agent.take_charge(self.workers)
        else:
            self._await_orders()

    def _await_orders(self) -> None:
        """Be ready to start ranks on command: the instance serves already, and waits for this node."""
        self.is_failed, self.failure_callback = False, None
        set_multiprocessing_worker_envs(self.local_world_size)
        self.workers: list[Any] = []
        self.response_mqs: list[Any] = []
        self.rpc_broadcast_mq = None

    def start_worker_monitor(self, inline: bool = False) -> None:
        """Wait for the end of the instance, and end the process."""
        assert self._agent is not None
        try:
            self._agent.await_end()
        finally:
            self.shutdown()
        raise SystemExit(self._agent.exit_code)

    def shutdown(self) -> None:
        """End the workers and release the node's files. Idempotent."""
        if self._agent is not None:
            self._agent.close()
            if self._agent.workers:
                self.workers = list(self._agent.workers.values())
        super().shutdown()
        self._files.close()
