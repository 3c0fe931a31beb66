"""One span for each incident, its phases as children, linked to the requests of that time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.requests.journal import RequestJournal
from holdfast.hosts.vllm.owner import traces
from holdfast.hosts.vllm.owner.traces import IncidentTraces
from holdfast.hosts.vllm.serving.traced_requests import trace_headers
from support.control_plane import MemoryControl

sdk = pytest.importorskip("opentelemetry.sdk.trace.export", reason="OpenTelemetry comes with the host")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACED = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}


def tell(told: IncidentTraces, control: MemoryControl) -> None:
    """Tell every event with the view after the last one, except while the engine core is broken."""
    control.writer = SimpleNamespace(take=told.take)  # type: ignore[assignment]


def test_an_incident_is_one_span_with_its_phases_and_links() -> None:
    exporter = memory.InMemorySpanExporter()
    told = IncidentTraces()
    told.export_to(sdk.SimpleSpanProcessor(exporter))
    journal: RequestJournal[object] = RequestJournal()
    for request_id, headers in (("traced", TRACED), ("broken", {"traceparent": "x"}), ("untraced", None)):
        journal.open(request_id, SimpleNamespace(trace_headers=headers))
    told.open_requests = lambda: trace_headers(journal)
    control = MemoryControl(config=HoldfastConfig(max_engine_restarts=0)).attach()
    tell(told, control)
    control.break_down()
    assert exporter.get_finished_spans() == ()
    control.recover()
    *phases, incident = exporter.get_finished_spans()
    assert incident.name == "holdfast.incident"
    assert [f"{link.context.trace_id:x}" for link in incident.links] == [TRACE_ID.lstrip("0")]
    assert incident.attributes["holdfast.outcome"] == "repaired" and incident.attributes["holdfast.action"] == "retry"
    assert incident.attributes["holdfast.cause"].startswith("InjectedFault in engine 0")
    assert [p.name.rpartition(".")[2] for p in phases] == ["contain", "decide", "repair", "restore"]
    assert {p.parent.span_id for p in phases} == {incident.context.span_id}
    control.defeat()
    *_, defeated = exporter.get_finished_spans()
    assert defeated.status.status_code.name == "ERROR" and len(exporter.get_finished_spans()) > len(phases) + 1


def test_links_are_bounded_and_nothing_is_kept_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MAX_LINKS", 2)
    assert len(list(traces._links_to([TRACED] * 5))) == 2
    told, control = IncidentTraces(), MemoryControl(config=HoldfastConfig()).attach()
    told.begin(None)
    tell(told, control)
    control.break_down()
    assert told._links == {}


def test_an_endpoint_that_cannot_be_used_costs_the_traces_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sdk, "BatchSpanProcessor", None)
    told = IncidentTraces()
    told.begin("http://127.0.0.1:1")
    assert told._provider is None and "--otlp-traces-endpoint" in caplog.text
