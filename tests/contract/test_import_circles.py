"""No module of Holdfast imports itself in a circle, by imports inside functions either."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import holdfast
from contract.package_ast import nodes_of

PACKAGE = Path(holdfast.__path__[0])

Imports = dict[str, set[str]]


def import_graph(package: Path) -> Imports:
    """Return, by module, the imported modules of `package`, including imports inside functions."""
    files = {_module_name(file, package): file for file in package.rglob("*.py")}
    return {module: set(_imported(file, files)) - {module} for module, file in files.items()}


def _module_name(file: Path, package: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(file: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    for node in nodes_of(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found = submodule if submodule in modules else node.module
                if found in modules:
                    yield found


def circle(imports: Imports) -> list[str]:
    """Return the modules of a circle, or an empty list without a circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_no_module_imports_itself_in_a_circle() -> None:
    """Every module can be read after the imported modules."""
    assert circle(import_graph(PACKAGE)) == []


@pytest.mark.parametrize("inside", ["", "def late():\n    "])
def test_a_circle_is_found(tmp_path: Path, inside: str) -> None:
    """Two modules that import each other are a circle, at the top of a file and inside a function."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "one.py").write_text("from package.two import name\n")
    (package / "two.py").write_text(f"{inside}from package import one\n")
    assert set(circle(import_graph(package))) == {"package.one", "package.two"}
