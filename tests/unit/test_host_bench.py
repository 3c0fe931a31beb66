"""`make setup HOST=0.33`: the wheel of the bench is made of checked parts only, in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("host_bench", str(ROOT / "scripts" / "host-bench"))
    module = ModuleType("host_bench")
    sys.modules["host_bench"] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


def wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


METADATA = "Name: vllm\nVersion: 0.33.0\nRequires-Dist: torch==2.14.0\nRequires-Dist: torch-like\n\nText"


def python_files(script: ModuleType) -> dict[str, str]:
    patched = {patch.file: f"before\n{patch.before}\nafter" for patch in script.BENCHES["0.33"].patches}
    return {
        **patched,
        "vllm/new.py": "new",
        "vllm/_C.so": "for GPUs",
        "vllm-0.33.0.dist-info/METADATA": METADATA,
        "vllm-0.33.0.dist-info/RECORD": "old",
    }


def test_python_of_the_release_over_the_operators_of_another_build(script: ModuleType, tmp_path: Path) -> None:
    """Libraries come from the operators' wheel and all else from the release, marked as a build for CPUs."""
    bench = script.BENCHES["0.33"]
    python = wheel(tmp_path / "python.whl", python_files(script))
    operators = wheel(tmp_path / "operators.whl", {"vllm/_C.so": "for CPUs", "vllm/new.py": "old"})
    script.overlay(bench, python, operators, tmp_path / "made.whl")
    with zipfile.ZipFile(tmp_path / "made.whl") as made:
        contents = {name: made.read(name).decode() for name in made.namelist()}
    assert (contents["vllm/new.py"], contents["vllm/_C.so"]) == ("new", "for CPUs")
    metadata = contents["vllm-0.33.0+cpu.dist-info/METADATA"].splitlines()
    assert metadata[1] == "Version: 0.33.0+cpu"
    of_torch = [line for line in metadata if "torch" in line]
    assert of_torch == ["Requires-Dist: torch-like", f"Requires-Dist: {bench.torch}"]
    for patch in bench.patches:
        assert contents[patch.file] == f"before\n{patch.after}\nafter"
    assert "vllm/new.py,sha256=" in contents["vllm-0.33.0+cpu.dist-info/RECORD"]


@pytest.mark.parametrize("passage", ["", "twice"])
def test_another_source_than_the_patch_was_made_for_is_refused(
    script: ModuleType, tmp_path: Path, passage: str
) -> None:
    """A passage that is not there exactly once is named, and no wheel is made from a guess."""
    patch = script.BENCHES["0.33"].patches[0]
    files = {**python_files(script), patch.file: patch.before * 2 if passage else "something newer"}
    python = wheel(tmp_path / "python.whl", files)
    with pytest.raises(script.Differs, match=patch.file):
        script.overlay(script.BENCHES["0.33"], python, wheel(tmp_path / "operators.whl", {}), tmp_path / "made.whl")


def test_a_wheel_with_another_digest_is_refused(script: ModuleType, tmp_path: Path) -> None:
    """A newer file under the same version is never used."""
    wheel(tmp_path / "vllm-0.33.0-cp38-abi3-any.whl", {})
    with pytest.raises(script.Differs, match="has the digest"):
        script.downloaded(script.BENCHES["0.33"].python, tmp_path)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed here")
@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["HOST=0.33"], {}), ([], {}), (["HOST=0.32"], {}), ([], {"HOST": "0.33"})],
    ids=["named", "default", "default by name", "exported by a shell"],
)
def test_only_the_command_line_of_make_names_a_release(arguments: list[str], environment: dict[str, str]) -> None:
    """A release is served from an environment of its own; a HOST that a shell exports means a machine."""
    run = ["make", "--dry-run", "--no-print-directory", "settings", "PYTHON=python3", *arguments]
    of_make = ("HOST", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    cleared = {name: value for name, value in os.environ.items() if name not in of_make}
    printed = subprocess.run(run, cwd=ROOT, env=cleared | environment, capture_output=True, text=True, check=True)
    expected = ".venv-0.33" if arguments == ["HOST=0.33"] else ".venv"
    assert printed.stdout.splitlines()[-1].startswith(f"{expected}/bin/")
    assert ("scripts/setup 0.33" in printed.stdout) == (expected == ".venv-0.33")
