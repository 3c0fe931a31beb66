"""`scripts/host-report`, between two small releases of a host."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from contract.host_ast import HostSources
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint, attributes, call, wrap

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "host-report"
OLDER = """
class Core:
    LIMIT: int = 1
    def __init__(self): self.kept = 1
    def same(self, a): return a
    def wider(self, a): return a
    def other(self, a): return a  # comments count for nothing
    def moves(self): ...
    async def waits(self): ...
"""
NEWER = """
class Core:
    LIMIT: int = 2
    def __init__(self): self.own = 1
    def same(self, a):
        \"\"\"A docstring counts for nothing.\"\"\"
        return a
    def wider(self, a, b=None): return a
    def other(self, a): return a + 1
    def waits(self): ...
"""
TOUCHPOINTS = (
    *(wrap("vllm.core", f"Core.{name}", ("a",), "a reason") for name in ("same", "wider", "other")),
    *(call("vllm.core", f"Core.{name}", (), "a reason") for name in ("moves", "waits")),
    Touchpoint("vllm.core", "Core", "class", None, "a reason"),
    *attributes("vllm.core", "Core", "kept", "a reason"),
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("host_report", str(SCRIPT))
    module = ModuleType("host_report")
    sys.modules["host_report"] = module  # dataclasses look their module up
    module.__file__ = str(SCRIPT)
    loader.exec_module(module)
    return module


@pytest.fixture
def report(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def release(name: str, core: str, envs: str, more: dict[str, str]) -> HostSources:
        files = {"core.py": core, "envs.py": envs, "__init__.py": "", **more}
        files["_version.py"] = f"__version__ = version = '{name}'\n"
        for file, text in files.items():
            path = tmp_path / name / "vllm" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return HostSources(tmp_path / name)

    config = "class SomeConfig:\n    new_field: int = 0\n"
    serve = "@router.post('/new_endpoint')\nasync def serve(): ...\n"
    older = release("0.1.0", OLDER, "OLD = 'VLLM_OLD'", {})
    more = {"elsewhere.py": "def moves(): ...\n", "config/some.py": config, "entrypoints/api.py": serve}
    newer = release("0.2.0", NEWER, "NEW = 'VLLM_NEW'", more)
    monkeypatch.setattr(script, "TOUCHPOINTS", TOUCHPOINTS)
    monkeypatch.setattr(script, "imports_of_the_host", lambda package: [])
    text: str = script.report(older, newer, "older", "newer")
    return text


@pytest.mark.parametrize(
    "line",
    [
        "# vLLM 0.1.0 → 0.2.0",
        "7 touchpoints of 0.33: 1 as they were, 6 to look at.",
        "| `vllm.core:Core.wider` | wrap | signature changed | `def wider(self, a)` | `def wider(self, a, b=None)` |",
        "| `vllm.core:Core.other` | wrap | body changed |  |  | a reason |",
        "| call | gone: there is no Core.moves in vllm.core; moves is in vllm/elsewhere.py |",
        "| `vllm.core:Core.waits` | call | signature changed | `async def waits(self)` | `def waits(self)` |",
        "| `vllm.core:Core` | class | body changed |",
        "| attribute | gone: nothing assigns 'kept' in Core or its bases |",
        "| `SomeConfig.new_field` | new | vllm.config.some | decide |",
        "| `POST /new_endpoint` | new | vllm.entrypoints.api | decide |",
        "| `VLLM_NEW` | new | vllm.envs | decide |",
        "| `VLLM_OLD` | gone | vllm.envs | decide |",
        "-    return a\n+    return a + 1",
    ],
)
def test_a_change_is_told(report: str, line: str) -> None:
    assert line in report


def test_what_is_as_it_was_is_not_told(report: str) -> None:
    assert "Core.same" not in report
