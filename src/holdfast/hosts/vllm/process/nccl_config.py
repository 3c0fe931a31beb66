"""NCCL's configuration of a communicator, in the layout of NCCL 2.18. Needs neither the host nor torch."""

from __future__ import annotations

import ctypes

SUCCESS, IN_PROGRESS = 0, 7  # of ncclResult_t

_UNDEFINED = -(2**31)  # NCCL_CONFIG_UNDEF_INT
_MAGIC = 0xCAFEBEEF
_CONFIG_VERSION = 21800  # NCCL takes the layout of an older release


class Config(ctypes.Structure):
    """`ncclConfig_t` as of NCCL 2.18."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("magic", ctypes.c_uint),
        ("version", ctypes.c_uint),
        ("blocking", ctypes.c_int),
        ("cgaClusterSize", ctypes.c_int),
        ("minCTAs", ctypes.c_int),
        ("maxCTAs", ctypes.c_int),
        ("netName", ctypes.c_char_p),
        ("splitShare", ctypes.c_int),
    )


def nonblocking_config() -> Config:
    """Return a configuration with which NCCL makes a communicator without blocking."""
    undefined = (_UNDEFINED,) * 3
    return Config(ctypes.sizeof(Config), _MAGIC, _CONFIG_VERSION, 0, *undefined, None, _UNDEFINED)
