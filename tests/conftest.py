"""Settings of the whole suite."""

import gc
import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from support.taking_turns import folder, turn

# A machine that is busy with servers is slow by turns: how long an example takes proves nothing here.
settings.register_profile("holdfast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("holdfast")

# What collection imports stays until the end: to search millions of such objects for garbage costs seconds a run.
gc.disable()

EXAMPLES_TIMES = int(os.environ.get("HOLDFAST_EXAMPLES", "1"))  # `make nightly PART=fuzz` sets it


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Multiply the examples of every test over generated values, and measure no coverage in these tests.

    What the core does is shown by chosen examples. Generated ones cover no branch for certain, and tracing doubles
    what a test costs.
    """
    for item in items:
        if item.get_closest_marker("hypothesis") is not None:
            item.add_marker("no_cover")
    for item in items if EXAMPLES_TIMES > 1 else ():
        function = getattr(item, "obj", None)
        function = getattr(function, "__func__", function)
        known = getattr(function, "_hypothesis_internal_use_settings", None)
        if known is not None:
            many = settings(known, max_examples=EXAMPLES_TIMES * known.max_examples)
            function._hypothesis_internal_use_settings = many


def pytest_collection_finish() -> None:
    """Look for garbage again, but never among the objects that collection has made."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test with a real server beside another one, or alone where it measures how long something takes."""
    locks = folder() if item.get_closest_marker("server") is not None else None
    with turn(locks, alone=item.get_closest_marker("timed") is not None):
        return (yield)
