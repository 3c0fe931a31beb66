"""The reference names what exists: endpoints, events, states, phases, options."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import msgspec
import pytest
import typer

from holdfast.api import formats, openapi, routes
from holdfast.api.incident_schema import FILE, incident_schema
from holdfast.core.config import NOTIFY_PORT, HoldfastConfig
from holdfast.core.faults.faults import Phase
from holdfast.core.protocol.events import EngineStatus, EventKind
from holdfast.core.protocol.incidents import Incident, PhaseSeconds
from holdfast.core.states import EngineState
from support.control_plane import MemoryControl
from support.http_app import build_app

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
HTTP = (REFERENCE / "http.md").read_text()
CLI = (REFERENCE / "cli.md").read_text()


def test_every_endpoint_is_documented_and_every_documented_one_exists() -> None:
    paths = {p for p in build_app(MemoryControl()).openapi()["paths"] if not p.startswith("/v1")}
    assert set(re.findall(r"^\| \w+ \| `(/fault_tolerance/[\w/{}.]+)", HTTP, re.MULTILINE)) == paths
    assert all(f"`{prefix}/`" in HTTP for prefix in routes.PREFIXES)


@pytest.mark.parametrize("names", [EventKind, EngineState, Phase])
def test_every_name_on_the_wire_is_documented(names: type[EventKind] | type[EngineState] | type[Phase]) -> None:
    assert [n for n in names if f"`{n}`" not in HTTP] == []


@pytest.mark.parametrize("kind", [EngineStatus, formats.Status])
def test_every_field_of_the_status_is_documented(kind: type[msgspec.Struct]) -> None:
    assert [
        name
        for name in (f.encode_name for f in msgspec.structs.fields(kind))
        if f'"{name}"' not in HTTP and f"`{name}`" not in HTTP
    ] == []


def test_the_schema_of_incidents_is_that_of_the_type_and_every_field_is_documented() -> None:
    assert (REFERENCE / FILE).read_text() == incident_schema(), "run `make settings`"
    names = {field.name for kind in (Incident, PhaseSeconds) for field in msgspec.structs.fields(kind)}
    assert {name for name in names if f"`{name}`" not in HTTP} == set()


def test_every_answer_is_documented() -> None:
    codes = {code for answers in openapi.ANSWERS.values() for code in answers}
    assert [c for c in codes if c not in HTTP] == []


def test_documented_defaults_are_those_of_the_settings() -> None:
    defaults = HoldfastConfig()
    assert f"`--external-fault-notify-port` ({NOTIFY_PORT};" in HTTP
    assert f"`--external-fault-notify-host` (`{defaults.external_fault_notify_host}`)" in HTTP
    assert f"`--max-held-requests` ({defaults.max_held_requests})" in HTTP


@pytest.mark.parametrize("name", ["status", "apply", "events", "inject"])
def test_every_option_of_a_command_is_documented(name: str) -> None:
    app = typer.Typer(add_completion=False)
    app.command()(getattr(importlib.import_module(f"holdfast.cli.{name}"), name))
    options = {o for p in typer.main.get_command(app).params for o in p.opts if o.startswith("-")}
    assert [o for o in options if f"`{o}`" not in CLI] == []


def test_every_phase_can_be_found_beside_its_option() -> None:
    assert [p for p in Phase if f"`{p}`" not in CLI] == []
