"""The Kubernetes examples are what their controllers read, and their flags are flags of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))


def containers(found: Any) -> list[dict[str, Any]]:
    """Return every container below an object."""
    if isinstance(found, list):
        return [c for each in found for c in containers(each)]
    if not isinstance(found, dict):
        return []
    return [*found.get("containers", ()), *(c for value in found.values() for c in containers(value))]


def test_leader_and_worker_differ_in_their_place_alone_and_share_a_secret() -> None:
    [document] = yaml.safe_load_all((FOLDER / "leader-worker-set.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet")
    template = document["spec"]["leaderWorkerTemplate"]
    assert set(template) == {"size", "restartPolicy", "leaderTemplate", "workerTemplate"}
    [leader], [worker] = containers(template["leaderTemplate"]), containers(template["workerTemplate"])
    size = str(template["size"])
    for each in (leader, worker):
        words = each["command"] + each["args"]
        assert words[words.index("--nnodes") + 1] == size
        assert "HOLDFAST_NODE_SECRET" in {variable["name"] for variable in each["env"]}
    assert "--headless" in worker["command"]
    assert "--headless" not in leader["command"]
    assert leader["args"][:5] == worker["args"][:5]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_no_example_has_a_secret_in_it(example: Path) -> None:
    for document in yaml.safe_load_all(example.read_text()):
        for container in containers(document):
            for variable in container.get("env", ()):
                assert "value" not in variable or "SECRET" not in variable["name"]
