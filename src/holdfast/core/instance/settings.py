"""The settings in force of one instance: replaced as a whole when an operator changes some of them."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.config import HoldfastConfig


@dataclass
class Settings:
    """The configuration that every part of an instance reads anew each time."""

    config: HoldfastConfig
    changed: bool = False  # since the start
