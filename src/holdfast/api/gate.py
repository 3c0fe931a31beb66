"""The outermost middleware: control paths past the host's own guard, new requests within bounds.

While the instance makes no progress, new requests pass the gate and wait in the host: held requests.
The gate counts them and refuses what is beyond the bound. It never touches a request while all is well.
"""

from __future__ import annotations

import msgspec
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from holdfast.api.formats import Problem, ProblemBody, instance_state
from holdfast.api.peer import with_peer
from holdfast.api.source import ControlSource, control_getter
from holdfast.core.protocol.events import InstanceView

_GUARDED_PREFIX = "/v1/fault_tolerance/"
_CONTROL_PREFIX = "/fault_tolerance/"


def install_gate(app: Starlette, control: ControlSource) -> None:
    """Put the gate around `app`, outside the rest of the middleware.

    The host has built its stack by the time its plugins get their state, and a built stack takes no more
    middleware: so the gate goes around the stack itself.
    """
    app.middleware_stack = ControlGate(app.middleware_stack or app.build_middleware_stack(), control)


class ControlGate:
    """Pure ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, control: ControlSource) -> None:
        self._app = app
        self._control = control_getter(control)
        self._ready_view: InstanceView | None = None
        self._held = 0

    @property
    def held_requests(self) -> int:
        """Number of requests that arrived while no engine made progress, and have had no answer yet."""
        return self._held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        root, path = _split_path(scope)
        if path.startswith(_GUARDED_PREFIX):
            # The host's key guards /v1; the control endpoints have an access rule of their own.
            await self._app(_with_path(with_peer(scope, receive), root + path.removeprefix("/v1")), receive, send)
        elif path.startswith(_CONTROL_PREFIX):
            await self._app(with_peer(scope, receive), receive, send)
        elif scope["method"] != "POST" or self._is_ready():
            await self._app(scope, receive, send)
        else:
            await self._hold(scope, receive, send)

    def _is_ready(self) -> bool:
        view = self._control().view()
        if view is self._ready_view:  # a new view is made at every change, so the same one says the same
            return True
        self._ready_view = view if view.ready else None
        return view.ready

    async def _hold(self, scope: Scope, receive: Receive, send: Send) -> None:
        control = self._control()
        if refusal := _decide_hold(control.view(), self._held, control.config.max_held_requests):
            await refusal(scope, receive, send)
            return
        waiting = True
        self._held += 1

        def release() -> None:
            nonlocal waiting
            self._held -= waiting
            waiting = False

        async def send_and_release(message: Message) -> None:
            if message["type"] == "http.response.body" and message.get("body"):
                release()
            await send(message)

        try:
            await self._app(scope, receive, send_and_release)
        finally:
            release()


def _decide_hold(view: InstanceView, held: int, max_held: int) -> Response | None:
    """Return the refusal of a new request while no engine makes progress; None when the request may wait."""
    state = instance_state(view)
    if view.defeat is not None:
        # The reason may quote an exception, and whoever sends a request may not read the status.
        hint = "/fault_tolerance/status says why, with the control token"
        return _unavailable(Problem(message="the instance has ended", state=state, hint=hint))
    if held < max_held:
        return None
    message = f"the instance is {state} and holds {held} requests already"
    return _unavailable(Problem(message=message, state=state, hint="try again; --max-held-requests sets the bound"))


def _unavailable(problem: Problem) -> Response:
    body = msgspec.json.encode(ProblemBody(error=problem))
    return Response(body, 503, {"Retry-After": "1"}, media_type="application/json")


def _split_path(scope: Scope) -> tuple[str, str]:
    """Return the path of a request as the router sees the path: (root path, path in the app)."""
    path: str = scope["path"]
    root: str = scope.get("root_path") or ""
    if root and path.startswith(root + "/"):
        return root, path[len(root) :]
    return "", path


def _with_path(scope: Scope, path: str) -> Scope:
    return {**scope, "path": path, "raw_path": path.encode("ascii", "replace")}
