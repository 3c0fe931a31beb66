"""Programs that `make tools` installs: their paths, or the reason why a test is skipped."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "tools"
AXE_CORE = FOLDER / "node_modules" / "axe-core" / "axe.min.js"


def needed_tool(name: str) -> Path:
    """Return the path of a program, or of axe-core's script; skip the test without one, or fail where CI_TOOLS=1."""
    if name == "axe-core":
        found = str(AXE_CORE) if AXE_CORE.is_file() else None
    else:
        found = shutil.which(name, path=os.pathsep.join((str(FOLDER / "usr" / "bin"), os.environ.get("PATH", ""))))
    if found is None:
        reason = f"{name} is missing: run `make tools`"
        if os.environ.get("CI_TOOLS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return Path(found)
