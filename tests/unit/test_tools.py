"""`make tools`: installs what is missing once, and says of each tool that cannot be installed why."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from support.tools import needed_tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("tools_script", str(ROOT / "scripts" / "tools"))
    module = ModuleType("tools_script")
    module.__file__ = loader.path
    sys.modules["tools_script"] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


def test_a_tool_that_is_there_is_not_installed_again(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.provide("some", script.Tool(lambda: "/usr/bin/some", lambda: pytest.fail("installed again")))
    assert capsys.readouterr().out == "tools: some: /usr/bin/some\n"


def test_a_tool_that_cannot_be_installed_is_named_with_the_reason(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def install() -> None:
        script.run(["sh", "-c", "echo no such mirror >&2; exit 100"], privileged=False)

    assert not script.provide("some", script.Tool(lambda: None, install))
    assert "some: NOT INSTALLED" in (told := capsys.readouterr().err)
    assert "no such mirror" in told


def test_without_root_the_command_to_type_is_named(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.os, "geteuid", lambda: 1000)
    with pytest.raises(script.NotInstalled, match="sudo apt-get install some"):
        script.run(["apt-get", "install", "some"])


def test_an_installation_that_brings_nothing_counts_as_missing(script: ModuleType) -> None:
    assert not script.provide("some", script.Tool(lambda: None, lambda: None))


def test_an_unknown_name_is_refused() -> None:
    done = subprocess.run([ROOT / "scripts" / "tools", "grep"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "grep is unknown" in done.stderr


def test_a_missing_tool_skips_a_test_and_fails_the_test_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI_TOOLS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="run `make tools`"):
        needed_tool("no-such-program")
    monkeypatch.setenv("CI_TOOLS", "1")
    with pytest.raises(pytest.fail.Exception, match="run `make tools`"):
        needed_tool("no-such-program")
