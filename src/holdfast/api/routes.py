"""The control endpoints: one table of routes, the same under both prefixes.

A handler reads one request and asks the control plane; who may call and how errors look is decided in
one place around all of them. No handler ever shows a stack.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from holdfast.api import formats, openapi, requests
from holdfast.api.access import Access, Purpose, Refusal, decide_access, find_credential
from holdfast.api.call import Call, Handler, Kept, Rejected, json, problem, read_body
from holdfast.api.page import routes as page
from holdfast.api.page.routes import caller_of
from holdfast.api.source import ControlSource, control_getter
from holdfast.core.errors import (
    BadCommand,
    CommandConflict,
    HoldfastError,
    OperatorError,
    PeerSilent,
    RecoveryFailed,
    UnknownEngine,
    UnknownIncident,
)
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.ports import ControlPlane
from holdfast.core.protocol.commands import Giver
from holdfast.core.protocol.events import InstanceView
from holdfast.core.protocol.incidents import TAR_SUFFIX, is_incident_id

PREFIXES = ("/fault_tolerance", "/v1/fault_tolerance")

# A refusal comes back from the sentinel's thread within milliseconds; a recovery may take longer than this.
_REFUSAL_WAIT_S = 0.5
_ARM_MARGIN_S = 5.0
_PATH_SIGNS = str.maketrans({"{": "", "}": "", ".": "_"})
_READ_S = 12.0  # of incidents: more than the owner has for an answer to another process

logger = logging.getLogger("holdfast")


@dataclass(frozen=True)
class _Route:
    method: Literal["GET", "POST"]
    path: str
    purpose: Purpose
    handler: Handler
    body: openapi.Schema | None = None
    of_the_page: bool = False  # not for other clients, and in no document of the API


def install(app: FastAPI, control: ControlSource, access: Access) -> None:
    """Register the control endpoints on `app`, under both prefixes."""
    get_control, kept = control_getter(control), Kept()
    for prefix in PREFIXES:
        for route in _ROUTES:
            app.add_api_route(
                prefix + route.path,
                _guarded(route, get_control, access, kept),
                methods=[route.method],
                tags=["fault tolerance"],
                summary=route.handler.__doc__,
                operation_id=f"{prefix}{route.path}".strip("/").replace("/", "_").translate(_PATH_SIGNS),
                response_class=Response,
                include_in_schema=not route.of_the_page,
                openapi_extra=openapi.describe(route.body, _QUERIES.get(route.path, ()), route.path),
            )


def _guarded(route: _Route, get_control: Callable[[], ControlPlane], access: Access, kept: Kept) -> Callable[..., Any]:
    async def endpoint(request: Request) -> Response:
        try:
            giver = _check_access(route.purpose, request, access)
            return await route.handler(Call(request, get_control(), giver, access, kept))
        except Rejected as rejected:
            return rejected.response
        except HoldfastError as error:
            return problem(_status_of(error), formats.describe_problem(error))
        except Exception:
            logger.exception("%s %s failed", route.method, route.path)
            return problem(500, formats.Problem(message="internal error", hint="the server's log says more"))

    return endpoint


# ---- handlers


async def _status(call: Call) -> Response:
    """Return the state of every engine."""
    with_full_texts = requests.parse_flag("full_texts", call.request.query_params.get("full_texts"))
    return json(formats.render_status(call.control.view(), with_full_texts=with_full_texts))


async def _ready(call: Call) -> Response:
    """Return 200 while the instance makes progress, else 503."""
    view = call.control.view()
    readiness = formats.render_readiness(view)
    if readiness.ready and (reason := call.kept.standby_wait.reason(call.control.config, view)):
        readiness = msgspec.structs.replace(readiness, ready=False, reason=reason)
    if readiness.ready:
        return json(readiness)
    return json(readiness, 503, {"Retry-After": "1"})


async def _events(call: Call) -> Response:
    """Return the events after a sequence number, oldest first; those of another instance from the first."""
    query, control = call.request.query_params, call.control
    after = requests.parse_after(query.get("after"))
    asked_about = requests.parse_instance_id(query.get("instance_id"))
    view = control.view()
    restarted = asked_about is not None and asked_about != view.instance_id
    events = control.history(0 if restarted else after)
    page = formats.EventsPage(instance_id=view.instance_id, events=events, next=after, restarted=restarted)
    if events or restarted:
        return json(msgspec.structs.replace(page, next=events[-1].sequence if events else 0))
    # Without an instance a number beyond the last event may be of an earlier life of this server: `next` leads back.
    return json(page if asked_about else msgspec.structs.replace(page, next=min(after, view.sequence)))


async def _incidents(call: Call) -> Response:
    """Return the incidents that are kept, newest first."""
    return _raw(await _read_incidents(call, ""))


async def _incident(call: Call) -> Response:
    """Return an incident, by its id or by the name that a client was told."""
    return _raw(await _read_incidents(call, _incident_id(call)))


async def _incident_tar(call: Call) -> Response:
    """Return the files of an incident as a tar, to attach to a report."""
    incident_id = _incident_id(call)
    answer = _raw(await _read_incidents(call, incident_id + TAR_SUFFIX), "application/x-tar")
    answer.headers["Content-Disposition"] = f'attachment; filename="{incident_id}.tar"'
    return answer


def _incident_id(call: Call) -> str:
    incident_id = str(call.request.path_params["incident_id"])
    if not is_incident_id(incident_id):
        raise UnknownIncident("there is no such incident", hint="GET /fault_tolerance/incidents names all")
    return incident_id


async def _read_incidents(call: Call, asked: str) -> bytes:
    answer = asyncio.wrap_future(call.control.incidents(asked))
    try:
        return await asyncio.wait_for(answer, _READ_S)
    except TimeoutError:
        raise PeerSilent("the folder of incidents does not answer", hint="see --incident-dir") from None


async def _apply(call: Call) -> Response:
    """Run a command, in either request format."""
    applied = requests.parse_apply(await read_body(call.request), *_origin(call))
    outcome = _watch(call.control.submit(applied.command))
    if applied.timeout_s is None:
        return await _accept(outcome, applied.command.command_id)
    return await _execute(outcome, applied.timeout_s)


async def _inject(call: Call) -> Response:
    """Arm a fault; only on a server that was started with fault injection."""
    control = call.control
    if not control.config.enable_fault_injection:
        raise Rejected(404, "fault injection is off", "start the server with --enable-fault-injection")
    command = requests.parse_injection(await read_body(call.request), *_origin(call))
    _check_rank(command.spec, control.view())
    outcome = _watch(control.submit(command))
    await _wait_ended(outcome, control.config.drain_timeout_s + _ARM_MARGIN_S)
    return json(formats.Accepted(message="Fault armed.", request_id=command.command_id))


_ROUTES = (
    _Route("GET", "/status", Purpose.READ, _status),
    _Route("GET", "/events", Purpose.READ, _events),
    _Route("GET", "/ready", Purpose.PROBE, _ready),
    _Route("GET", "/incidents", Purpose.READ, _incidents),
    _Route("GET", "/incidents/{incident_id}.tar", Purpose.READ, _incident_tar),
    _Route("GET", "/incidents/{incident_id}", Purpose.READ, _incident),
    _Route("POST", "/apply", Purpose.COMMAND, _apply, openapi.APPLY_BODY),
    _Route("POST", "/inject", Purpose.COMMAND, _inject, openapi.INJECT_BODY),
    _Route("GET", "/", Purpose.PROBE, page.page, of_the_page=True),
    _Route("GET", "/page/{name}", Purpose.PROBE, page.page_file, of_the_page=True),
    _Route("POST", "/login", Purpose.PROBE, page.login, of_the_page=True),
    _Route("POST", "/logout", Purpose.COMMAND, page.logout, of_the_page=True),
    _Route("GET", "/session", Purpose.PROBE, page.get_session, of_the_page=True),
    _Route("GET", "/stream", Purpose.READ, page.events_stream, of_the_page=True),
)
_QUERIES = {"/events": (openapi.AFTER, openapi.INSTANCE_OF_EVENTS), "/status": (openapi.FULL_TEXTS,)}


# ---- commands


def _origin(call: Call) -> tuple[Giver, list[str]]:
    """Return the giver of a command, and the idempotency keys of the headers."""
    assert call.giver is not None, "a command without a credential was admitted"
    return call.giver, call.request.headers.getlist("idempotency-key")


def _watch(command: Future[None]) -> asyncio.Future[None]:
    outcome = asyncio.wrap_future(command)
    # The caller may have left when the command fails; asyncio would log the error as unhandled.
    outcome.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return outcome


async def _accept(outcome: asyncio.Future[None], command_id: str) -> Response:
    with contextlib.suppress(RecoveryFailed):  # it was accepted: how it ends is for those who poll the status
        await _wait_ended(outcome, _REFUSAL_WAIT_S)
    return json(formats.Accepted(request_id=command_id), 202)


async def _execute(outcome: asyncio.Future[None], timeout_s: float) -> Response:
    try:
        await _wait_ended(outcome, timeout_s)
    except OperatorError:
        raise
    except HoldfastError as error:
        failed = formats.Problem(message=formats.FAILED_MESSAGE, detail=error.message, hint=error.hint)
        return problem(500, failed)
    return json(formats.Executed())


async def _wait_ended(outcome: asyncio.Future[None], timeout_s: float) -> None:
    """Wait for the end of a command, which continues after the wait. Raises the error, or `RecoveryFailed`."""
    ended, _ = await asyncio.wait({outcome}, timeout=timeout_s)
    if not ended:
        raise RecoveryFailed(f"not finished within {timeout_s:g} s", hint="poll /fault_tolerance/status")
    if outcome.cancelled():
        raise RecoveryFailed("the instance is ending")
    outcome.result()


def _check_rank(spec: InjectionSpec, view: InstanceView) -> None:
    engine = view.engine(spec.engine_id)
    if engine is None or not engine.ranks or not spec.phase.in_worker:
        return
    if not 0 <= spec.rank < engine.ranks:
        raise BadCommand(f"engine {spec.engine_id} has no rank {spec.rank}", hint=f"0 to {engine.ranks - 1}")


# ---- requests and responses


def _check_access(purpose: Purpose, request: Request, access: Access) -> Giver | None:
    """Return the giver of an admitted call. Raises `Rejected`."""
    caller = caller_of(request, access)
    match decide_access(purpose, caller, access):
        case Refusal(status, message, hint, challenge):
            raise Rejected(status, message, hint, {"WWW-Authenticate": "Bearer"} if challenge else None)
    credential, peer = find_credential(caller, access), caller.peer
    return None if credential is None else Giver(credential=credential, address=peer.address, uid=peer.uid)


def _status_of(error: HoldfastError) -> int:
    match error:
        case BadCommand():
            return 400
        case UnknownEngine() | UnknownIncident():
            return 404
        case CommandConflict():
            return 409
        case PeerSilent():
            return 503
    return 500


def _raw(content: bytes, media_type: str = "application/json") -> Response:
    return Response(content, media_type=media_type)
