"""Effects of an engine core's machine on the host."""

from __future__ import annotations

from holdfast.core.engine_core import effects as fx
from holdfast.core.ports import EngineHost


def perform_on(host: EngineHost, effect: fx.Effect) -> None:
    """Perform an effect on the host; the machine asks for none before the host is attached."""
    match effect:
        case fx.BreakOwnCollectives():
            host.break_collectives()
        case fx.InterruptBusyLoop():
            host.interrupt()
        case fx.KillRank():
            host.kill_rank(effect.rank)
        case fx.ArmEngineCore():
            host.arm(effect.spec)
        case fx.IntroduceToCoordinator():
            host.introduce_to_coordinator()
        case fx.ConfigureHost():
            host.configure(effect.config)
        case fx.DropRequestsOf():
            host.drop_requests_of(effect.client_index)
