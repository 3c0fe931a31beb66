"""The host's collectives: recorded when made, broken from any thread, rebuilt in place."""

from holdfast.hosts.vllm.communicators.engine import EngineCommunicators
from holdfast.hosts.vllm.communicators.rendezvous import RendezvousHost
from holdfast.hosts.vllm.communicators.tracking import attach_communicator_hooks
from holdfast.hosts.vllm.communicators.worker import WorkerCommunicators

__all__ = ["EngineCommunicators", "RendezvousHost", "WorkerCommunicators", "attach_communicator_hooks"]
