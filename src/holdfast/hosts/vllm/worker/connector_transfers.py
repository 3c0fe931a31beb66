"""End what a rank's KV connector has under way after a failed step.

The scheduler has taken back every job of the connector (`engine/connector_jobs.py`). Loads write into blocks that other
requests get now, so they are waited for; stores that have not begun are dropped, and so are notices of finished jobs.
"""

from __future__ import annotations

from typing import Any


def end_transfers(runner: Any) -> None:
    """End the transfers of the rank's connector, if there is one."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    if not has_kv_transfer_group():
        return
    _end(get_kv_transfer_group())
    if (of_runner := getattr(runner, "kv_connector", None)) is not None:  # runner V2
        of_runner._pending_load_kwargs = None
        of_runner.set_disabled(False)  # a dummy step that failed leaves the connector switched off


def _end(connector: Any) -> None:
    connector.clear_connector_metadata()
    for each in getattr(connector, "_connectors", ()):
        _end(each)
    worker = getattr(connector, "connector_worker", None)
    if type(connector).__name__ == "OffloadingConnector" and worker is not None and worker.worker is not None:
        worker._unsubmitted_store_jobs.clear()
        worker.worker.wait(set(worker._load_jobs))
        worker.worker.get_finished()
        worker._load_jobs.clear()
        worker.build_connector_worker_meta()  # notices of finished jobs
