"""A browser, and servers of the page without an engine: the real endpoints over a control plane that a test plays."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from support.control_plane import MemoryControl
from support.http_app import TOKEN, build_app
from support.tools import needed_tool

WAIT_MS = 15_000


class PageServer:
    """The HTTP server of a page, which can be ended and started again on the same port."""

    def __init__(self, control: MemoryControl) -> None:
        self.control = control
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/fault_tolerance/"

    def start(self) -> None:
        listening = socket.create_server(("127.0.0.1", self._port))
        self._port = listening.getsockname()[1]
        app = build_app(self.control)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        app.state.server = self._server
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """End the server; return how many seconds the end took."""
        began = time.monotonic()
        self._server.should_exit = True
        self._thread.join(10)
        return time.monotonic() - began


def fresh_control() -> MemoryControl:
    """Two engines in lockstep and two alone, each with four ranks; the external policy waits for instructions."""
    control = MemoryControl(((0, 1), (2,), (3,)), wall_clock=time.time).attach(ranks=4)
    control.standbys(engine_id=2)
    return control


@pytest.fixture
def served() -> Iterator[PageServer]:
    server = PageServer(fresh_control())
    yield server
    server.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for one module: as long as there is one, this thread has an event loop, and others cannot be run."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: run `make setup`")
    path = needed_tool("chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(path), args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page of the browser, with what the page complained of and the addresses that the page asked for."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self._context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self._context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def close(self) -> None:
        self._context.close()

    def log_in(self, url: str, token: str = TOKEN) -> None:
        self.page.goto(url)
        self.page.get_by_label("Control token").fill(token)
        self.page.get_by_role("button", name="Log in").click()

    def open(self, url: str) -> Watched:
        """Log in, and wait for the state of the instance."""
        self.log_in(url)
        self.page.locator(".verdict").wait_for()
        return self

    def reads(self, selector: str, text: str) -> None:
        """Wait until an element shows a text."""
        self.page.locator(selector).filter(has_text=text).first.wait_for()

    def findings(self) -> list[str]:
        """Return what axe finds on the page as it is now."""
        self.page.evaluate(needed_tool("axe-core").read_text())
        found = self.page.evaluate("axe.run()")["violations"]
        return [f"{f['id']}: {[node['html'] for node in f['nodes']][:3]}" for f in found]


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Any]:
    """Open pages in browsers of their own."""
    with contextlib.ExitStack() as closing:

        def watched(**options: Any) -> Watched:
            page = Watched(chromium, **options)
            closing.callback(page.close)
            return page

        yield watched
