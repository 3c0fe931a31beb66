"""Incidents over HTTP: with the control token only; a list, one incident, its files as a tar."""

from __future__ import annotations

import io
import tarfile
from concurrent.futures import Future
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from holdfast.api import routes
from holdfast.core.config import HoldfastConfig
from support.control_plane import MemoryControl
from support.http_app import BEARER, build_app


@pytest.fixture
def broken(tmp_path: Path) -> MemoryControl:
    control = MemoryControl(config=HoldfastConfig(incident_dir=str(tmp_path))).attach()
    control.break_down()
    control.recover()
    return control


@pytest.mark.parametrize("prefix", routes.PREFIXES)
def test_a_list_an_incident_and_its_tar(broken: MemoryControl, prefix: str) -> None:
    client = TestClient(build_app(broken), headers=BEARER)
    [summary] = client.get(f"{prefix}/incidents").json()["incidents"]
    assert summary["outcome"] == "repaired" and summary["cause"].startswith("InjectedFault in engine 0")
    shown = client.get(f"{prefix}/incidents/{summary['incident_id']}").json()
    assert shown["incident"]["schema_version"] == 1 and "incident.json" in shown["files"]
    answer = client.get(f"{prefix}/incidents/{summary['incident_id']}.tar")
    assert answer.headers["content-type"] == "application/x-tar"
    assert f'filename="{summary["incident_id"]}.tar"' in answer.headers["content-disposition"]
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        assert f"{summary['incident_id']}/incident.json" in tar.getnames()


@pytest.mark.parametrize("path", ["", "/x", "/x.tar"])
def test_incidents_need_the_token(broken: MemoryControl, path: str) -> None:
    assert TestClient(build_app(broken)).get(f"/fault_tolerance/incidents{path}").status_code == 401


@pytest.mark.parametrize("name", ["nothing", "nothing.tar", "..%2f..%2fetc", "a%00b", "%22", "x" * 300, ".tar"])
def test_an_unknown_incident_is_404_with_a_hint(broken: MemoryControl, name: str) -> None:
    answer = TestClient(build_app(broken), headers=BEARER).get(f"/fault_tolerance/incidents/{name}")
    assert answer.status_code == 404


def test_a_folder_that_does_not_answer_is_503(broken: MemoryControl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_READ_S", 0.05)
    monkeypatch.setattr(broken, "incidents", lambda asked: Future())
    answer = TestClient(build_app(broken), headers=BEARER).get("/fault_tolerance/incidents")
    assert answer.status_code == 503 and "incident-dir" in answer.json()["error"]["hint"]
