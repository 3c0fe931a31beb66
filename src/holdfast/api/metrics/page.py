"""The reference of the metrics, docs/reference/metrics.md, written from the catalog. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.api.metrics.catalog import DEFINITIONS, Definition, Kind

_OPENING = """# Metrics

Written by `make metrics` from `api/metrics/catalog.py`; do not edit by hand.

Holdfast adds these metrics to the host's own `/metrics`, with one API server or several. They are
views of the [events](http.md#events): the owner of the engine cores counts what it decides, each API
server counts what its streams see. A consumer with a bounded queue keeps them, so that no decision
waits for a metric.

- Counters outlive what they count: a replaced worker, engine core or API server resets none.
- `engine` is the number of the engine core; `none` for a fault beside the engine cores.
- Every other label has the closed list of values in the table, or the bounded one of its kind: the
  processes beside the engine cores, and the consumers of events.
- `holdfast_recovery_phase_seconds` is told for each lockstep group, `holdfast_interruption_seconds`
  for each stream that had a token before the fault.
- Gauges are renewed at each event; what changes without an event, such as a budget that comes back,
  within a second.
- An engine core that is lost keeps its series: its gauges say 0, and `holdfast_engine_state` says
  `restarting` or `left-out`. The host's own gauges of its running and waiting requests are 0 too.
- A repair neither resets the host's own counters nor counts twice: prompt and generation tokens,
  successes and preemptions rise as without the fault.

The alert rules in `deploy/prometheus/alerts.yaml` use these metrics, with a
[runbook](../runbook.md), and so does the dashboard `deploy/grafana/holdfast.json`.

| metric | kind | labels | told by | meaning |
|---|---|---|---|---|"""

_CLOSING = """
## Phases of a recovery

Names like `replace_s` are figures of the [report](http.md#events) of a recovery.

| phase | from | to |
|---|---|---|
| `detect` | the fault | the owner's report of the fault |
| `contain` | the report of the fault | every rank of the lockstep group is paused |
| `decide` | all paused | the decision; with `--fault-policy external` the wait for a command |
| `repair` | the loss of an engine core | its replacement; for other faults `replace_s` and `rebuild_s` |
| `restore` | the drain of late replies | ranks restored: `drain_s`, `rewind_s` and `restore_s` |
| `first-token` | the news of the recovery | the first token of any interrupted stream |

## Cost

Nothing on the step path. Processor time in the owner, with simulated events, on a shared machine:

| 1,024 ranks as | an event | each second | a scrape |
|---|---|---|---|
| 128 engine cores of 8 ranks | 0.07 ms | 0.5 ms | 16 ms |
| 1,024 engine cores of 1 rank | 0.26 ms | 0.6 ms | 120 ms |

With a fault each second, of about five events, and a scrape each 15 s that is 0.2 % and 1 % of a
core. An API server spends 0.2 µs for each token of a stream.
"""


def metrics_page() -> str:
    """Return the whole page as Markdown."""
    return "\n".join([_OPENING, *_rows(), _CLOSING])


def _rows() -> Iterator[str]:
    for definition in DEFINITIONS:
        meaning = f"{definition.meaning[0].upper()}{definition.meaning[1:]}"
        if definition.kind is Kind.HISTOGRAM:
            meaning += f"; buckets from {definition.buckets[0] * 1000:g} ms to {definition.buckets[-1]:g} s"
        cells = (f"`{definition.sample}`", definition.kind, _labels(definition), definition.scope, meaning)
        yield f"| {' | '.join(cells)} |"


def _labels(definition: Definition) -> str:
    shown = []
    for label in definition.labels:
        values = definition.values.get(label)
        shown.append(f"`{label}`" if values is None else f"`{label}`: {', '.join(f'`{v}`' for v in values)}")
    return "; ".join(shown)
