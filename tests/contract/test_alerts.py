"""Alert rules, their runbook, the dashboard and the metrics agree; Prometheus' own tools find nothing."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import combinations
from pathlib import Path

import yaml
from prometheus_client import CollectorRegistry, generate_latest

from holdfast.api.metrics.catalog import DEFINITIONS, Kind
from holdfast.api.metrics.exposition import Exposition, Shown
from support.tools import needed_tool

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
RULES = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"][0]["rules"]
BOARD = json.loads((ROOT / "deploy" / "grafana" / "holdfast.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
TELL = {Kind.COUNTER: "inc", Kind.GAUGE: "set", Kind.HISTOGRAM: "observe"}
OF_THE_HOST = {"vllm:generation_tokens_total", "vllm:num_requests_running", "vllm:num_requests_waiting"}


def promtool(*arguments: str, told: str = "", within: Path = PROMETHEUS) -> str:
    command = [needed_tool("promtool"), *arguments]
    done = subprocess.run(command, input=told, cwd=within, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def known_samples() -> set[str]:
    suffixes = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
    return {d.sample + suffix for d in DEFINITIONS for suffix in suffixes.get(d.kind, ("",))} | OF_THE_HOST


def named(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:holdfast_|vllm:)\w+", expression))


def test_each_alert_fires_when_it_should_and_not_before() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yaml")
    tests = yaml.safe_load((PROMETHEUS / "alerts.test.yaml").read_text())["tests"]
    assert [test["name"] for test in tests] and {t["name"] for t in tests} == {rule["alert"] for rule in RULES}


def test_the_configuration_and_the_rules_are_valid() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yaml")


def test_each_alert_has_its_section_in_the_runbook_and_each_section_an_alert() -> None:
    sections = re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)
    assert sections == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
        section = RUNBOOK.split(f"## {rule['alert']}\n")[1].split("\n## ")[0]
        assert all(part in section for part in ("**Means.**", "**Look at**", "**Do**")), rule["alert"]
        assert re.sub(r"\s+", "", rule["expr"]) in re.sub(r"\s+", "", section), "the runbook shows another expression"
        assert rule["labels"]["severity"] in section


def test_alerts_and_dashboard_name_metrics_that_exist() -> None:
    for expression in [*(rule["expr"] for rule in RULES), *QUERIES]:
        assert named(expression) and named(expression) <= known_samples(), expression


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    """A metric that nobody looks at is left out; routers read `vllm:engine_healthy`."""
    used = set().union(*map(named, [*(rule["expr"] for rule in RULES), *QUERIES]))
    shown = {name for name in known_samples() if name in used}
    assert {d.name for d in DEFINITIONS if not any(s.startswith(d.name) for s in shown)} == {"vllm:engine_healthy"}


def test_prometheus_parses_every_query_of_the_dashboard(tmp_path: Path) -> None:
    filled = [q.replace("$__rate_interval", "1m").replace("$__range", "1h") for q in QUERIES]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(filled)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(QUERIES)} rules found" in promtool("check", "rules", "rules.yaml", within=tmp_path)


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    """The shape that Grafana's own schema asks for: a uid, a schema version, ids, and places beside each other."""
    assert BOARD["uid"] == "holdfast" and BOARD["schemaVersion"] >= 39
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    for one, other in combinations((p["gridPos"] for p in BOARD["panels"]), 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert is_beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    for panel in PANELS:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["title"] and panel["description"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(t["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for t in panel["targets"])
    variables = {variable["name"] for variable in BOARD["templating"]["list"]}
    assert variables == {"datasource", "job", "instance"}
    assert {name for query in QUERIES for name in re.findall(r"\$(\w+)", query)} <= {
        *variables,
        "__rate_interval",
        "__range",
    }


def test_promtool_finds_nothing_in_the_exposition() -> None:
    exposition = Exposition()
    for definition in DEFINITIONS:
        metric = exposition(definition, *(definition.values.get(label, ("some",))[0] for label in definition.labels))
        getattr(metric, TELL[definition.kind])(1)
    registry = CollectorRegistry()
    registry.register(Shown(exposition))
    ours = [line for line in generate_latest(registry).decode().splitlines() if "vllm:" not in line]
    assert promtool("check", "metrics", told="\n".join(ours) + "\n").strip() == ""
