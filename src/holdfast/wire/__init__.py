"""How messages travel: ZeroMQ, an in-memory twin, and a shared conformance suite."""

from holdfast.wire.base import Delivery, Hub, Spoke, Station
from holdfast.wire.memory import MemoryNetwork
from holdfast.wire.zeromq import ZmqStation

__all__ = ["Delivery", "Hub", "MemoryNetwork", "Spoke", "Station", "ZmqStation"]
