"""Pictures and masks on their way to and from a client."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from . import media
from .live_models import settings
from .media import Frame
from .session import DragSession

MOST_RAW = 256 * 256  # pixels that are sent as they are


def format_for(picture: Frame, asked: str) -> str:
    """Large pictures are encoded whatever is asked for: a viewer could keep a server busy with copying pixels."""
    return "jpeg" if asked == "raw" and picture.shape[0] * picture.shape[1] > MOST_RAW else asked


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
