"""Real servers for the integration tests: one per kind and session, started when first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.bench.topologies import Topology
from holdfast.chaos.model import make_dense_model
from integration.helpers.servers import Figures, Kind, Servers, group_of, lane_of, summary, told_last
from support.warm_start import WarmServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests so that all tests on one shared server of many ranks run one after the other."""
    first_seen: dict[object, int] = {}

    def place(item: pytest.Item) -> int:
        served = [p for p in item.callspec.params.values() if _is_served(p)] if hasattr(item, "callspec") else []
        return first_seen.setdefault(served[0], len(first_seen)) if served else -1

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all tests of a lane to one of two workers, and all tests of a group to one of more."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    has_lanes = config.getvalue("numprocesses") == 2

    class LoadServerScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return lane_of(nodeid) if has_lanes else group_of(nodeid)

    return LoadServerScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have servers spawn the replacements of lost processes where a mark says so, and fork them elsewhere."""
    Servers.spawns_replacements = any(item.get_closest_marker(name) for name in ("spawned", "matrix"))
    for server in WarmServer.living:
        server.spawn_replacements(Servers.spawns_replacements)


_figures: list[Figures] = []  # of each worker's servers


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the figures of a worker to the process that started it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["servers"] = list(_figures)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _figures.extend(getattr(node, "workeroutput", {}).get("servers", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts of faults and the cost of starts: runs are compared by these figures."""
    if _figures:
        terminalreporter.section("servers")
        terminalreporter.write_line("\n".join(summary(_figures)))


def _is_served(parameter: object) -> bool:
    return isinstance(parameter, tuple) and [type(part) for part in parameter] == [Topology, Kind]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the last lines of the server's log to the report of a failed test."""
    report = (yield).get_result()  # type: ignore[misc, attr-defined]
    if report.failed and "servers" in getattr(item, "fixturenames", ()) and Servers.latest is not None:
        report.sections.append(("the server's log", told_last(Servers.latest.spec.log)))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    made = Servers(make_dense_model(tmp_path_factory.mktemp("model")), tmp_path_factory.mktemp("logs"))
    yield made
    made.close()
    _figures.append(made.figures())
