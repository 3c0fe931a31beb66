"""A sample of the matrix of features and faults; `make nightly PART=features` runs it whole."""

from __future__ import annotations

import pytest

from integration.helpers.servers import NO_LIMITS, Servers, run
from support.features.columns import Column
from support.features.rows import ADAPTED_STRUCTURED
from support.features.runner import RowRun
from support.features.verdicts import Result

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow]


def test_adapters_and_structured_output_go_through_an_exception_and_a_killed_worker(servers: Servers) -> None:
    with servers.start("--enable-fault-injection", *NO_LIMITS, *ADAPTED_STRUCTURED.arguments()) as server:
        found = RowRun(ADAPTED_STRUCTURED, server)
        assert run(found.fault_free()) == []
        for column in (Column.DECODE, Column.WORKER):
            run(found.column(column))
    assert (found.record.unrepeated, found.record.broken) == ({}, [])
    for modes in found.record.cells.values():
        assert {mode: cell.result for mode, cell in modes.items()} == {
            "greedy": Result.EXACT,
            "seeded": Result.EXACT,
            "unseeded": Result.BY_ORACLE,
        }
