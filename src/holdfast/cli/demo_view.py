"""Output of the demo: a redrawn screen on a terminal, plain lines elsewhere.

Draws given data and decides nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live

from holdfast.bench.faulted_run import RunResult
from holdfast.bench.restart import Restart
from holdfast.chaos.control import Control
from holdfast.chaos.history import History
from holdfast.chaos.streams import Load
from holdfast.cli.demo_tables import cost_table, event_lines, screen, stream_results

REDRAW_S = 0.12
PLAIN_COLUMNS = 100  # a file or a pipe has no width


class View(Protocol):
    """Interface between the demo and a screen."""

    def say(self, text: str) -> None: ...

    def waiting(self, what: str) -> Any:
        """Return a context manager around a slow action; the value is a function that receives the seconds waited."""

    async def watch(self, load: Load, control: Control) -> None:
        """Show a load until cancelled."""

    def aftermath(self, histories: Sequence[History], result: RunResult) -> None: ...

    def results(self, result: RunResult, restart: Restart) -> None: ...

    def conclude(self, problems: Sequence[str], streams: int, *, poison_requests: int = 0) -> None: ...


def make_view() -> View:
    """Return the view that fits standard output."""
    console = Console(highlight=False)
    return TerminalView(console) if console.is_terminal else PlainView(Console(highlight=False, width=PLAIN_COLUMNS))


class PlainView:
    """A line per fact; nothing is drawn twice."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def waiting(self, what: str) -> Iterator[Callable[[float], None]]:
        begin_s = time.monotonic()
        self.say(f"{what} …")
        yield lambda _waited_s: None
        self.say(f"  done in {time.monotonic() - begin_s:.1f} s")

    async def watch(self, load: Load, control: Control) -> None:
        """Draw nothing: `aftermath` shows everything."""

    def aftermath(self, histories: Sequence[History], result: RunResult) -> None:
        for line in event_lines(result.events):
            self.say(line)

    def results(self, result: RunResult, restart: Restart) -> None:
        self.console.print(stream_results(result))
        self.console.print(cost_table(result, restart))

    def conclude(self, problems: Sequence[str], streams: int, *, poison_requests: int = 0) -> None:
        if problems:
            self.say("FAILED: " + "; ".join(problems))
            return
        alone = ", and the one that made the server fail ended alone" if poison_requests else ""
        self.say(
            f"HELD FAST: {streams - poison_requests} of {streams} answers equal the fault-free run"
            f"{alone}; no token lost, repeated or changed."
        )


class TerminalView(PlainView):
    """A line per stream, redrawn as tokens arrive."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live: Live | None = None

    @contextmanager
    def waiting(self, what: str) -> Iterator[Callable[[float], None]]:
        begin_s = time.monotonic()
        with self.console.status(f"{what} …", refresh_per_second=4) as status:
            yield lambda waited_s: status.update(f"{what} … {waited_s:.0f} s")
        self.say(f"✓ {what} ({time.monotonic() - begin_s:.1f} s)")

    async def watch(self, load: Load, control: Control) -> None:
        before = await control.last_sequence()
        events: list[Mapping[str, Any]] = []
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            while True:
                events = [*await control.events(before)] or events
                live.update(screen(load.histories, events, load.tokens), refresh=True)
                await asyncio.sleep(REDRAW_S)

    def aftermath(self, histories: Sequence[History], result: RunResult) -> None:
        """Keep the last picture on the screen."""
        total = max(len(history.token_ids) for history in histories)
        self.console.print(screen(histories, result.events, max(total, 1)))
