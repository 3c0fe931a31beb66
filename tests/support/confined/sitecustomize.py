"""Hides the kernel's counts of waiting time from Python: a kernel without them has no file `schedstat`."""

import builtins
import errno
import io
import os

_open = io.open


def _without_counts(file, *arguments, **options):
    if isinstance(file, (str, os.PathLike)) and os.fspath(file).endswith("/schedstat"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(file))
    return _open(file, *arguments, **options)


builtins.open = io.open = _without_counts
