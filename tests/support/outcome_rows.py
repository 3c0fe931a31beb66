"""A pytest plugin that appends one JSON line for each test that ends, to the file that HOLDFAST_OUTCOME_ROWS names."""

from __future__ import annotations

import json
import os
from collections import defaultdict

import pytest

_seconds: defaultdict[str, float] = defaultdict(float)
_outcomes: dict[str, str] = {}
_details: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect the outcome of a test from its phases; write the row when the last phase is over."""
    item = report.nodeid
    _seconds[item] += report.duration
    if report.failed:
        _outcomes[item] = "failed"
        _details[item] = str(report.longrepr)[-2000:]
    elif report.skipped:
        _outcomes.setdefault(item, "skipped")
    if report.when == "teardown":
        row = {
            "item": item,
            "outcome": _outcomes.pop(item, "passed"),
            "seconds": _seconds.pop(item),
            "detail": _details.pop(item, ""),
        }
        with open(os.environ["HOLDFAST_OUTCOME_ROWS"], "a") as rows:
            rows.write(json.dumps(row) + "\n")
