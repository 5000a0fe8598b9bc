"""Pictures and masks on their way to and from a client."""

from __future__ import annotations

import base64
import io
import itertools
import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from . import media, protocol
from .errors import DragError
from .live_models import settings
from .media import Frame
from .protocol import ProtocolError
from .session import DragSession

MAX_PAINTED = 256  # how many times over strokes may paint the whole picture


def encode(picture: Frame, format_name: str, quality: int) -> bytes:
    """uint8 [H, W, 3] → JPEG or WebP, in haste: a live frame is seen for a moment. Or raw: RGBA, row by row."""
    if format_name == "raw":
        pixels = np.full((*picture.shape[:2], 4), 255, np.uint8)
        pixels[..., :3] = picture
        return pixels.tobytes()
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    if format_name == "jpeg":
        # Colour at half resolution is seen in fur and at edges as soon as somebody asks for high quality.
        image.save(buffer, format="JPEG", quality=quality, subsampling=0 if quality >= 90 else 2)
    else:
        image.save(buffer, format="WEBP", quality=quality, method=0)
    return buffer.getvalue()


def thumbnail(picture: Frame, size: int) -> bytes:
    """A WebP of the picture, at most ``size`` pixels a side."""
    image = Image.fromarray(picture)
    if max(image.size) != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=85, method=2)
    return buffer.getvalue()


def png_mask(data: bytes, image_size: tuple[int, int]) -> np.ndarray:
    """An uploaded PNG → the movable region [H, W]. Its size is compared before a pixel is decoded. Raises DragError."""
    return media.read_mask(io.BytesIO(data), "that was uploaded", image_size)


def stroke_mask(message: protocol.Mask, present: np.ndarray | None, image_size: tuple[int, int]) -> np.ndarray | None:
    """The movable region [H, W] bool, or None = everything: strokes painted in order onto what the message says.

    A stroke covers the pixels whose centres are within its radius of its line, to about a pixel.
    """
    if message.strokes is None:
        return None
    height, width = image_size
    # What lies outside the picture is neither drawn nor charged: drawing walks along the whole of a line.
    lines = [segments(stroke, image_size) for stroke in message.strokes]
    painted = sum(len(s.points) * min(2 * s.radius, width) * min(2 * s.radius, height) for s in message.strokes)
    for stroke, within in zip(message.strokes, lines):
        painted += sum(math.dist(*segment) * min(max(2 * stroke.radius, 1), width + height) for segment in within)
    if painted > MAX_PAINTED * height * width:
        raise ProtocolError("limit", "These strokes paint too much; use fewer points or a smaller radius.", message.id)
    if message.base == "present" and present is not None:
        image = Image.fromarray(present.astype(np.uint8))
    else:
        image = Image.new("L", (width, height), 0 if message.base == "fixed" else 1)
    draw = ImageDraw.Draw(image)
    for stroke, within in zip(message.strokes, lines):
        radius, fill = stroke.radius, int(stroke.movable)
        for segment in within:
            draw.line(segment, fill=fill, width=max(1, round(2 * radius)))
        for x, y in stroke.points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    mask = np.asarray(image) > 0
    if not mask.any():
        raise DragError("Nothing may change with this mask; leave something movable.")
    return mask


Segment = tuple[tuple[float, float], tuple[float, float]]


def segments(stroke: protocol.Stroke, image_size: tuple[int, int]) -> list[Segment]:
    """The lines of a stroke, as far as they can be seen: clipped to the picture and a radius around it."""
    height, width = image_size
    edge = stroke.radius + 1
    box = (-edge, -edge, width + edge, height + edge)
    found = (clipped(start, end, box) for start, end in itertools.pairwise(stroke.points))
    return [segment for segment in found if segment is not None]


def clipped(start: protocol.Point, end: protocol.Point, box: tuple[float, float, float, float]) -> Segment | None:
    """The part of a line inside the box (left, top, right, bottom), or None (Liang and Barsky, 1984)."""
    (x, y), dx, dy = start, end[0] - start[0], end[1] - start[1]
    enters, leaves = 0.0, 1.0
    for step, room in ((-dx, x - box[0]), (dx, box[2] - x), (-dy, y - box[1]), (dy, box[3] - y)):
        if step == 0:
            if room < 0:
                return None
        elif step < 0:
            enters = max(enters, room / step)
        else:
            leaves = min(leaves, room / step)
    if enters > leaves:
        return None
    return (x + enters * dx, y + enters * dy), (x + leaves * dx, y + leaves * dy)


def mask_png(mask: np.ndarray) -> str:
    """[H, W] bool → PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def session_message(session_id: str, drag: DragSession) -> dict[str, Any]:
    """``session``: everything about a picture that status and frames do not tell."""
    height, width = drag.image_size
    mask = drag.movable_mask
    return {
        "type": "session",
        "session": session_id,
        "model": drag.model.name,
        "seed": None if drag.seed is None else int(drag.seed),
        "label": drag.label,
        "truncation_psi": drag.truncation_psi,
        "width": width,
        "height": height,
        "engine": drag.engine,
        "precision": drag.precision,
        "settings": settings(drag.config),
        "handles": drag.handle_points.tolist(),
        "targets": drag.target_points.tolist(),
        "mask": None if mask is None else {"png": mask_png(mask)},
    }
