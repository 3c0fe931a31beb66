"""Shared state of the parts of an engine core's machine: settings, facts about the host, effects of one fact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast.core.config import HoldfastConfig, RuntimeSettings, adopt_settings
from holdfast.core.engine_core import effects as fx
from holdfast.core.engine_core.facts import HostAttached
from holdfast.core.faults.classification import Classifier
from holdfast.core.protocol import messages as m


@dataclass
class Context:
    """Shared state of a machine. `config` may be replaced at any time: every bound is read on use."""

    engine_id: int
    config: HoldfastConfig
    wall_clock: Callable[[], float]
    host: HostAttached | None = None  # none while the engine core starts
    effects: list[fx.Effect] = field(default_factory=list)

    def configure(self, settings: RuntimeSettings) -> None:
        """Replace the settings that can change at run time; every bound that begins from now on is new."""
        self.config = adopt_settings(self.config, settings)
        self.do_on_host(fx.ConfigureHost(self.config))

    @property
    def classifier(self) -> Classifier:
        """Classifier with the operator's own rows."""
        return Classifier(self.config.fault_classes)

    @property
    def in_lockstep(self) -> bool:
        """Whether peer engine cores wait for the engine core in collectives."""
        return self.host is not None and self.host.in_lockstep

    def do(self, effect: fx.Effect) -> None:
        """Ask for an effect."""
        self.effects.append(effect)

    def do_on_host(self, effect: fx.Effect) -> None:
        """Ask for an effect on the host; ignored while the engine core starts."""
        if self.host is not None:
            self.do(effect)

    def tell_client(self, message: m.FromEngine) -> None:
        """Send a message to the client."""
        self.do(fx.SendToClient(message))

    def answer(self, command_id: str, refused: str | None) -> None:
        """Answer a command of the client: done, or refused with a reason."""
        self.tell_client(m.EngineAnswered(engine_id=self.engine_id, command_id=command_id, refused=refused))
