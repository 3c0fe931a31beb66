"""`holdfast demo --simulated-ranks 1024` in a browser: the page follows once a second, and costs the server little."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from browser.conftest import Watched
from support.http_app import TOKEN

pytestmark = pytest.mark.browser

FOLLOWED_S = 8.0
MOST_OF_A_CORE = 0.05


@pytest.fixture(scope="module")
def simulated() -> Iterator[tuple[int, str]]:
    """Process and address of a simulated instance, in which something breaks every second."""
    arguments = ["demo", "--simulated-ranks", "1024", "--port", "0", "--fault-every", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast.cli.main", *arguments],
        env={**os.environ, "HOLDFAST_API_KEY": TOKEN},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield process.pid, found[0]
    finally:
        process.terminate()
        process.wait(20)


def spent_s(pid: int) -> float:
    """Return the processor seconds of the thread that answers HTTP, which is the main thread."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_thousand_ranks_are_followed_once_a_second_for_little(
    simulated: tuple[int, str], open_page: Callable[..., Watched]
) -> None:
    pid, url = simulated
    seen = open_page().open(url)
    seen.page.locator(".rank").nth(900).wait_for(state="attached")  # a lost engine core has no ranks for a while
    updates, began_s, began = set[str](), spent_s(pid), time.monotonic()
    while time.monotonic() - began < FOLLOWED_S:
        updates.add(seen.page.locator(".instance").inner_text())
        seen.page.wait_for_timeout(200)
    cost = (spent_s(pid) - began_s) / (time.monotonic() - began)
    assert len(updates) >= FOLLOWED_S / 2, "faults of a second are seen within the second, as far as they happen"
    assert cost < MOST_OF_A_CORE
    assert seen.complaints == []


def test_the_simulated_instance_has_metrics_status_and_incidents(simulated: tuple[int, str]) -> None:
    url = simulated[1]
    root, bearer = url.removesuffix("fault_tolerance/"), {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(follow_redirects=True, timeout=10) as client:
        assert 'holdfast_engine_state{engine="127",state="healthy"}' in client.get(f"{root}metrics/").text
        assert client.get(f"{url}status", headers=bearer).json()["total_engines"] == 128
        assert client.get(f"{url}status").status_code == 401
        assert client.get(f"{url}incidents", headers=bearer).status_code == 200
