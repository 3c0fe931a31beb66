"""What a release of the host has at each touchpoint, in a form that two releases can be compared by.

The signature of a function and its body, the bases and members of a class, the value of a name. Positions, comments and
docstrings are left out, and the form does not depend on the version of Python that reads the sources.
"""

from __future__ import annotations

import ast
import hashlib
from typing import NamedTuple

from contract.host_ast import Function, HostSources, statements
from holdfast.hosts.vllm.contract.registry import TOUCHPOINTS
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint

DIGITS = 12


class Record(NamedTuple):
    """One touchpoint in one release: a signature to read, and a digest of the body."""

    signature: str
    body: str


def records_of(sources: HostSources, release: str) -> dict[str, Record]:
    """Return the record of every function, class and name that the registry lists for a release, by label."""
    mine = [t for t in TOUCHPOINTS if not t.releases or release in t.releases]
    found = {t.label: record_of(sources, t) for t in mine if t.module.startswith("vllm")}
    return {label: record for label, record in sorted(found.items()) if record is not None}


def record_of(sources: HostSources, touchpoint: Touchpoint) -> Record | None:
    """Return the record of a touchpoint; None where nothing is found, or for a kind without a body."""
    if touchpoint.kind == "name":
        return _record_of_name(sources, touchpoint)
    if touchpoint.kind not in ("wrap", "call", "class"):
        return None
    found = sources.find(touchpoint.module, touchpoint.name)
    if found is None:
        return None
    if isinstance(found.node, ast.ClassDef):
        return Record(_head_of_class(found.node), digest_of(_members(found.node)))
    return Record(signature_of(found.node), digest_of(found.node.body))


def signature_of(function: Function) -> str:
    """Return the signature of a function as it is written, with decorators."""
    kind = "async def" if isinstance(function, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    decorators = "".join(f"@{ast.unparse(decorator)} " for decorator in function.decorator_list)
    return f"{decorators}{kind} {function.name}({ast.unparse(function.args)}){returns}"


def digest_of(nodes: list[ast.stmt]) -> str:
    """Return a digest of statements, without docstrings."""
    kept = [canonical(node) for node in nodes if not _is_docstring(node)]
    return hashlib.sha256(repr(kept).encode()).hexdigest()[:DIGITS]


def canonical(value: object) -> object:
    """Return a syntax tree as nested tuples; fields that are empty, or that only newer versions have, are left out."""
    if isinstance(value, ast.Constant):
        return ("Constant", type(value.value).__name__, repr(value.value))
    if isinstance(value, ast.AST):
        fields = [(name, canonical(field)) for name, field in ast.iter_fields(value)]
        return (type(value).__name__, *((name, field) for name, field in fields if field not in (None, ())))
    if isinstance(value, list):
        return tuple(canonical(item) for item in value if not _is_docstring(item))
    return value


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _head_of_class(node: ast.ClassDef) -> str:
    return f"class {node.name}({', '.join(ast.unparse(base) for base in node.bases)})"


def _members(node: ast.ClassDef) -> list[ast.stmt]:
    """Return what a class assigns: fields and values of enumerations; its methods are touchpoints of their own."""
    return [statement for statement in statements(node.body) if isinstance(statement, ast.Assign | ast.AnnAssign)]


def _record_of_name(sources: HostSources, touchpoint: Touchpoint) -> Record | None:
    tree = sources.tree(touchpoint.module)
    for statement in statements(tree.body) if tree is not None else ():
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == touchpoint.name for target in targets):
            return Record(touchpoint.name, digest_of([statement]))
    return None
