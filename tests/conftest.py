"""Settings of the whole suite."""

import os

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy with servers is slow by turns: how long an example takes proves nothing here.
settings.register_profile("holdfast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("holdfast")

EXAMPLES_TIMES = int(os.environ.get("HOLDFAST_EXAMPLES", "1"))  # `make nightly PART=fuzz` sets it


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Multiply the examples of every test over generated values."""
    for item in items if EXAMPLES_TIMES > 1 else ():
        function = getattr(item, "obj", None)
        function = getattr(function, "__func__", function)
        known = getattr(function, "_hypothesis_internal_use_settings", None)
        if known is not None:
            many = settings(known, max_examples=EXAMPLES_TIMES * known.max_examples)
            function._hypothesis_internal_use_settings = many
