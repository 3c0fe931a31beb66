"""What a release ships: the wheel builds from the tree, installs into a clean environment, and works there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD_TIMEOUT_S, INSTALL_TIMEOUT_S = 240, 240


def run(*command: object, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a command outside the checkout, so that only what is installed can be imported."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout_s, check=False, cwd="/"
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source") / "holdfast"
    source.mkdir()
    # A copy: what an earlier build left in `build/` would go into the wheel too.
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    built = run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source, timeout_s=BUILD_TIMEOUT_S
    )
    assert built.returncode == 0, built.stderr
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment into which nothing but the wheel was installed."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    installed = run(folder / "bin" / "python", "-m", "pip", "install", "-q", wheel, timeout_s=INSTALL_TIMEOUT_S)
    assert installed.returncode == 0, installed.stderr
    return folder / "bin"


def test_the_wheel_carries_the_version_of_the_project_and_every_module(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        about = Parser().parsestr(archive.read(metadata).decode())
    assert (about["Name"], about["Version"]) == (PROJECT["name"], PROJECT["version"])
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "holdfast").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert "holdfast/py.typed" in names
    static = ROOT / "src" / "holdfast" / "api" / "page" / "static"
    of_the_page = {str(path.relative_to(ROOT / "src")) for path in static.rglob("*") if path.is_file()}
    assert of_the_page - names == set()
    assert not [name for name in names if name.startswith("tests")]


def test_the_wheel_brings_neither_the_host_nor_torch(clean: Path) -> None:
    listed = run(clean / "python", "-m", "pip", "list", "--format", "freeze").stdout.lower()
    assert "holdfast==" in listed
    assert not [line for line in listed.splitlines() if line.startswith(("vllm", "torch", "nvidia"))]


def test_the_installed_command_tells_its_version(clean: Path) -> None:
    told = run(clean / "holdfast", "--version")
    assert (told.returncode, told.stderr) == (0, "")
    assert PROJECT["version"] in told.stdout


def test_beside_no_host_the_doctor_says_what_is_missing(clean: Path) -> None:
    told = run(clean / "holdfast", "doctor")
    assert told.returncode == 1
    assert "vLLM" in told.stdout + told.stderr


def test_the_host_finds_both_plugins_of_the_installed_wheel(clean: Path) -> None:
    program = (
        "from importlib.metadata import entry_points as e; "
        "print(*(f'{p.name}={p.value}' for g in ('vllm.general_plugins', 'vllm.endpoint_plugins') for p in e(group=g)))"
    )
    listed = run(clean / "python", "-c", program).stdout.split()
    assert listed == ["holdfast=holdfast.plugin.general:register", "holdfast=holdfast.plugin.endpoint:HoldfastEndpoint"]
