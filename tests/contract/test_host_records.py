"""The host has at each touchpoint what it had when Holdfast was last checked, and a planted change is found.

A name that still stands says nothing of a function that does something else. `scripts/host-report` tells what changed,
and takes over what was looked at: docs/following-the-host.md.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from contract.host_ast import Function, HostSources, sources_in
from contract.host_record import record_of, records_of
from holdfast.hosts.vllm.contract.hooks import is_present
from holdfast.hosts.vllm.contract.registry import TOUCHPOINTS
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint
from holdfast.hosts.vllm.contract.versions import SUPPORTED, host_version, supported_release

CACHED_SOURCES = Path(__file__).resolve().parents[2] / ".cache" / "host-sources"
RECORDS = json.loads(Path(__file__).with_name("hosts").joinpath("host-records.json").read_text())
LEAST_FOUND = 0.95  # of the planted changes
_SPEC = importlib.util.find_spec("vllm")
needs_host = pytest.mark.skipif(_SPEC is None, reason="vLLM is not installed here")


@pytest.fixture(scope="module")
def installed() -> HostSources:
    assert _SPEC is not None
    return sources_in(Path(str(_SPEC.origin)).parent.parent)


def differences(sources: HostSources, series: str) -> list[str]:
    """Return the labels whose record is not the committed one; a new touchpoint has no record yet."""
    known = {label: tuple(record) for label, record in RECORDS[series].items()}
    found = {label: tuple(record) for label, record in records_of(sources, series).items()}
    return sorted(label for label in known.keys() & labels_of(series) if known[label] != found.get(label))


def labels_of(series: str) -> set[str]:
    return {t.label for t in TOUCHPOINTS if not t.releases or series in t.releases}


@needs_host
@pytest.mark.host
def test_the_installed_host_does_what_it_did(installed: HostSources) -> None:
    """No function that Holdfast hooks, calls or reads has changed since the release was looked at."""
    assert differences(installed, supported_release(host_version())) == []


@pytest.mark.parametrize("series", SUPPORTED)
def test_a_release_does_what_it_did(series: str) -> None:
    """The same in the sources of each supported release."""
    folder = CACHED_SOURCES / f"{series}.0"
    if not folder.is_dir():
        pytest.skip(f"the sources of vLLM {series} are not cached; `make contract-wheels` downloads them")
    assert differences(sources_in(folder), series) == []


def test_every_supported_release_has_records() -> None:
    """A release that is taken in brings its records along; few touchpoints are newer than the records."""
    assert tuple(RECORDS) == SUPPORTED
    for series, known in RECORDS.items():
        mine = [t for t in TOUCHPOINTS if t.label in labels_of(series) and t.module.startswith("vllm")]
        wanted = {t.label for t in mine if t.kind in ("wrap", "call", "class", "name")}
        assert len(wanted - known.keys()) <= len(wanted) / 10, "run scripts/host-report --record"


# ---- wrong entries of the registry

PRESENT = [t for t in TOUCHPOINTS if is_present(t) and t.module.startswith("vllm.")]
WRONG: dict[str, Callable[[Touchpoint], Touchpoint]] = {
    "another name": lambda t: replace(t, name=f"{t.name}_gone"),
    "another module": lambda t: replace(t, module=f"{t.module}_gone"),
    "another first parameter": lambda t: replace(t, parameters=("gone", *(t.parameters or ()))),
    "another local": lambda t: replace(t, reads=(*t.reads, "gone")),
    "another kind": lambda t: replace(t, kind="class" if t.kind in ("wrap", "call") else "wrap"),
}
APPLIES = {
    "another name": ("wrap", "call", "attribute", "class", "name", "text"),
    "another module": ("wrap", "call", "attribute", "class", "name", "text", "module"),
    "another first parameter": ("wrap", "call"),
    "another local": ("wrap", "call"),
    "another kind": ("wrap", "call", "class"),
}


@needs_host
@pytest.mark.host
@pytest.mark.parametrize(("way", "kind"), [(way, kind) for way, kinds in APPLIES.items() for kind in kinds])
def test_a_wrong_entry_is_found(installed: HostSources, way: str, kind: str) -> None:
    """Every entry of each kind, made wrong in each way that applies, fails the test of the touchpoints."""
    entries = [t for t in PRESENT if t.kind == kind]
    assert entries
    assert [t.label for t in entries if installed.problem(WRONG[way](t)) is None] == []


# ---- changes of the host


def renamed(node: Function) -> None:
    node.name += "_gone"


def parameter_added(node: Function) -> None:
    node.args.args.append(ast.arg("added"))


def parameter_removed(node: Function) -> None:
    (node.args.args or node.args.kwonlyargs or [ast.arg("none")]).pop()


def defaulted(node: Function) -> None:
    node.args.defaults = [ast.Constant("otherwise")] if node.args.args else node.args.defaults
    node.args.kw_defaults = [ast.Constant("otherwise") for _ in node.args.kwonlyargs]


def returns_otherwise(node: Function) -> None:
    node.body.append(ast.Return(ast.Tuple([ast.Constant(1), ast.Constant(2)], ast.Load())))


def raises_otherwise(node: Function) -> None:
    node.body.insert(0, ast.Raise(ast.Call(ast.Name("ValueError", ast.Load()), [ast.Constant("other")], [])))


def member_changed(node: ast.ClassDef) -> None:
    node.body.append(ast.Assign([ast.Name("ADDED", ast.Store())], ast.Constant(99), lineno=0))


FUNCTIONS = (renamed, parameter_added, parameter_removed, defaulted, returns_otherwise, raises_otherwise)


@contextmanager
def changed(node: Function | ast.ClassDef, change: Callable[..., None]) -> Iterator[bool]:
    """Change a definition for a while; yield whether the change applies."""
    args = getattr(node, "args", None)
    name, body = node.name, list(node.body)
    kept = [list(getattr(args, field)) for field in ("args", "kwonlyargs", "defaults", "kw_defaults")] if args else []
    before = _changeable(node)
    change(node)
    try:
        yield _changeable(node) != before
    finally:
        node.name, node.body = name, body
        for field, values in zip(("args", "kwonlyargs", "defaults", "kw_defaults"), kept, strict=False):
            setattr(args, field, values)


def _changeable(node: Function | ast.ClassDef) -> tuple[object, ...]:
    return node.name, len(node.body), ast.dump(node.args) if isinstance(node, Function) else ""


def is_found(sources: HostSources, touchpoint: Touchpoint, series: str) -> bool:
    """Return whether a contract test fails for a touchpoint: that of the records, or that of the touchpoints."""
    record = record_of(sources, touchpoint)
    return list(record or ()) != RECORDS[series].get(touchpoint.label) or sources.problem(touchpoint) is not None


@needs_host
@pytest.mark.host
def test_planted_changes_of_the_host_are_found(installed: HostSources) -> None:
    """Each function and class, changed in each way that applies in the trees of the host, fails a contract test."""
    found, missed, series = 0, [], supported_release(host_version())
    for touchpoint in PRESENT:
        definition = installed.find(touchpoint.module, touchpoint.name) if touchpoint.name else None
        if touchpoint.label not in RECORDS[series] or definition is None:
            continue
        changes = FUNCTIONS if touchpoint.kind != "class" else (renamed, member_changed)
        for change in changes:
            with changed(definition.node, change) as applies:
                if not applies:
                    continue
                if is_found(installed, touchpoint, series):
                    found += 1
                else:
                    missed.append((touchpoint.label, change.__name__))
    assert found > 900
    assert found / (found + len(missed)) >= LEAST_FOUND, missed
