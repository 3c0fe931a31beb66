"""Executor class that a protected engine core is given.

Engine cores unpickle this class before they run anything, so importing this module attaches the hooks of an engine
core and of a worker: no earlier moment exists. A forked worker loads no plugins and inherits the attached hooks.
"""

from __future__ import annotations

from holdfast.hosts.vllm.communicators.placeholder_groups import attach_solo_join_hooks
from holdfast.hosts.vllm.engine.engine_core import attach_engine_hooks
from holdfast.hosts.vllm.engine.worker_pool.executor import WorkerPoolExecutor
from holdfast.hosts.vllm.worker.worker import attach_worker_hooks

attach_solo_join_hooks()  # the first to attach stays
attach_engine_hooks()
attach_worker_hooks()


class HoldfastExecutor(WorkerPoolExecutor):
    """The host's multiprocessing executor under Holdfast; unpickling the class attaches the hooks."""
