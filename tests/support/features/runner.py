"""Runs a row: two fault-free runs, then one run for each fault, on one server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from holdfast.bench.incident import Window, window_of
from holdfast.chaos.control import Control, ControlFailed
from holdfast.chaos.history import History
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.victims import ProcessKind, find_victims, kind_of
from support.features.asks import Asks, Batch, Mode
from support.features.columns import Column, injection
from support.features.rows import FeatureRow, Part
from support.features.verdicts import (
    Cell,
    Pair,
    Result,
    interruption_steps,
    judge,
    not_repeated,
    step_s,
    was_under_way,
)

HEALED_WITHIN_S = 180.0
STANDBY_WITHIN_S = 240.0  # standbys prepare in the background, and a busy machine leaves them little
BEGUN_TOKENS = 4


@dataclass
class Record:
    """What a row has shown: cells by fault and sampling mode, and which answers two fault-free runs give differently.

    `unlikely` are answers without a fault that the oracle refuses; `plain` is both of a server of plain vLLM, which is
    started only where there is something to confirm.
    """

    row: str
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)
    unrepeated: dict[str, str] = field(default_factory=dict)
    unlikely: dict[str, str] = field(default_factory=dict)
    plain: dict[str, dict[str, str]] = field(default_factory=dict)
    step_ms: float = 0.0

    @property
    def broken(self) -> list[str]:
        return [
            f"{column}, {mode}: {cell.why}"
            for column, modes in self.cells.items()
            for mode, cell in modes.items()
            if cell.result is Result.BROKEN
        ]

    def document(self) -> dict[str, Any]:
        cells = {column: {mode: cell.row() for mode, cell in modes.items()} for column, modes in self.cells.items()}
        document = {"row": self.row, "step_ms": self.step_ms, "unrepeated": self.unrepeated, "unlikely": self.unlikely}
        return {**document, **({"plain": self.plain} if self.plain else {}), "cells": cells}


def columns_of(row: FeatureRow) -> list[Column]:
    return [column for column in Column if row.part is not None or column is not Column.PART]


def modes_of(asks: Asks) -> list[Mode]:
    return [mode for mode in Mode if any(ask.mode is mode for ask in asks)]


class RowRun:
    """The runs of a row on a server that serves."""

    def __init__(self, row: FeatureRow, server: Server, flag: Path | None = None) -> None:
        self.row, self.server, self.flag = row, server, flag
        self.record = Record(row.name)
        self.reference: dict[str, History] = {}
        self._by_oracle: frozenset[str] = frozenset()

    async def fault_free(self, *, ask_all: bool = False) -> list[str]:
        """Set the row's state and make the two fault-free runs; return the errors of answers.

        With `ask_all` the oracle judges every answer, also in modes that both runs give alike.
        """
        async with httpx.AsyncClient(base_url=self.server.url, timeout=60, trust_env=False) as client:
            for path, body in self.row.prelude():
                (await client.post(path, json=body)).raise_for_status()
        first, second = [by_name(await self._batch().run()) for _ in range(2)]
        errors = [f"{name}: {one.error}" for name, one in second.items() if one.error is not None]
        self.record.unrepeated = not_repeated(first, second)
        self.record.step_ms = round(step_s(list(second.values())) * 1000, 2)
        self.reference = second
        self._ask_oracle(second)
        if (self.record.unrepeated or ask_all) and not errors:
            await self._fault_free_by_oracle(ask_all)
        return errors

    def _ask_oracle(self, fault_free: dict[str, History]) -> None:
        """Note what the oracle refuses without a fault: there plain vLLM is not the model's own."""
        for pair in (one for of_mode in self._pairs(fault_free).values() for one in of_mode):
            if pair.observed.is_unseeded and (reasons := pair.reasons()):
                self.record.unlikely[pair.observed.name] = ", ".join(reasons)

    async def _fault_free_by_oracle(self, ask_all: bool) -> None:
        """Have the oracle judge every answer of a mode with an unrepeated answer, and plain vLLM as well.

        An answer that two runs give alike by chance proves nothing.
        """
        modes = {ask.mode for ask in self.row.asks("") if set(ask.names) & set(self.record.unrepeated)}
        chosen = [ask for ask in self.row.asks("") if ask_all or ask.mode in modes]
        self._by_oracle = frozenset(name for ask in chosen for name in ask.names)
        self._ask_oracle(by_name(await self._batch().run()))

    def _batch(self) -> Batch:
        return Batch(self.server.url, self.row.asks(fresh_salt()), self._by_oracle)

    async def column(self, column: Column) -> dict[str, Cell]:
        """Let one fault happen during a run, and judge the answers of each mode."""
        async with Control(self.server.url) as control:
            before = await control.last_sequence()
            await self._prepare(control, column)
            batch = self._batch()
            running = asyncio.create_task(batch.run())
            if column is Column.PART:
                await self._arm_part(batch)
            observed = by_name(await running)
            await control.wait_recovered(before, timeout_s=HEALED_WITHIN_S)
            unwell = await healed(control, self.server)
            events = [] if self.server.exit_code is not None else await control.events(before)
        cells = self._judge(column, observed, window_of(events), unwell)
        self.record.cells[str(column)] = cells
        return cells

    async def _prepare(self, control: Control, column: Column) -> None:
        if column.wants_standby:
            await control.await_standbys(STANDBY_WITHIN_S)
        if column is Column.HANG:
            await self._batch().run()  # a new process learns how long its steps take
        spec = injection(column, self.row.place, self.row.decode_after)
        if spec is not None:
            await control.inject(spec)
        if column is Column.WORKER:
            kill_standbys(self.server)

    async def _arm_part(self, batch: Batch) -> None:
        """Let the next draft raise once answers are under way; an encoder is asked at the beginning only."""
        assert self.flag is not None, "the server was started without a file for this fault"
        if self.row.part is Part.ENCODER:
            self.flag.touch()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                while max(len(one.token_ids) for one in batch.histories) < BEGUN_TOKENS:
                    await asyncio.sleep(0.002)
        self.flag.touch()

    @property
    def unreliable(self) -> set[Mode]:
        """Return the modes that the oracle refuses, or beside such an answer does not repeat, without a fault."""
        names = {*self.record.unlikely, *(self.record.unrepeated if self.record.unlikely else ())}
        return {ask.mode for ask in self.row.asks("") if names & set(ask.names)}

    def _fails_anyway(self) -> set[str]:
        """Return the answers that are wrong without a fault: refused by the oracle, or not repeated beside such."""
        return {*self.record.unlikely, *(self._by_oracle if self.record.unlikely else ())}

    def _pairs(self, observed: dict[str, History]) -> dict[Mode, list[Pair]]:
        """Pair answers by mode. Where greedy answers are not the likeliest without a fault, this is not asked."""
        is_greedy = {Mode.GREEDY: not self.record.unlikely}
        pairs: dict[Mode, list[Pair]] = {}
        for ask in self.row.asks(""):
            for name in ask.names:
                pair = Pair(self.reference[name], observed[name], ask.is_valid, is_greedy.get(ask.mode, False))
                pairs.setdefault(ask.mode, []).append(pair)
        return pairs

    def _judge(
        self, column: Column, observed: dict[str, History], window: Window | None, unwell: str | None
    ) -> dict[str, Cell]:
        pairs = self._pairs(observed)
        exact = {mode: not any(pair.reasons() for pair in of_mode) for mode, of_mode in pairs.items()}
        cells = {}
        for mode, of_mode in pairs.items():
            # With one mode alone, the answers that are exact beside those with an error are the others.
            others = any(exact[other] for other in pairs if other is not mode) or any(not p.reasons() for p in of_mode)
            cell = judge(of_mode, others_are_exact=others, unwell=unwell)
            if window is None:
                cell = Cell(Result.BROKEN, "the fault did not happen")
            elif not any(was_under_way(pair.observed, window) for pair in of_mode):
                cell = Cell(Result.BROKEN, "every answer had ended before the fault")
            else:
                steps = interruption_steps(of_mode, window, self.record.step_ms / 1000, reads_prompt=column.loses_cache)
                is_of_host = bool(cell.wrong) and cell.wrong <= self._fails_anyway()
                cell = replace(cell, result=Result.HOST_FAILS if is_of_host else cell.result, steps=steps)
            cells[str(mode)] = cell
        return cells


def kill_standbys(server: Server) -> None:
    """Kill the standby workers of all engine cores; a standby that is being prepared has no name yet."""
    for core in find_victims(server.pid):
        if core.kind is ProcessKind.ENGINE_CORE:
            for child in psutil.Process(core.pid).children():
                with contextlib.suppress(psutil.Error):
                    kind = kind_of(child.name())
                    is_prepared = kind is None and any("spawn_main" in word for word in child.cmdline())
                    if kind is ProcessKind.STANDBY or is_prepared:
                        child.kill()


def by_name(histories: Sequence[History]) -> dict[str, History]:
    return {one.name: one for one in histories}


async def healed(control: Control, server: Server) -> str | None:
    """Wait until the instance is well; return what it lacks when the time is over."""
    why: str | None = "not asked"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HEALED_WITHIN_S):
            while server.exit_code is None:
                try:
                    why = await control.unwell()
                except ControlFailed as error:
                    why = str(error)
                if why is None:
                    return None
                await asyncio.sleep(0.1)
            return f"the server ended with exit code {server.exit_code}"
    return why
