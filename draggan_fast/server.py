"""``create_app``: the live server as an ASGI application, alone or mounted in somebody's Starlette or FastAPI."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from .errors import DragError
from .live_exports import Exports, refused
from .live_hub import LiveHub
from .live_security import LOOPBACK_HOSTS, Guard
from .live_socket import serve_viewer
from .loading import Model, load
from .models import DEFAULT_MODEL
from .protocol import Limits, check_limits, check_token

WEB = Path(__file__).resolve().parent / "web"


class LiveApp(Starlette):
    """``live`` is what keeps the pictures; ``async with app.live:`` starts and stops it where no lifespan is run."""

    live: LiveHub


def create_app(
    model: Model | str | Sequence[Model | str] = DEFAULT_MODEL,
    *,
    token: str | None = None,
    allowed_hosts: Sequence[str] = LOOPBACK_HOSTS,
    allow_origins: Sequence[str] = (),
    max_sessions: int = 16,
    idle_seconds: float = 600.0,
    silent_seconds: float = 1800.0,
    limits: Limits | None = None,
) -> LiveApp:
    """The live server (docs/protocol.md, docs/embedding.md).

    model: from ``load`` or a name or path for it, or several, the first of which is the default.  token: what clients
    must know, None = nothing.  allowed_hosts: names in the Host header that are answered, ("*",) = any.
    allow_origins: pages of other origins that may use the server.  max_sessions: pictures at a time.  idle_seconds:
    how long a picture is kept after its viewer has gone.  silent_seconds: how long a viewer may ask for nothing before
    it is sent away, as if it had gone.  limits: what clients may send, if not the usual; how many
    pictures there may be is max_sessions all the same.
    Raises DragError for what does not fit.

    Mounted in another application, its lifespan is not run (Starlette runs only the outermost): the worker starts with
    the first viewer; end it with ``async with app.live:`` in the lifespan of the application around.
    """
    if token is not None:
        check_token(token)
    if not max_sessions >= 1:
        raise DragError(f"max_sessions must be at least 1, not {max_sessions}.")
    if not idle_seconds > 0:
        raise DragError(f"idle_seconds must be above 0, not {idle_seconds}.")
    if not silent_seconds > 0:
        raise DragError(f"silent_seconds must be above 0, not {silent_seconds}.")
    if isinstance(allowed_hosts, str) or isinstance(allow_origins, str):
        raise DragError("allowed_hosts and allow_origins are lists of names.")
    limits = replace(limits or Limits(), sessions=max_sessions)
    check_limits(limits)
    given = [model] if isinstance(model, (Model, str)) else list(model)
    models = [load(one) if isinstance(one, str) else one for one in given]
    hub = LiveHub(models, limits, idle_seconds)
    exports = Exports(hub)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with hub:
            yield

    async def socket(websocket: WebSocket) -> None:
        await serve_viewer(websocket, hub, token, silent_seconds)

    async def page(_: Request) -> Response:
        return FileResponse(WEB / "index.html", headers={"cache-control": "no-cache"})

    async def health(_: Request) -> Response:
        if hub.ready:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "starting or stopping"}, 503)

    async def metrics(_: Request) -> Response:
        return Response(hub.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    session = "/api/sessions/{session}"
    app = LiveApp(
        routes=[
            WebSocketRoute("/ws", socket),
            Route("/", page),
            Mount("/static", StaticFiles(directory=WEB, check_dir=False)),
            Route("/healthz", health),
            Route("/metrics", metrics),
            Route("/api/models", exports.models),
            Route("/api/seeds/{seed}.webp", exports.seed),
            Route(session + "/session.safetensors", exports.session_file),
            Route(session + "/picture.png", exports.picture),
            Route(session + "/timeline/{index}.webp", exports.thumbnail),
            Route(session + "/timeline.{kind}", exports.animation),
        ],
        middleware=[
            Middleware(Guard, hosts=allowed_hosts, origins=allow_origins, token=token, failed=exports.failed),
        ],
        exception_handlers={HTTPException: refused, DragError: refused},
        lifespan=lifespan,
    )
    app.live = hub
    return app
