"""What HTTP gives out: pictures, animations and files of a picture, and small pictures of seeds."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Generator, Mapping
from functools import partial

import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from . import live_pictures, media
from .command_common import provenance
from .errors import DragError
from .live_hub import LiveHub
from .live_session import LiveSession, out_of_memory
from .live_worker import Busy
from .protocol import MAX_LABEL
from .session import DragSession

logger = logging.getLogger("draggan_fast.live")
MAX_ANIMATION_FRAMES = 100
MAX_ANIMATION_SIDE = 512  # an animation of a hundred 1024×1024 pictures would hold 300 MB while it is made
MAX_ANIMATIONS = 5
SEED_PICTURES = 512  # kept, a few kB each
SIZES = (32, 256)


class Exports:
    """The endpoints below ``api/``. Drawing is the worker's, encoding large files a thread's of its own."""

    def __init__(self, hub: LiveHub) -> None:
        self.hub = hub
        self._one_animation = asyncio.Semaphore(1)
        self._animations = 0  # being made or waiting for it
        self._seeds: OrderedDict[tuple[str, int, float, int, int | None], bytes] = OrderedDict()

    async def models(self, request: Request) -> Response:
        return JSONResponse({"models": self.hub.models.describe()})

    async def seed(self, request: Request) -> Response:
        """A small picture of a seed; of a class, where the model has any: the first one if none is asked for."""
        query = request.query_params
        seed = whole(request.path_params["seed"], "seed", 0, 2**32 - 1)
        size = whole(query.get("size", "128"), "size", *SIZES)
        try:
            psi = float(query.get("psi", "0.7"))
        except ValueError:
            raise HTTPException(400, "psi must be a number.") from None
        model = self.hub.models.get(query.get("model"))
        asked = query.get("label")
        by_default = 0 if model.config.c_dim else None
        label = by_default if asked is None else whole(asked, "label", 0, MAX_LABEL)
        key = (model.name, seed, psi, size, label)
        data = self._seeds.get(key)
        if data is None:

            def draw() -> np.ndarray:
                drag = self.hub.models.from_seed(model, seed, psi, label)
                preview = drag.preview()
                return preview if preview.shape[0] >= size else drag.render()

            picture = await self.hub.call(draw)
            data = await self.hub.apart(partial(live_pictures.thumbnail, picture, size))
            self._seeds[key] = data
            while len(self._seeds) > SEED_PICTURES:
                self._seeds.popitem(last=False)
        return Response(data, media_type="image/webp", headers={"cache-control": "private, max-age=3600"})

    async def session_file(self, request: Request) -> Response:
        live, _ = self._session(request)
        data = await self.hub.call(lambda: drag_of(live).to_bytes())
        return download(data, "application/octet-stream", "session.safetensors")

    async def picture(self, request: Request) -> Response:
        live, drag = self._session(request)

        def draw() -> np.ndarray:
            return drag_of(live).picture_of(drag_of(live).state)

        picture = await self.hub.call(draw)
        encode = partial(media.encode_image, picture, ".png", info=provenance(drag.model))
        return download(await self.hub.apart(encode), "image/png", "picture.png")

    async def animation(self, request: Request) -> Response:
        live, drag = self._session(request)
        suffix = "." + request.path_params["kind"]
        if suffix not in (".webp", ".mp4"):
            raise HTTPException(404)
        try:
            media.check_animation("timeline" + suffix)
        except DragError as error:  # MP4 without PyAV
            return problem(501, str(error))
        if self._animations >= MAX_ANIMATIONS:
            return problem(503, "Other animations are being made; try again in a moment.")
        self._animations += 1
        self.hub.metrics.animations.inc()
        try:
            data = await self._animated(request, live, drag, suffix)
        finally:
            self._animations -= 1
            self.hub.metrics.animations.dec()
        kind = "video/mp4" if suffix == ".mp4" else "image/webp"
        return download(data, kind, "timeline" + suffix)

    async def _animated(self, request: Request, live: LiveSession, drag: DragSession, suffix: str) -> bytes:
        """One at a time; none for who has gone away while waiting."""
        async with self._one_animation:
            if await request.is_disconnected():
                raise HTTPException(499, "Nobody waits for this animation any more.")
            frames = await self.hub.compute(timeline_pictures(live))
            encode = partial(media.encode_animation, frames, suffix, info=provenance(drag.model))
            return await self.hub.apart(encode)

    async def thumbnail(self, request: Request) -> Response:
        """A small picture of a kept state."""
        live, _ = self._session(request)
        size = whole(request.query_params.get("size", "96"), "size", *SIZES)
        index = whole(request.path_params["index"], "index", 0, 1 << 32)

        def draw() -> np.ndarray | None:
            kept = live.kept
            if index >= len(kept):
                return None
            drag = drag_of(live)
            preview = drag.picture_of(kept[index], preview=True)
            return preview if preview.shape[0] >= size // 2 else drag.picture_of(kept[index])

        picture = await self.hub.call(draw)
        if picture is None:
            raise HTTPException(404, f"The timeline has no state {index}.")
        return Response(await self.hub.apart(partial(live_pictures.thumbnail, picture, size)), media_type="image/webp")

    def failed(self, scope: Scope, error: Exception) -> Response:
        """What a client is told of an exception that nobody foresaw; it is logged, and counted."""
        if out_of_memory(error):
            self.hub.metrics.error("memory")
            return problem(507, "The device is out of memory; try again later.")
        self.hub.metrics.error("internal")
        logger.error("%s failed", scope["path"], exc_info=error)
        return problem(500, "Something went wrong in the server; its log says what.")

    def _session(self, request: Request) -> tuple[LiveSession, DragSession]:
        live = self.hub.find(request.path_params["session"])
        if live is None or live.drag is None:
            raise HTTPException(404, "There is no such session (any more).")
        return live, live.drag


def drag_of(live: LiveSession) -> DragSession:
    """What the session shows; for the worker's thread."""
    if live.drag is None:
        raise DragError("The session has ended.")
    return live.drag


def timeline_pictures(live: LiveSession) -> Generator[None, None, list[np.ndarray]]:
    """The pictures of the timeline, up to the present one and evenly chosen of many; a yield after each."""
    drag = drag_of(live)
    kept = live.kept
    chosen = sorted({round(i) for i in np.linspace(0, len(kept) - 1, min(len(kept), MAX_ANIMATION_FRAMES))})
    frames = []
    for index in chosen:
        picture = drag.picture_of(kept[index])
        if picture.shape[0] > MAX_ANIMATION_SIDE:
            small = Image.fromarray(picture).resize((MAX_ANIMATION_SIDE,) * 2, Image.Resampling.LANCZOS)
            picture = np.asarray(small)
        frames.append(picture)
        yield
    return frames


def whole(text: str, name: str, least: int, most: int) -> int:
    if not text.isdecimal() or len(text) > 12 or not least <= int(text) <= most:
        raise HTTPException(400, f"{name} must be a whole number from {least} to {most}.")
    return int(text)


def download(data: bytes, kind: str, name: str) -> Response:
    return Response(data, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})


def problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)


async def refused(_: Request, error: Exception) -> Response:
    """What a client is told of its own mistake: one sentence, as JSON. Whatever else is raised is ``failed``."""
    if isinstance(error, HTTPException):
        return problem(error.status_code, error.detail, error.headers)
    return problem(503 if isinstance(error, Busy) else 400, str(error))
