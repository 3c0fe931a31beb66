"""The finder of host definitions, against small sources that have the host's shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.host_ast import HostSources
from holdfast.hosts.vllm.contract.touchpoint import Kind, Touchpoint

SOURCES = {
    "vllm/__init__.py": "",
    "vllm/base.py": """
from typing import Generic, TypeVar
T = TypeVar("T")
class Base(Generic[T]):
    declared: int
    def __init__(self, config, *, log=False):
        self.inherited, self.second = 1, 2
    def step(self, output): ...
""",
    "vllm/engine/__init__.py": "from .core import Core",
    "vllm/engine/core.py": """
from vllm.base import Base as Foundation
from ..helpers import serve
if True:
    class Core(Foundation[int]):
        @property
        def size(self): return 1
        def run(self, *args, limit=None, **more):
            self.own: int = 1
            if self.never_assigned: ...
        class Inner:
            def act(self): ...
try:
    def start(): ...
except ImportError:
    def fallback(): ...
""",
    "vllm/helpers.py": """
LIMITS: dict[str, int] = {}
BYE = b"LAST_MESSAGE"
async def serve(app, sock):
    raise RuntimeError(f"Worker {app} failed.")
""",
}


@pytest.fixture
def host(tmp_path: Path) -> HostSources:
    for name, text in SOURCES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return HostSources(tmp_path)


def touchpoint(module: str, name: str, kind: Kind, parameters: tuple[str, ...] | None = None) -> Touchpoint:
    return Touchpoint(module, name, kind, parameters, "why", "until")


@pytest.mark.parametrize(
    ("module", "name", "kind", "parameters"),
    [
        ("vllm.engine.core", "Core", "class", None),
        ("vllm.engine.core", "Core.run", "wrap", ("args", "limit", "more")),
        ("vllm.engine.core", "Core.step", "call", ("output",)),
        ("vllm.engine.core", "Core.__init__", "wrap", ("config", "log")),
        ("vllm.engine.core", "Core.Inner.act", "call", ()),
        ("vllm.engine.core", "start", "call", ()),
        ("vllm.engine.core", "fallback", "call", None),
        ("vllm.engine.core", "serve", "wrap", ("app",)),
        ("vllm.engine", "Core.step", "call", ("output",)),
        ("vllm.engine.core", "", "module", None),
        ("vllm.helpers", "LIMITS", "name", None),
        ("vllm.helpers", "LAST_MESSAGE", "text", None),
        ("vllm.helpers", " failed.", "text", None),
        *(
            ("vllm.engine.core", f"Core.{n}", "attribute", None)
            for n in ["own", "inherited", "second", "declared", "size"]
        ),
    ],
)
def test_finds_what_is_there(
    host: HostSources, module: str, name: str, kind: Kind, parameters: tuple[str, ...] | None
) -> None:
    """Definitions are found in a module, in base classes, through imports, and under `if` and `try`."""
    assert host.problem(touchpoint(module, name, kind, parameters)) is None


@pytest.mark.parametrize(
    ("module", "name", "kind", "parameters", "problem"),
    [
        ("vllm.gone", "Core", "class", None, "there is no module vllm.gone"),
        ("vllm.engine.core", "Gone", "class", None, "there is no Gone in"),
        ("vllm.engine.core", "Core.gone", "call", None, "there is no Core.gone in"),
        ("vllm.engine.core", "Core", "call", None, "is a class"),
        ("vllm.engine.core", "start", "class", None, "is not a class"),
        ("vllm.engine.core", "Core.step", "call", ("result",), "takes (output), expected (result) first"),
        ("vllm.engine.core", "Core.never_assigned", "attribute", None, "nothing assigns 'never_assigned'"),
        ("vllm.engine.core", "Gone.own", "attribute", None, "there is no class Gone"),
        ("vllm.gone", "", "module", None, "there is no module vllm.gone"),
        ("vllm.helpers", "serve", "name", None, "nothing assigns 'serve'"),
        ("vllm.helpers", "Worker 1 failed.", "text", None, "no string of the module contains 'Worker 1 failed.'"),
    ],
)
def test_says_what_is_missing(
    host: HostSources, module: str, name: str, kind: Kind, parameters: tuple[str, ...] | None, problem: str
) -> None:
    """The problem with a touchpoint is a single line that names the missing part."""
    assert problem in (host.problem(touchpoint(module, name, kind, parameters)) or "")
