"""`holdfast incidents` against a real server without a model, and against the folder after its end."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.config import HoldfastConfig
from support.control_plane import MemoryControl
from support.live_server import LiveServer

Run = Callable[..., Any]


@pytest.fixture
def incident_id(server: LiveServer, tmp_path: Path) -> str:
    server.control = MemoryControl(config=HoldfastConfig(incident_dir=str(tmp_path / "incidents"))).attach()
    server.control.break_down()
    server.control.recover()
    [incident] = server.control.store.page().incidents
    return incident.incident_id


@pytest.mark.parametrize("has_ended", [False, True])
def test_an_incident_is_listed_shown_and_exported(
    run: Run, incident_id: str, tmp_path: Path, closed_url: str, has_ended: bool
) -> None:
    where = ["--folder", str(tmp_path / "incidents"), "--url", closed_url] if has_ended else []
    listed = run("incidents", "list", *where)
    assert listed.exit_code == 0
    assert "repaired" in listed.stdout and f"next: holdfast incidents show {incident_id}" in listed.stdout
    [summary] = json.loads(run("incidents", "list", "--json", *where).stdout)["incidents"]
    assert summary["incident_id"] == incident_id
    shown = run("incidents", "show", incident_id, *where).stdout
    for said in (
        "cause:   InjectedFault in engine 0, rank 0 at forward",
        "action:  retry",
        "next:    no action",
        "40 tokens",
    ):
        assert said in shown
    assert json.loads(run("incidents", "show", incident_id, "--json", *where).stdout)["files"]
    target = tmp_path / "report.tar"
    assert run("incidents", "export", incident_id, "--to", str(target), *where).exit_code == 0
    with tarfile.open(target) as tar:
        assert f"{incident_id}/incident.json" in tar.getnames()


def test_errors_name_the_next_command(run: Run, incident_id: str, closed_url: str, tmp_path: Path) -> None:
    unknown = run("incidents", "show", "nothing")
    assert unknown.exit_code == 1 and "GET /fault_tolerance/incidents" not in unknown.stdout
    assert "holdfast incidents list" in unknown.stderr
    gone = run("incidents", "list", "--url", closed_url)
    assert gone.exit_code == 2 and "holdfast incidents list --folder DEFAULT" in gone.stderr
    assert run("incidents", "show", "../x").exit_code == 2
    assert run("incidents", "show", "nothing", "--folder", str(tmp_path)).exit_code == 1
    full = run("incidents", "export", incident_id, "--to", str(tmp_path / "no" / "folder"))
    assert full.exit_code == 1 and "--to" in full.stderr
    assert "no incident is kept" in run("incidents", "list", "--folder", str(tmp_path / "empty")).stdout
