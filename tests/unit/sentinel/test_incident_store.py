"""Incidents on disk: written whole, read back, bounded, without user data; a failing folder costs the incident only."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from pathlib import Path

import msgspec
import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import UnknownIncident
from holdfast.core.protocol.incidents import IncidentsPage, Outcome, StoredIncident
from holdfast.core.stalls.stalls import Stall
from holdfast.sentinel import incident_store
from holdfast.sentinel.beside import Beside, dropped_items
from holdfast.sentinel.incident_files import StallFiles
from holdfast.sentinel.incident_store import IncidentAnswers, IncidentStore, IncidentWriter
from support.control_plane import MemoryControl


def a_control(tmp_path: Path, **settings: object) -> MemoryControl:
    config = HoldfastConfig(incident_dir=str(tmp_path / "incidents"), runtime_dir=str(tmp_path), **settings)  # type: ignore[arg-type]
    return MemoryControl(config=config).attach()


def break_and_repair(control: MemoryControl, times: int = 1) -> None:
    for _ in range(times):
        control.break_down()
        control.recover()


def listed(control: MemoryControl) -> IncidentsPage:
    return msgspec.json.decode(control.incidents("").result(), type=IncidentsPage)


def test_every_fault_leaves_one_folder_with_what_was_decided_and_the_state_of_the_machine(tmp_path: Path) -> None:
    control = a_control(tmp_path)
    break_and_repair(control, 2)
    newest, oldest = listed(control).incidents
    assert (newest.number, oldest.number) == (2, 1)
    assert {i.outcome for i in (newest, oldest)} == {Outcome.REPAIRED}
    folder = tmp_path / "incidents" / newest.incident_id
    assert (folder / "incident.json").stat().st_mode & 0o777 == 0o600
    assert "load" in json.loads((folder / "machine.json").read_text())
    shown = msgspec.json.decode(control.incidents(newest.incident_id).result(), type=StoredIncident)
    assert shown.files == ("configuration.txt", "incident.json", "machine.json")
    assert shown.incident.decisions and shown.incident.cause.startswith("InjectedFault")


def test_the_evidence_of_a_stall_is_in_the_folder_of_its_incident(tmp_path: Path) -> None:
    control = a_control(tmp_path)
    evidence = StallFiles(control.config.incident_dir, str(tmp_path), 0)
    of_another = StallFiles(control.config.incident_dir, str(tmp_path / "other-server"), 0)
    for files in (evidence, of_another):
        assert files.keep(Stall(0, 2**22 + 1, True, "it is stopped"), {}) is not None
    break_and_repair(control)
    [incident] = listed(control).incidents
    files = control.store.show(incident.incident_id).files
    assert [Path(name).name for name in files] == [
        "configuration.txt",
        f"stacks-0-{2**22 + 1}.txt",
        "stall.json",
        "incident.json",
        "machine.json",
    ]
    assert len(list((tmp_path / "incidents" / "evidence").iterdir())) == 1, "that of the other server"


def test_a_tar_holds_the_folder_and_is_found_by_the_name_that_a_client_was_told(tmp_path: Path) -> None:
    control = a_control(tmp_path)
    control.break_down()
    control.judge(0, ["request-1"])  # its incident is called "now"
    [incident] = listed(control).incidents
    assert incident.told_as == ("now",)
    with tarfile.open(fileobj=io.BytesIO(control.incidents("now.tar").result())) as tar:
        assert tar.getnames() == [
            f"{incident.incident_id}/{name}" for name in ("configuration.txt", "incident.json", "machine.json")
        ]
        assert all(member.isfile() and member.mode == 0o600 for member in tar)


@pytest.mark.parametrize("name", ["nothing", "..", "../x", "/etc", "a/b", "", "x" * 200, "stalls"])
def test_a_name_of_no_incident_reaches_no_file(tmp_path: Path, name: str) -> None:
    control = a_control(tmp_path)
    (tmp_path / "incident.json").write_text("{}")
    for asked in ([name] if name else []) + [f"{name}.tar"]:
        with pytest.raises(UnknownIncident, match="no such incident"):
            control.incidents(asked).result()


def test_the_oldest_incidents_go_by_number_and_by_size_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "incidents" / "mine").mkdir(parents=True)
    control = a_control(tmp_path, max_incidents=2)
    break_and_repair(control, 4)
    assert [i.number for i in listed(control).incidents] == [4, 3]
    monkeypatch.setattr(incident_store, "_size", lambda path: 2**30)
    break_and_repair(control)
    assert [i.number for i in listed(control).incidents] == [5], "the newest stays, however large"
    assert (tmp_path / "incidents" / "mine").is_dir()


def test_an_open_incident_is_never_removed(tmp_path: Path) -> None:
    config = {"incident_dir": str(tmp_path / "incidents"), "max_incidents": 1, "fault_policy": "external"}
    control = MemoryControl(((0,), (1,)), HoldfastConfig(**config)).attach()
    control.break_down(0)
    for _ in range(3):
        control.break_down(1)
        control._perform(control._instance.submit(_retry(), control.now))
        control.recover()
    assert [i.outcome for i in listed(control).incidents] == [Outcome.REPAIRED, Outcome.OPEN]


def _retry():  # type: ignore[no-untyped-def]
    from holdfast.core.protocol.commands import Retry

    return Retry(command_id=os.urandom(4).hex(), engine_ids=(1,))


def test_where_nothing_can_be_written_the_loss_is_counted_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "incidents").write_text("a file")
    before = dropped_items().get("incidents", 0)
    control = a_control(tmp_path)
    break_and_repair(control, 2)
    assert dropped_items()["incidents"] > before
    assert [r.message for r in caplog.records if "incident is not written" in r.message] != []
    assert len([r for r in caplog.records if "incident is not written" in r.message]) == 1
    assert listed(control).incidents == ()


def test_a_folder_that_hangs_delays_no_event_and_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()
    writer = IncidentWriter(HoldfastConfig(incident_dir=str(tmp_path / "incidents")))
    monkeypatch.setattr(writer._store, "make", lambda incident_id: hangs.wait(60))
    beside: Beside[object] = Beside("incidents of a test", lambda news: writer.take(*news), capacity=3)  # type: ignore[misc]
    control = a_control(tmp_path / "other")
    break_and_repair(control, 3)
    for event in control.events:
        beside.put((event, control.view()))
    assert beside.dropped > 0
    hangs.set()
    assert beside.flush(5.0)


def test_an_answer_comes_from_a_thread_of_its_own(tmp_path: Path) -> None:
    answers = IncidentAnswers(str(tmp_path))
    assert msgspec.json.decode(answers.ask("").result(5.0)) == {"incidents": []}
    with pytest.raises(UnknownIncident):
        answers.ask("nothing").result(5.0)


def test_a_record_under_another_name_and_a_link_are_no_incidents(tmp_path: Path) -> None:
    control = a_control(tmp_path)
    break_and_repair(control)
    [incident] = listed(control).incidents
    folder = tmp_path / "incidents" / incident.incident_id
    (folder / "link").symlink_to("/etc/hostname")
    assert control.store.show(incident.incident_id).files == ("configuration.txt", "incident.json", "machine.json")
    folder.rename(folder.with_name("renamed"))
    assert IncidentStore(control.config.incident_dir).page().incidents == ()
