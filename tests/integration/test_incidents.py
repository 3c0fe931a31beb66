"""Incidents on real servers: one folder for each fault, read over HTTP, and a log that dumps nothing."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from holdfast.bench.topologies import TOPOLOGIES
from holdfast.chaos.control import token_headers
from holdfast.chaos.loads import few_tokens, fresh_salt
from holdfast.chaos.server import Server
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec
from integration.helpers.servers import Servers, run
from integration.helpers.streams import faulted

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.matrix]


def incidents(server: Server, number: int = 0) -> list[dict[str, Any]]:
    """Return the incidents of this server, newest first, once `number` of them have ended."""
    deadline = time.monotonic() + 20.0
    while True:
        answer = httpx.get(
            f"{server.url}/fault_tolerance/incidents", headers=token_headers(server.url), trust_env=False
        )
        found: list[dict[str, Any]] = answer.json()["incidents"]
        if len([i for i in found if i["outcome"] != "open"]) >= number or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def test_an_exception_and_a_stopped_rank_each_leave_one_incident_and_the_log_no_dump(
    servers: Servers, tmp_path: Path
) -> None:
    """Two API servers, of which one forwards the question to the owner."""
    topology = next(t for t in TOPOLOGIES if t.name == "tp2")
    folder = tmp_path / "incidents"
    arguments = ("--incident-dir", str(folder), "--log-format", "json", "--api-server-count", "2")
    with servers.of(topology, arguments=arguments, cold=True) as server:
        for kind in (FaultKind.RAISE, FaultKind.STOP):
            injection = InjectionSpec(phase=Phase.FORWARD, rank=1, kind=kind, after_steps=5)
            run(faulted(server, few_tokens(fresh_salt()), injection))
        stopped, raised = incidents(server, 2)
        assert {i["outcome"] for i in (stopped, raised)} == {"repaired"}
        assert raised["cause"].startswith("InjectedFault in engine 0, rank 1 at forward"), raised
        assert raised["action"] == "retry" and stopped["action"] == "restart-workers"
        path = f"{server.url}/fault_tolerance/incidents/{stopped['incident_id']}.tar"
        for _ in range(4):  # both API servers
            tar = httpx.get(path, headers=token_headers(server.url), trust_env=False).content
            with tarfile.open(fileobj=io.BytesIO(tar)) as files:
                names = {Path(name).name for name in files.getnames()}
            assert {"incident.json", "machine.json", "configuration.txt", "stall.json"} <= names
            assert any(name.startswith("stacks-1-") for name in names), names
        record = json.loads((folder / raised["incident_id"] / "incident.json").read_text())
        assert record["faults"][0]["stack"] and record["phases"]["restore"] is not None
    log = server.spec.log.read_text()
    assert "Dumping input data" not in log and "Dumping scheduler output" not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    decided = [line["message"] for line in lines if "[action=" in line["message"]]
    assert len(decided) == 2, decided
    assert {"holdfast", "vllm"} <= {line["logger"].split(".")[0] for line in lines}
