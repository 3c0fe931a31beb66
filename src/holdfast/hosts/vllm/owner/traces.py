"""OpenTelemetry: one span for each incident with its phases as children, linked to the requests that were open.

Exported where the host exports its spans of requests (`--otlp-traces-endpoint`), beside every decision, once an
incident has ended. Spans hold no prompts, tokens or texts of exceptions as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from holdfast.core.instance.incident_records import IncidentRecords
from holdfast.core.protocol.events import Event, InstanceView
from holdfast.core.protocol.incidents import Incident, Outcome

logger = logging.getLogger("holdfast")

MAX_LINKS = 128
SPAN = "holdfast.incident"

TraceHeaders = Mapping[str, str]


class IncidentTraces:
    """Consumer of events; exports nothing until `begin` is told of an endpoint.

    `open_requests` returns the trace headers of open requests, as far as the requests are of this process.
    """

    def __init__(self) -> None:
        self.open_requests: Callable[[], Iterable[TraceHeaders]] = tuple
        self._records = IncidentRecords()
        self._links: dict[str, list[Any]] = {}
        self._provider: Any = None

    def begin(self, endpoint: str | None) -> None:
        """Export to an endpoint of OTLP from now on."""
        if not endpoint:
            return
        try:
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from vllm.tracing.otel import get_span_exporter

            self.export_to(BatchSpanProcessor(get_span_exporter(endpoint)))
        except Exception as error:
            logger.warning("incidents are not traced; check --otlp-traces-endpoint %s: %s", endpoint, error)

    def export_to(self, processor: Any) -> None:
        """Export through a span processor from now on."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._provider = TracerProvider(resource=Resource.create({"service.name": "holdfast"}))
        self._provider.add_span_processor(processor)

    def take(self, event: Event, view: InstanceView) -> None:
        """Take an event; export an incident that has ended with the event."""
        if self._provider is None:
            return
        for incident in self._records.take(event, view):
            if incident.incident_id not in self._links and incident.outcome is Outcome.OPEN:
                self._links[incident.incident_id] = list(_links_to(self.open_requests()))
            elif incident.outcome is not Outcome.OPEN and len(incident.timeline) and _is_end(incident, event):
                self._export(incident, self._links.pop(incident.incident_id, []))

    def _export(self, incident: Incident, links: list[Any]) -> None:
        from opentelemetry import trace

        tracer = self._provider.get_tracer("holdfast")
        begun, ended = incident.opened_at, max(incident.opened_at, incident.closed_at or incident.opened_at)
        span = tracer.start_span(SPAN, start_time=_ns(begun), attributes=attributes_of(incident), links=links)
        if incident.outcome is not Outcome.REPAIRED:
            span.set_status(trace.StatusCode.ERROR, incident.next_step)
        context = trace.set_span_in_context(span)
        for phase in phases_of(incident):
            child = tracer.start_span(f"{SPAN}.{phase.name}", context=context, start_time=_ns(phase.begun))
            child.end(_ns(min(phase.ended, ended)))
        span.end(_ns(ended))


class Phase(NamedTuple):
    """Phase of an incident, in seconds since 1970."""

    name: str
    begun: float
    ended: float


def phases_of(incident: Incident) -> Iterator[Phase]:
    """Yield the phases of an incident that took place, one after the other."""
    at = incident.opened_at
    known = incident.phases
    for name, seconds in (
        ("contain", known.contain),
        ("decide", known.decide),
        ("repair", known.repair),
        ("restore", known.restore),
    ):
        if seconds is not None:
            yield Phase(name, at, at + seconds)
            at += seconds


def attributes_of(incident: Incident) -> dict[str, Any]:
    """Return the attributes of the span of an incident."""
    told = {
        "incident_id": incident.incident_id,
        "instance_id": incident.instance_id,
        "cause": incident.cause,
        "action": incident.action,
        "outcome": str(incident.outcome),
        "engines": list(incident.engines),
        "process": incident.process or "",
        "interruption_s": incident.interruption_s or 0.0,
        "requests_rewound": incident.requests_rewound,
        "requests_failed": incident.requests_failed,
        "tokens_recomputed": incident.tokens_recomputed,
    }
    return {f"holdfast.{name}": value for name, value in told.items() if value not in ("", [])}


def _links_to(requests: Iterable[TraceHeaders]) -> Iterator[Any]:
    """Yield a link to the span of each request that a client traces, at most `MAX_LINKS`."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator, found = TraceContextTextMapPropagator(), 0
    for headers in requests:
        context = trace.get_current_span(propagator.extract(headers)).get_span_context()
        if context.is_valid and found < MAX_LINKS:
            found += 1
            yield trace.Link(context)


def _is_end(incident: Incident, event: Event) -> bool:
    return incident.closed_at == event.at and incident.timeline[-1].sequence == event.sequence


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
