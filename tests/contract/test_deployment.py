"""What deploy/ holds is what its readers accept: Docker, Kubernetes, systemd, compose. No image was built for it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from holdfast.cli.serve_flags import flag_parser

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
KUBERNETES = "1.33"
CUSTOM = {"PodMonitor": "monitoring.coreos.com/v1"}
TIMEOUT_S = 60


def documents() -> list[dict[str, Any]]:
    """The base as kustomize makes it, or the files themselves without kubectl."""
    if (kubectl := shutil.which("kubectl")) is None:
        files = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
        return [yaml.safe_load((BASE / name).read_text()) for name in files]
    made = subprocess.run(
        [kubectl, "kustomize", str(BASE)], capture_output=True, text=True, check=True, timeout=TIMEOUT_S
    ).stdout
    return list(yaml.safe_load_all(made))


def test_the_base_for_kubernetes_is_valid_by_the_schemas_of_kubernetes() -> None:
    kinds = set()
    for document in documents():
        kinds.add(document["kind"])
        if CUSTOM.get(document["kind"]) == document["apiVersion"]:
            assert set(document["spec"]) <= {"selector", "podMetricsEndpoints", "namespaceSelector", "jobLabel"}
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert kinds == {"Deployment", "Service", "PodDisruptionBudget", "PodMonitor"}


def test_a_wrong_field_is_found() -> None:
    [deployment] = [d for d in documents() if d["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


def test_the_three_probes_ask_the_right_endpoints() -> None:
    [deployment] = [d for d in documents() if d["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert probes == {"startup": "/health", "liveness": "/health", "readiness": "/fault_tolerance/ready"}


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_hadolint_finds_nothing(name: str) -> None:
    program = Path(sysconfig.get_path("scripts")) / "hadolint"
    checked = subprocess.run(
        [program, str(DEPLOY / "docker" / name)], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_every_copied_file_is_there_and_part_of_the_build(name: str) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    for words in re.findall(r"^COPY (.+)$", (DEPLOY / "docker" / name).read_text(), re.MULTILINE):
        *copied, _ = words.split()
        assert all((ROOT / file).exists() for file in copied)
        assert set(copied) <= allowed


def test_the_unit_in_the_document_is_the_file() -> None:
    text = (ROOT / "docs" / "reference" / "supervision.md").read_text()
    [shown] = re.findall(r"```ini\n(\[Unit\].*?)```", text, re.DOTALL)
    assert shown == (DEPLOY / "systemd" / "holdfast.service").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_finds_nothing_in_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "holdfast.service"
    text = (DEPLOY / "systemd" / "holdfast.service").read_text()
    unit.write_text(text.replace("/opt/vllm/bin/holdfast", sys.executable))
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    found = [line for line in checked.stderr.splitlines() if "holdfast.service" in line]
    assert (checked.returncode, found) == (0, [])


def test_every_file_that_compose_mounts_is_there() -> None:
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    assert len(mounted) == 5
    assert all((DEPLOY / "compose" / file).exists() for file in mounted)


def test_every_flag_of_holdfast_in_an_example_is_one_of_the_server() -> None:
    known = {option for action in flag_parser()._actions for option in action.option_strings}
    said = "\n".join(
        file.read_text() for file in [*sorted(DEPLOY.rglob("*.yaml")), DEPLOY / "systemd/holdfast.service"]
    )
    of_holdfast = {flag for flag in re.findall(r"--[a-z][a-z-]+", said) if "standby" in flag or "holdfast" in flag}
    assert of_holdfast == {"--standby-workers"}
    assert of_holdfast <= known
