"""Checks of the installed host against the registry, by importing the host. Changes nothing in the host."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, TypeGuard

from holdfast.hosts.vllm.contract.registry import touchpoints_of
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint
from holdfast.hosts.vllm.contract.versions import host_version, supported_release


def inspect_touchpoints() -> list[tuple[Touchpoint, str | None]]:
    """Return every touchpoint of the installed release with the problem found, or None. Imports the host."""
    found = touchpoints_of(supported_release(host_version()))
    return [(touchpoint, inspect_touchpoint(touchpoint)) for touchpoint in found]


def inspect_touchpoint(touchpoint: Touchpoint) -> str | None:
    """Return the problem with one touchpoint in one line, or None. An error of the host's import is a problem too."""
    if touchpoint.kind == "module":
        return _inspect_module(touchpoint.module)
    try:
        module = importlib.import_module(touchpoint.module)
    except Exception as error:
        return f"cannot be imported: {type(error).__name__}: {error}".splitlines()[0]
    if touchpoint.kind == "attribute":
        return _inspect_attribute(module, touchpoint.name)
    if touchpoint.kind == "name":
        return None if hasattr(module, touchpoint.name) else f"{touchpoint.module} has no {touchpoint.name!r}"
    if touchpoint.kind == "text":
        return text_problem(touchpoint.name, ast.parse(inspect.getsource(module)))
    return _inspect_object(module, touchpoint)


def parameters_problem(expected: tuple[str, ...] | None, found: list[str]) -> str | None:
    """Return the problem with a function's parameters, without `self`, or None where `expected` come first."""
    if expected is None or tuple(found[: len(expected)]) == expected:
        return None
    return f"takes ({', '.join(found)}), expected ({', '.join(expected)}) first"


def text_problem(part: str, tree: ast.Module) -> str | None:
    """Return the problem with a text, or None where a string constant of the module contains the text."""
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = [value if isinstance(value, str) else value.decode("latin1") for value in constants if _is_text(value)]
    return None if any(part in found for found in texts) else f"no string of the module contains {part!r}"


def _is_text(value: object) -> TypeGuard[str | bytes]:
    return isinstance(value, str | bytes)


def _inspect_module(name: str) -> str | None:
    try:
        found = importlib.util.find_spec(name)
    except ImportError as error:
        return f"cannot be found: {error}".splitlines()[0]
    return None if found is not None else "there is no such module"


def attributes_of(node: ast.ClassDef) -> set[str]:
    """Return the attributes of a class's instances: fields and methods of the body, and assignments on `self`."""
    return _names_in_body(node) | {child.attr for child in ast.walk(node) if _is_stored_on_self(child)}


def _names_in_body(node: ast.ClassDef) -> set[str]:
    targets = [target for statement in node.body for target in _assigned(statement)]
    functions = {f.name for f in node.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)}
    return functions | {target.id for target in targets if isinstance(target, ast.Name)}


def _is_stored_on_self(node: ast.AST) -> TypeGuard[ast.Attribute]:
    if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
        return False
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def _assigned(statement: ast.stmt) -> list[ast.expr]:
    if isinstance(statement, ast.Assign):
        return statement.targets
    return [statement.target] if isinstance(statement, ast.AnnAssign) else []


def _inspect_object(module: Any, touchpoint: Touchpoint) -> str | None:
    found = module
    for part in touchpoint.name.split("."):
        if not hasattr(found, part):
            return f"{getattr(found, '__qualname__', module.__name__)} has no {part!r}"
        found = getattr(found, part)
    if touchpoint.kind == "class":
        return None if inspect.isclass(found) else "is not a class"
    if not callable(found):
        return "cannot be called"
    names = [name for name in inspect.signature(found).parameters if name != "self"]
    return parameters_problem(touchpoint.parameters, names)


def _inspect_attribute(module: Any, name: str) -> str | None:
    class_name, _, attribute = name.rpartition(".")
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        return f"there is no class {class_name!r}"
    if attribute in _attributes_of_lineage(module.__name__, class_name):
        return None
    return f"nothing assigns {attribute!r} in {class_name} or its bases"


@functools.cache
def _attributes_of_lineage(module: str, class_name: str) -> frozenset[str]:
    cls = getattr(sys.modules[module], class_name)
    return frozenset(name for node in _definitions(cls) for name in attributes_of(node))


def _definitions(cls: type) -> Iterator[ast.ClassDef]:
    for base in cls.__mro__:
        if base is not object and inspect.getmodule(base) is not None:
            yield from _definition(base)


def _definition(cls: type) -> Iterator[ast.ClassDef]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # built in, or made without source
        return
    yield from (node for node in tree.body if isinstance(node, ast.ClassDef))
