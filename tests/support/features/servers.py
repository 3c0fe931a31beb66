"""Runs rows on servers of their own: forked from a process that has imported the host, or new interpreters."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from pathlib import Path

from holdfast.bench.instrument import precise_client
from holdfast.bench.loads import SERVER_ARGUMENTS
from holdfast.bench.topologies import Standby
from holdfast.chaos.control import ControlFailed
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.server import Server, ServerFailed, ServerSpec
from support.features.asks import Batch
from support.features.columns import PART_FAULT, Column
from support.features.rows import FeatureRow
from support.features.runner import Record, RowRun, columns_of, modes_of
from support.features.verdicts import Cell, Result
from support.warm_start import WarmParent, WarmServer

TESTS = Path(__file__).parents[2]
CPU_BENCH = TESTS / "support" / "cpu_bench"
PROTECTED = (
    *("--enable-fault-injection", "--external-fault-notify-port", "0"),
    *("--max-retries", "100000", "--max-worker-restarts", "100000", "--max-engine-restarts", "100000"),
)


class Rows:
    """Runs rows, each on one server: forked from a process that has imported the host, or new interpreters.

    A context manager. Logs and the file that arms the fault of a draft or encoder lie in `folder`.
    """

    def __init__(self, folder: Path, *, forked: bool = True, say: Callable[[str], None] = print) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._say = folder, say
        self._flag = folder.absolute() / f"raise-{os.getpid()}"
        path = os.pathsep.join([str(CPU_BENCH), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._environment = {"PYTHONPATH": path, PART_FAULT: str(self._flag)}
        self._parent = WarmParent(self._environment) if forked else None

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._flag.unlink(missing_ok=True)
        if self._parent is not None:
            self._parent.close()

    def run(self, row: FeatureRow, columns: Sequence[Column] = ()) -> Record:
        """Run a row: all columns that it has, or the chosen ones."""
        columns = columns or columns_of(row)
        self._flag.unlink(missing_ok=True)
        spec = self._spec(row)
        server = Server(spec) if self._parent is None else WarmServer(spec, self._parent)
        try:
            server.start()
        except ServerFailed as error:
            return self._without_server(row, columns, str(error))
        with server:
            self._say(f"{row.name}: served after {server.start_s:.0f} s")
            with precise_client():
                return asyncio.run(self._columns(RowRun(row, server, self._flag), columns))

    async def _columns(self, run: RowRun, columns: Sequence[Column]) -> Record:
        if errors := await run.fault_free():
            return await self._fails_fault_free(run.row, columns, "; ".join(errors))
        for name, why in run.record.unrepeated.items():
            self._say(f"{run.row.name} | two fault-free runs differ in {name}: {why}")
        for name, why in run.record.unlikely.items():
            self._say(f"{run.row.name} | without a fault the oracle refuses {name}: {why}")
        for column in columns:
            if run.server.exit_code is not None:
                run.record.cells[str(column)] = of_all_modes(run.row, Cell(Result.BROKEN, "the server had ended"))
                continue
            try:
                await run.column(column)
            except ControlFailed as error:
                run.record.cells[str(column)] = of_all_modes(run.row, Cell(Result.BROKEN, str(error)))
            for mode, cell in run.record.cells[str(column)].items():
                self._say(f"{run.row.name} | {column} | {mode}: {cell.result}, {cell.steps} steps {cell.why[:600]}")
        if run.record.unrepeated or run.record.unlikely:
            await self._ask_plain_vllm(run)
        return run.record

    async def _ask_plain_vllm(self, run: RowRun) -> None:
        """Let plain vLLM answer the same requests; what the oracle refuses only here is broken."""
        with Server(self._spec(run.row, holdfast=False)).start() as server:
            plain = RowRun(run.row, server)
            await plain.fault_free(ask_all=True)
        run.record.plain = {"unrepeated": plain.record.unrepeated, "unlikely": plain.record.unlikely}
        self._say(f"{run.row.name} | plain vLLM: {run.record.plain}")
        believe(run.record, {name for ask in run.row.asks("") for name in ask.names if ask.mode in plain.unreliable})

    def _spec(self, row: FeatureRow, *, holdfast: bool = True) -> ServerSpec:
        protected = (*PROTECTED, *Standby.PRELOADED.arguments(row.ranks)) if holdfast else ()
        name = "".join(letter if letter.isalnum() else "-" for letter in row.name)
        return ServerSpec(
            model=row.model(),
            log=self._folder / f"{name}{'' if holdfast else '-plain'}.log",
            arguments=(*SERVER_ARGUMENTS, *protected, *row.arguments()),
            environment={**self._environment, **row.environment},
            holdfast=holdfast,
        )

    def _without_server(self, row: FeatureRow, columns: Sequence[Column], why: str) -> Record:
        """Judge a row whose server does not start: refused, or plain vLLM does not start either."""
        if "refus" in why:
            return everywhere(row, columns, Cell(Result.REFUSED, why[-200:]))
        try:
            Server(self._spec(row, holdfast=False)).start().stop()
        except ServerFailed as error:
            return everywhere(row, columns, Cell(Result.HOST_FAILS, f"does not start: {error_line(str(error))}"))
        return everywhere(row, columns, Cell(Result.BROKEN, f"starts with plain vLLM only: {error_line(why)}"))

    async def _fails_fault_free(self, row: FeatureRow, columns: Sequence[Column], why: str) -> Record:
        """Judge a row whose answers are errors without any fault, by the same requests to plain vLLM."""
        with Server(self._spec(row, holdfast=False)).start() as server:
            histories = await Batch(server.url, row.asks(fresh_salt())).run()
        if any(one.error for one in histories):
            return everywhere(row, columns, Cell(Result.HOST_FAILS, why))
        return everywhere(row, columns, Cell(Result.BROKEN, f"fails without a fault, plain vLLM does not: {why}"))


def believe(record: Record, unreliable: Set[str]) -> None:
    """Judge by what plain vLLM does: broken is what it does well, and wrong answers that it gives too are its own."""
    for modes in record.cells.values():
        for mode, cell in modes.items():
            if cell.wrong:
                is_of_host = cell.wrong <= unreliable
                modes[mode] = replace(cell, result=Result.HOST_FAILS if is_of_host else Result.BROKEN)


def error_line(text: str) -> str:
    """Return the last line of a log that tells an error."""
    lines = [line for line in text.splitlines() if re.search(r"\w(Error|Exception): ", line)]
    causes = [line for line in lines if "See root cause" not in line]
    return (causes or lines or text.splitlines() or [""])[-1][-200:]


def of_all_modes(row: FeatureRow, cell: Cell) -> dict[str, Cell]:
    return {str(mode): cell for mode in modes_of(row.asks(""))}


def everywhere(row: FeatureRow, columns: Sequence[Column], cell: Cell) -> Record:
    return Record(row.name, {str(column): of_all_modes(row, cell) for column in columns})
