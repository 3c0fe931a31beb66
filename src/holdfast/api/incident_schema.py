"""The published JSON schema of `incident.json`, from the type that is written."""

from __future__ import annotations

import msgspec

from holdfast.core.protocol.incidents import SCHEMA_VERSION, Incident

FILE = "incident.schema.json"


def incident_schema() -> str:
    """Return the schema as the text of `docs/reference/incident.schema.json`."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"incident.json of Holdfast, version {SCHEMA_VERSION}",
        **msgspec.json.schema(Incident),
    }
    return msgspec.json.format(msgspec.json.encode(schema), indent=1).decode() + "\n"
