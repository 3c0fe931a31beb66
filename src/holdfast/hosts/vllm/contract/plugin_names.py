"""The host's allow-list of plugins, extended by Holdfast without removing any plugin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points

from holdfast.core.errors import BadConfiguration

VARIABLE = "VLLM_PLUGINS"
OURS = "holdfast"

# Without an allow-list the host loads every plugin of these groups ...
_LOADED_BY_DEFAULT = (
    "vllm.general_plugins",
    "vllm.io_processor_plugins",
    "vllm.platform_plugins",
    "vllm.stat_logger_plugins",
)
# ... and none of this one, because they add HTTP routes.
_LOADED_BY_NAME = "vllm.endpoint_plugins"


def extended_allow_list(environ: Mapping[str, str]) -> str:
    """Return an allow-list with Holdfast and with every plugin that the host would load otherwise."""
    present = environ.get(VARIABLE)
    if present is not None:
        return _joined([*present.split(","), OURS])
    return list_for_default(_names(_LOADED_BY_DEFAULT), _names((_LOADED_BY_NAME,)))


def list_for_default(by_default: Iterable[str], by_name: Iterable[str]) -> str:
    """Return an allow-list of Holdfast and the plugins that the host loads without an allow-list.

    Raises:
        BadConfiguration: listing a plugin would also open HTTP routes that the operator did not request.
    """
    names = set(by_default)
    if both := sorted((names & set(by_name)) - {OURS}):
        raise BadConfiguration(
            f"plugin(s) {', '.join(both)} offer HTTP routes besides their hooks, and Holdfast cannot tell "
            "whether the routes are wanted",
            hint=f"set {VARIABLE} to the plugins you want; holdfast is added to it",
        )
    return _joined([*sorted(names), OURS])


def _names(groups: Iterable[str]) -> set[str]:
    return {point.name for group in groups for point in entry_points(group=group)}


def _joined(names: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(n for n in names if n))
