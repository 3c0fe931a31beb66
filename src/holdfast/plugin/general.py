"""Entry point `vllm.general_plugins`: attaches the hooks that the process needs, and none without settings.

The host loads the plugin in every process, and only logs a failed import. Hence every process reports its hooks, and
the front end refuses to serve when a report is missing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from holdfast.core.config import HoldfastConfig
from holdfast.hosts.vllm.contract.versions import OVERRIDE, host_version, is_supported, refuse_unknown_host
from holdfast.hosts.vllm.process.settings import ENVIRONMENT, inherited_settings

if TYPE_CHECKING:
    from holdfast.sentinel.beside import EventSinks, Sink


def register() -> None:
    """Attach hooks, when the host loads plugins. Idempotent."""
    if _is_bystander():
        return
    refuse_unknown_host()
    from holdfast.hosts.vllm.process.logs import share_log

    share_log()
    if _is_requested():
        from holdfast.hosts.vllm.cpu.enablement import attach_cpu_enablement

        attach_cpu_enablement()
    if ENVIRONMENT in os.environ:
        _join_instance()
    else:
        _prepare_to_own()


def _join_instance() -> None:
    """Attach the hooks of an engine core, a worker and an API server: the kind of the process is unknown here."""
    from holdfast.hosts.vllm.communicators.placeholder_groups import attach_solo_join_hooks
    from holdfast.hosts.vllm.hooks import attach_request_hooks
    from holdfast.hosts.vllm.process.logs import write_as, write_log_beside
    from holdfast.hosts.vllm.process.members import join_members
    from holdfast.hosts.vllm.process.shared_memory import attach_semaphore_records
    from holdfast.hosts.vllm.worker.worker import attach_worker_hooks

    write_log_beside()
    config = inherited_settings()
    if config is not None:
        write_as(config.log_format)
    if config is not None and config.runtime_dir:
        join_members(config.runtime_dir)
    attach_semaphore_records()
    attach_solo_join_hooks()  # the first to attach stays
    attach_worker_hooks()
    attach_request_hooks()


def _prepare_to_own() -> None:
    """Attach the hooks of a process that may start an instance."""
    from holdfast.hosts.vllm.hooks import attach_front_end_hooks
    from holdfast.hosts.vllm.owner.exit import attach_launcher_exit_hook

    attach_front_end_hooks(_open_event_sinks)
    attach_launcher_exit_hook()


def _open_event_sinks(config: HoldfastConfig) -> EventSinks:
    """Open log, PUB socket, file and metrics of an instance's events. Raises `BadConfiguration` for what is unfit."""
    from holdfast.api.control_token import configured_token
    from holdfast.api.full_texts import FullTextsFile
    from holdfast.api.notify import log_event, open_publisher
    from holdfast.plugin.metrics import SINK, instance_metrics
    from holdfast.sentinel.beside import EventSinks

    token = configured_token(config.control_token_file, os.environb)  # a token that is unfit ends the start here
    full_texts = FullTextsFile(config.full_texts_file) if config.full_texts_file else None
    publisher = open_publisher(
        config.external_fault_notify_host,
        config.external_fault_notify_port,
        is_open=config.open_notifications_to_network,
        token=token,
    )
    sinks: dict[str, Sink] = {"notifications": publisher.publish} if publisher is not None else {}
    sinks["events in the log"] = log_event
    if full_texts is not None:
        sinks["full texts"] = full_texts.take
    if (metrics := instance_metrics()) is not None:
        sinks[SINK] = metrics
    return EventSinks(sinks=sinks) if publisher is None else EventSinks(publisher.address, sinks, publisher.close)


def _is_bystander() -> bool:
    """Return whether Holdfast is installed beside an unknown host, and was not requested."""
    version = host_version()
    known = version is not None and (is_supported(version) or os.environ.get(OVERRIDE) == "1")
    return not known and not _is_requested()


def _is_requested() -> bool:
    """Return whether the operator named Holdfast, or the process belongs to a protected instance."""
    return "holdfast" in os.environ.get("VLLM_PLUGINS", "").split(",") or ENVIRONMENT in os.environ
