"""A sample of the matrix of features and faults; `make nightly PART=features` runs it whole."""

from __future__ import annotations

import pytest

from integration.helpers.servers import NO_LIMITS, Servers, run
from support.features.columns import Column
from support.features.rows import STRUCTURED_SPECULATION
from support.features.runner import RowRun
from support.features.verdicts import Result

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow]


def test_speculation_and_structured_output_go_through_an_exception_and_a_killed_worker(servers: Servers) -> None:
    with servers.start("--enable-fault-injection", *NO_LIMITS, *STRUCTURED_SPECULATION.arguments()) as server:
        found = RowRun(STRUCTURED_SPECULATION, server)
        assert run(found.fault_free()) == []
        for column in (Column.DECODE, Column.WORKER):
            run(found.column(column))
    assert found.record.broken == []
    results = {cell.result for modes in found.record.cells.values() for cell in modes.values()}
    assert results <= {Result.EXACT, Result.BY_ORACLE}
