"""Finds classes, functions and attributes in the host's sources without importing them.

Follows names that a module imports from the host, and base classes across modules.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from contract.package_ast import nodes_of
from holdfast.hosts.vllm.contract.inspection import attributes_of, parameters_problem, text_problem
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Definition(NamedTuple):
    """A class or function with the module that defines the class or function."""

    module: str
    node: ast.ClassDef | Function


class Imported(NamedTuple):
    """A name that is imported from a module of the host."""

    module: str
    name: str


def imports_of_the_host(package: Path) -> list[Imported]:
    """Return every name that the modules of a package import from the host, each once."""
    nodes = [node for file in sorted(package.rglob("*.py")) for node in nodes_of(file)]
    statements = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    found = {
        Imported(statement.module, alias.name)
        for statement in statements
        if statement.module and not statement.level and statement.module.split(".")[0] == "vllm"
        for alias in statement.names
    }
    return sorted(found)


@functools.cache
def sources_in(root: Path) -> HostSources:
    """Return the sources in a folder, parsed once for all tests of a process."""
    return HostSources(root)


class HostSources:
    """The sources of a release of the host: a folder that holds the package `vllm`."""

    def __init__(self, root: Path) -> None:
        self.root = self._root = root
        self._tree = self.tree = functools.cache(self._parse)
        self._attributes = functools.cache(self._attributes_of_lineage)

    def problem(self, touchpoint: Touchpoint) -> str | None:
        """Return the problem with a touchpoint in one line, or None where the touchpoint holds."""
        tree = self._tree(touchpoint.module)
        if tree is None:
            return f"there is no module {touchpoint.module}"
        if touchpoint.kind == "module":
            return None
        if touchpoint.kind == "text":
            return text_problem(touchpoint.name, tree)
        if touchpoint.kind == "name":
            return None if touchpoint.name in assigned_names(tree) else f"nothing assigns {touchpoint.name!r}"
        if touchpoint.kind == "attribute":
            return self._attribute_problem(touchpoint)
        found = self.find(touchpoint.module, touchpoint.name)
        if found is None:
            return f"there is no {touchpoint.name} in {touchpoint.module}"
        if touchpoint.kind == "class":
            return None if isinstance(found.node, ast.ClassDef) else "is not a class"
        if isinstance(found.node, ast.ClassDef):
            return "is a class, not a function"
        if any(ast.unparse(d).rpartition(".")[2] in ("property", "cached_property") for d in found.node.decorator_list):
            return "cannot be called"
        absent = set(touchpoint.reads) - local_names(found.node)
        if absent:
            return f"has no local {', '.join(sorted(absent))}"
        return parameters_problem(touchpoint.parameters, parameter_names(found.node))

    def defines(self, module: str, name: str) -> bool:
        """Return whether a name can be imported from a module: defined or assigned there, imported, or a module."""
        if self._file(f"{module}.{name}").is_file():
            return True
        tree = self._tree(module)
        if tree is None:
            return False
        imported = [a.asname or a.name for s in statements(tree.body) if isinstance(s, ast.ImportFrom) for a in s.names]
        return name in assigned_names(tree) | set(imported) or self.find(module, name) is not None

    def find(self, module: str, qualname: str) -> Definition | None:
        """Return the definition behind a dotted name, also where the module only imports the name."""
        first, *rest = qualname.split(".")
        found = self._in_module(module, first)
        for name in rest:
            found = self._member(found, name) if found else None
        return found

    def lineage(self, found: Definition) -> Iterator[Definition]:
        """Yield a class and the bases of the class within the host, depth first."""
        yield found
        if isinstance(found.node, ast.ClassDef):
            for base in found.node.bases:
                if parent := self.find(found.module, base_name(base)):
                    yield from self.lineage(parent)

    def _attribute_problem(self, touchpoint: Touchpoint) -> str | None:
        class_name, _, attribute = touchpoint.name.rpartition(".")
        attributes = self._attributes(touchpoint.module, class_name)
        if attributes is None:
            return f"there is no class {class_name} in {touchpoint.module}"
        return None if attribute in attributes else f"nothing assigns {attribute!r} in {class_name} or its bases"

    def _attributes_of_lineage(self, module: str, class_name: str) -> frozenset[str] | None:
        found = self.find(module, class_name)
        if found is None or not isinstance(found.node, ast.ClassDef):
            return None
        nodes = [definition.node for definition in self.lineage(found)]
        return frozenset(name for node in nodes if isinstance(node, ast.ClassDef) for name in attributes_of(node))

    def _in_module(self, module: str, name: str) -> Definition | None:
        tree = self._tree(module)
        if tree is None:
            return None
        for statement in statements(tree.body):
            if isinstance(statement, ast.ClassDef | Function) and statement.name == name:
                return Definition(module, statement)
            if isinstance(statement, ast.ImportFrom) and (source := self._imported(module, statement, name)):
                return self._in_module(*source)
            is_star = isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*"
            if is_star and (found := self._in_module(self._absolute(module, statement), name)):
                return found
        return None

    def _imported(self, module: str, statement: ast.ImportFrom, name: str) -> tuple[str, str] | None:
        for alias in statement.names:
            if name == (alias.asname or alias.name):
                return self._absolute(module, statement), alias.name
        return None

    def _absolute(self, module: str, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        keep = module.split(".")
        above = statement.level - 1 if self._file(module).name == "__init__.py" else statement.level
        package = keep[: len(keep) - above]
        return ".".join([*package, statement.module] if statement.module else package)

    def _member(self, found: Definition, name: str) -> Definition | None:
        for definition in self.lineage(found):
            for statement in statements(definition.node.body):
                if isinstance(statement, ast.ClassDef | Function) and statement.name == name:
                    return Definition(definition.module, statement)
        return None

    def _file(self, module: str) -> Path:
        path = self._root.joinpath(*module.split("."))
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    def _parse(self, module: str) -> ast.Module | None:
        file = self._file(module)
        return ast.parse(file.read_bytes()) if file.is_file() else None


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a body, also those under `if` and `try`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            handlers = [s for handler in getattr(statement, "handlers", []) for s in handler.body]
            yield from statements([*statement.body, *statement.orelse, *handlers])


def assigned_names(tree: ast.Module) -> set[str]:
    """Return the names that a module assigns outside of functions and classes."""
    targets = [t for s in statements(tree.body) if isinstance(s, ast.Assign) for t in s.targets]
    targets += [s.target for s in statements(tree.body) if isinstance(s, ast.AnnAssign)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def base_name(base: ast.expr) -> str:
    """Return the dotted name of a base class, without type arguments."""
    return ast.unparse(base.value if isinstance(base, ast.Subscript) else base)


def parameter_names(function: Function) -> list[str]:
    """Return the names of a function's parameters in the order of `inspect.signature`, without `self` and `cls`."""
    a = function.args
    ordered = [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]
    return [argument.arg for argument in ordered if argument.arg not in ("self", "cls")]


def local_names(function: Function) -> set[str]:
    """Return the parameters of a function and every name that the function assigns."""
    assigned = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return assigned | set(parameter_names(function))
