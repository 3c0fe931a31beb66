"""Where the control plane comes from: it may not exist yet when routes are registered."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.ports import ControlPlane

ControlSource = ControlPlane | Callable[[], ControlPlane]


def control_getter(source: ControlSource) -> Callable[[], ControlPlane]:
    """A function that gives the control plane."""
    if callable(source):
        return source
    plane = source
    return lambda: plane
