"""How the control endpoints describe themselves in the server's OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from holdfast.api.requests import (
    IDEMPOTENCY_KEY,
    INSTANCE_ID,
    KEY_FIELD,
    MAX_SEQUENCE,
    AcceptedRequest,
    AwaitedRequest,
    Changes,
    Params,
)
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol.incidents import INCIDENT_ID

Schema: TypeAlias = dict[str, Any]

ANSWERS = {
    "GET": {"200": "Done", "401": "A token is needed", "403": "Refused"},
    "POST": {
        "200": "Done",
        "202": "Accepted",
        "400": "Not understood",
        "401": "A token is needed",
        "403": "Refused",
        "404": "No such engine, or fault injection is off",
        "408": "The body did not arrive in time",
        "409": "Makes no sense in the present state",
        "413": "Body too large",
        "415": "Body is not JSON",
        "500": "It was tried and did not work",
    },
}
AFTER: Schema = {
    "name": "after",
    "in": "query",
    "required": False,
    "description": "only events with a greater sequence number",
    "schema": {"type": "integer", "minimum": 0, "maximum": MAX_SEQUENCE},
}
INSTANCE_OF_EVENTS: Schema = {
    "name": "instance_id",
    "in": "query",
    "required": False,
    "description": "the instance that the sequence number is of; the events of another one come from the first",
    "schema": {"type": "string", "pattern": f"^{INSTANCE_ID}$"},
}
INCIDENT: Schema = {
    "name": "incident_id",
    "in": "path",
    "required": True,
    "description": "id of an incident, or the name that the client of an ended request was told",
    "schema": {"type": "string", "pattern": f"^{INCIDENT_ID}$"},
}
FULL_TEXTS: Schema = {
    "name": "full_texts",
    "in": "query",
    "required": False,
    "description": "also the texts of the latest exceptions as they are, which may quote requests",
    "schema": {"type": "boolean"},
}


def _schema(kind: type[msgspec.Struct]) -> Schema:
    document = msgspec.json.schema(kind)
    resolved: Schema = _resolve(document, document.get("$defs", {}))
    return resolved


def _resolve(node: Any, definitions: Schema) -> Any:
    # A reference into a part of the document would not be found from the whole one's root.
    match node:
        case {"$ref": str(reference)}:
            return _resolve(definitions[reference.rpartition("/")[2]], definitions)
        case dict():
            return {key: _resolve(value, definitions) for key, value in node.items() if key != "$defs"}
        case list():
            return [_resolve(value, definitions) for value in node]
    return node


def _command(kind: type[msgspec.Struct]) -> Schema:
    """Return the schema of a body that may have an idempotency key as well."""
    schema = _schema(kind)
    key = {"type": "string", "pattern": f"^{IDEMPOTENCY_KEY}$"}
    return {**schema, "properties": {**schema["properties"], KEY_FIELD: key}}


APPLY_BODY: Schema = {
    "anyOf": [
        _command(kind)
        for kind in (AcceptedRequest[Params], AwaitedRequest[Params], AcceptedRequest[Changes], AwaitedRequest[Changes])
    ]
}
INJECT_BODY: Schema = _command(InjectionSpec)


def describe(body: Schema | None, queries: Sequence[Schema] = (), path: str = "") -> Schema:
    """Describe the body, the query and the answers of a handler, which FastAPI cannot see."""
    answers = dict(ANSWERS["GET" if body is None else "POST"])
    if queries:
        answers["400"] = "Not a value of " + " or ".join(query["name"] for query in queries)
    if "{" in path:
        answers["404"] = "No such incident"
    if body is None:
        answers["503"] = "The instance makes no progress (ready), or the owner does not answer (incidents)"
    described: Schema = {"responses": {code: {"description": text} for code, text in answers.items()}}
    if body is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if parameters := [*([INCIDENT] if "{" in path else []), *queries]:
        described["parameters"] = parameters
    return described
