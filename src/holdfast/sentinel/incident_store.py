"""The folder of incidents: one folder for each, with `incident.json`, stacks and the state of the machine.

Written in the owner, on a thread beside every decision; read there for HTTP, and by commands where no server runs. No
file holds prompts, tokens or texts of exceptions as they are.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import msgspec

import holdfast
from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import UnknownIncident
from holdfast.core.instance.incident_records import IncidentRecords, newest_first
from holdfast.core.protocol.events import Event, InstanceView
from holdfast.core.protocol.incidents import (
    TAR_SUFFIX,
    Incident,
    IncidentsPage,
    Outcome,
    StoredIncident,
    is_incident_id,
    summary_of,
)
from holdfast.progress.surroundings import look_around
from holdfast.sentinel.beside import Beside, count_dropped
from holdfast.sentinel.incident_files import EVIDENCE, FAILED_STEP, default_folder, make_private

logger = logging.getLogger("holdfast")

RECORD = "incident.json"
MACHINE = "machine.json"
CONFIGURATION = "configuration.txt"  # of the host
MAX_QUESTIONS = 64  # that wait for an answer
MAX_FILE_BYTES = 4 << 20
MAX_FILES = 256  # of an incident
MAX_TAR_BYTES = 32 << 20
_MIB = 1 << 20


class IncidentWriter:
    """Writer of the incidents of an instance: a consumer of events, which takes them on a thread of its own."""

    def __init__(self, config: HoldfastConfig) -> None:
        self.describe_host: Callable[[], str] = str  # returns the configuration of the host, which each incident keeps
        self._closed: Incident | None = None  # the incident that was written last
        self._store = IncidentStore(config.incident_dir)
        self._instance = os.path.basename(config.runtime_dir)
        self._records = IncidentRecords(self._instance, holdfast.__version__)
        self._limits = config.max_incidents, config.max_incident_mib * _MIB
        self._numbers: dict[str, int] = {}
        self._fails = False

    def take(self, event: Event, view: InstanceView) -> None:
        """Take an event and write every incident that has changed. What cannot be written is counted."""
        for incident in self._records.take(event, view):
            try:
                self._write(incident)
                self._fails = False
            except Exception as error:
                count_dropped("incidents")
                if not self._fails:
                    logger.warning("an incident is not written; check the folder %s: %s", self._store.folder, error)
                self._fails = True

    def _write(self, incident: Incident) -> None:
        incident_id = incident.incident_id
        if incident_id not in self._numbers:
            if self._closed is not None:  # what was written a moment after the end of the incident before
                self._store.adopt(self._closed.incident_id, self._instance, self._closed.engines, FAILED_STEP)
            self._store.make(incident_id)
            self._store.write(incident_id, CONFIGURATION, self.describe_host().encode())
            self._numbers[incident_id] = 1 + self._store.last_number()
            self._store.write(incident_id, MACHINE, json.dumps(look_around(), indent=2).encode())
        numbered = msgspec.structs.replace(incident, number=self._numbers[incident_id])
        self._store.write(incident_id, RECORD, msgspec.json.format(msgspec.json.encode(numbered)))
        self._store.adopt(incident_id, self._instance, incident.engines)
        self._closed = incident
        if incident.outcome is not Outcome.OPEN:
            self._store.drop_oldest(*self._limits, spare=self._records.open_ids | {incident_id})


class IncidentAnswers:
    """Answers about incidents, read on a thread of their own. A question beyond `MAX_QUESTIONS` is not answered."""

    def __init__(self, incident_dir: str) -> None:
        self._store = IncidentStore(incident_dir)
        self._beside: Beside[tuple[str, Future[bytes]]] = Beside("questions", self._answer, MAX_QUESTIONS)

    def ask(self, asked: str) -> Future[bytes]:
        """Return the answer of `IncidentStore.answer`. Does not wait; any thread."""
        answer: Future[bytes] = Future()
        self._beside.put((asked, answer))
        return answer

    def _answer(self, question: tuple[str, Future[bytes]]) -> None:
        asked, answer = question
        try:
            answer.set_result(self._store.answer(asked))
        except Exception as error:
            answer.set_exception(error)


class IncidentStore:
    """Folder with a folder for each incident. Other instances of the user may share it."""

    def __init__(self, incident_dir: str = "") -> None:
        self._is_given = bool(incident_dir)
        self.folder = Path(incident_dir).expanduser() if incident_dir else default_folder()

    # ---- reading

    def answer(self, asked: str) -> bytes:
        """Return the list for an empty text, the incident for an id, its files as a tar for an id with `.tar`.

        Raises `UnknownIncident`.
        """
        if not asked:
            return msgspec.json.encode(self.page())
        if asked.endswith(TAR_SUFFIX):
            return self.tar(asked.removesuffix(TAR_SUFFIX))
        return msgspec.json.encode(self.show(asked))

    def page(self) -> IncidentsPage:
        """Return a line for each incident, newest first."""
        return IncidentsPage(incidents=tuple(map(summary_of, newest_first(i for _, i in self._incidents()))))

    def show(self, incident_id: str) -> StoredIncident:
        """Return an incident by its id, or by the name that the client of an ended request was told."""
        folder, incident = self._find(incident_id)
        return StoredIncident(incident=incident, files=tuple(str(f.relative_to(folder)) for f in _files_in(folder)))

    def tar(self, incident_id: str) -> bytes:
        """Return the folder of an incident as a tar, without what would exceed `MAX_TAR_BYTES`."""
        folder, incident = self._find(incident_id)
        target, room = io.BytesIO(), MAX_TAR_BYTES
        with tarfile.open(fileobj=target, mode="w") as tar:
            for path in _files_in(folder):
                data = _read(path)
                if data is not None and (room := room - len(data)) >= 0:
                    member = tarfile.TarInfo(f"{incident.incident_id}/{path.relative_to(folder)}")
                    member.size, member.mtime, member.mode = len(data), int(incident.opened_at), 0o600
                    tar.addfile(member, io.BytesIO(data))
        return target.getvalue()

    def last_number(self) -> int:
        return max((incident.number for _, incident in self._incidents()), default=0)

    def _find(self, name: str) -> tuple[Path, Incident]:
        if is_incident_id(name):
            folder = self.folder / name
            incident = _incident_in(folder)
            if incident is not None:
                return folder, incident
            told = ((path, known) for path, known in self._incidents() if name in known.told_as)
            if (found := next(told, None)) is not None:
                return found
        raise UnknownIncident("there is no such incident", hint="`holdfast incidents list` names those that are kept")

    def _incidents(self) -> Iterator[tuple[Path, Incident]]:
        with contextlib.suppress(OSError):
            for folder in sorted(self.folder.iterdir()):
                if is_incident_id(folder.name) and (incident := _incident_in(folder)) is not None:
                    yield folder, incident

    # ---- writing

    def make(self, incident_id: str) -> None:
        """Make the folder of an incident."""
        if not self._is_given:
            make_private(self.folder)
        (self.folder / incident_id).mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, incident_id: str, name: str, data: bytes) -> None:
        """Write a file of an incident in one piece: no reader sees a part of it."""
        path = self.folder / incident_id / name
        partial = path.with_suffix(".partial")
        partial.write_bytes(data)
        partial.chmod(0o600)
        partial.replace(path)

    def adopt(self, incident_id: str, instance: str, engines: tuple[int, ...], what: str = "") -> None:
        """Move the evidence about these engine cores, which other processes have written, into the incident."""
        with contextlib.suppress(OSError):
            for found in sorted((self.folder / EVIDENCE).iterdir()):
                if any(found.name.startswith(f"{instance}-engine{engine_id}-{what}") for engine_id in engines):
                    shutil.move(found, self.folder / incident_id / found.name.removeprefix(f"{instance}-"))

    def drop_oldest(self, max_number: int, max_bytes: int, spare: frozenset[str] | set[str]) -> None:
        """Remove the oldest incidents beyond either limit. Nothing without a record of an incident is removed."""
        by_id = {incident.incident_id: folder for folder, incident in self._incidents()}
        used = 0
        for position, incident in enumerate(newest_first(i for _, i in self._incidents())):
            folder = by_id[incident.incident_id]
            used += sum(_size(path) for path in _files_in(folder))
            if (position >= max_number or used > max_bytes) and incident.incident_id not in spare:
                shutil.rmtree(folder, ignore_errors=True)


def _incident_in(folder: Path) -> Incident | None:
    """Return the incident of a folder; None without a record, or with one that cannot be read."""
    data = _read(folder / RECORD)
    if data is not None:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            incident = msgspec.json.decode(data, type=Incident)
            return incident if incident.incident_id == folder.name else None
    return None


def _files_in(folder: Path) -> list[Path]:
    """Return the files of an incident; no link is followed."""
    with contextlib.suppress(OSError):
        files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink() and p.suffix != ".partial"]
        return files[:MAX_FILES]
    return []


def _read(path: Path) -> bytes | None:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(MAX_FILE_BYTES)
    return None


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
