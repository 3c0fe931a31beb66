"""The core needs nothing but the standard library and msgspec."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import holdfast.core
from contract.package_ast import nodes_of

CORE = Path(holdfast.core.__path__[0])
MODULES = sorted(CORE.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(CORE)))
def test_imports_only_what_is_always_there(module: Path) -> None:
    """A module of the core imports itself, the standard library and msgspec."""
    nodes = nodes_of(module)
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    foreign = {name for name in imported if name.split(".")[0] not in {*sys.stdlib_module_names, "msgspec"}}
    assert {name for name in foreign if not name.startswith("holdfast.core")} == set()
