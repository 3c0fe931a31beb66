"""Typed client of a protected server: status, events without a gap, commands, incidents and notifications.

`Client` waits, `AsyncClient` is for asyncio; both raise `ClientFailure` and nothing else. The command line uses them.
"""

from holdfast.api.formats import EventsPage, Notification, Status
from holdfast.client.calls import REFUSED, UNREACHABLE, ClientFailure
from holdfast.client.following import Place
from holdfast.client.http import AsyncClient, Client
from holdfast.client.notifications import notifications
from holdfast.core.protocol.events import Event, EventKind
from holdfast.core.protocol.incidents import Incident, IncidentsPage, StoredIncident

__all__ = [
    "REFUSED",
    "UNREACHABLE",
    "AsyncClient",
    "Client",
    "ClientFailure",
    "Event",
    "EventKind",
    "EventsPage",
    "Incident",
    "IncidentsPage",
    "Notification",
    "Place",
    "Status",
    "StoredIncident",
    "notifications",
]
