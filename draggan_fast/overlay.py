"""Drawing on frames: handles, targets, arrows, trails and the mask; enlarging; sheets of frames.

Frames are uint8 `[H, W, 3]`, points are `(x, y)` in pixels with integers at pixel centres. Shapes are drawn
from their signed distance functions: the coverage of a pixel is `clip(0.5 - distance, 0, 1)`, which gives
smooth edges at the cost of the pixels that a shape touches, not of a supersampled picture.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .errors import MediaError

Frame = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
_Distance = Callable[[Points, Points], Points]

HANDLE_RED = (236, 32, 48)
TARGET_BLUE = (36, 108, 255)
_WHITE = (255, 255, 255)
_DARK = (16, 18, 24)
_MAX_PIXELS = 1 << 27  # a sheet or an enlargement beyond this is a slip of the pen, not a wish


def check_frame(frame: object, name: str = "frame") -> Frame:
    """Return `frame` as a C-contiguous uint8 `[H, W, 3]` array; MediaError when it is anything else."""
    array = np.asarray(frame)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise MediaError(
            f"{name} is {array.dtype} {list(array.shape)}; give a uint8 array of shape [height, width, 3]."
        )
    return np.ascontiguousarray(array)


def upscale(frame: Frame, factor: float) -> Frame:
    """Enlarge `[H, W, 3]` to `[round(H * factor), round(W * factor), 3]`, Lanczos.

    The pixel `(x, y)` comes to lie around `((x + 0.5) * factor - 0.5, (y + 0.5) * factor - 0.5)`.
    Raises: MediaError for a factor that is not a positive number or makes more than 128 megapixels.
    """
    frame = check_frame(frame)
    height, width = _scaled_size(frame, factor)
    if (height, width) == frame.shape[:2]:
        return frame.copy()
    return np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


def draw_overlay(
    frame: Frame,
    handles: npt.ArrayLike,
    targets: npt.ArrayLike,
    movable_mask: npt.ArrayLike | None = None,
    *,
    scale: float = 1.0,
    mark_size: float = 1.0,
    trail: npt.ArrayLike | None = None,
    numbers: bool = False,
) -> Frame:
    """Draw a drag on a copy of `frame`, enlarged `scale` times.

    Args:
        frame: uint8 `[H, W, 3]`.
        handles, targets: `[N, 2]` `(x, y)` in pixels of `frame` (before enlarging); they may lie outside.
            Where both are the same point only the handle is drawn.
        movable_mask: `[H, W]`, 1 where the picture may change; the rest is dimmed and greyed, with a contour.
        scale: how many times larger than `frame` the result is; marks are drawn after enlarging, so they
            stay crisp.
        mark_size: multiplies the size of the marks, which otherwise goes by the size of the result.
        trail: `[T, N, 2]`, where the handles have been, oldest first; a thin line through them is drawn.
        numbers: write 1…N beside the handles.

    Returns: uint8 `[round(H * scale), round(W * scale), 3]`; `frame` is not touched.
    Raises: MediaError for wrong shapes, points that are not finite, or a scale or size that is not positive.
    """
    frame = check_frame(frame)
    start = _check_points(handles, "handles", 2)
    goal = _check_points(targets, "targets", 2)
    if start.shape != goal.shape:
        raise MediaError(f"There are {len(start)} handles but {len(goal)} targets; give one target to each handle.")
    path = np.zeros((0, len(start), 2)) if trail is None or np.size(trail) == 0 else _check_points(trail, "trail", 3)
    if path.shape[1:] != start.shape:
        raise MediaError(f"trail is {list(path.shape)}; give [steps, {len(start)}, 2], one row of handles a step.")
    if not (math.isfinite(mark_size) and mark_size > 0):
        raise MediaError(f"mark_size is {mark_size}; give a number above 0.")

    out = upscale(frame, scale)
    if movable_mask is not None:
        _dim_fixed(out, _check_mask(movable_mask, frame), mark_size)
    start, goal, path = ((points + 0.5) * scale - 0.5 for points in (start, goal, path))

    radius = _dot_radius(out) * mark_size
    apart = np.hypot(*(goal - start).T) >= 0.5 * scale
    for i in range(len(start)):
        _draw_trail(out, np.concatenate([path[:, i], start[i : i + 1]]), radius)
    for i in np.flatnonzero(apart).tolist():
        _draw_arrow(out, start[i], goal[i], radius)
    for i in np.flatnonzero(apart).tolist():
        _draw_dot(out, goal[i], radius, TARGET_BLUE)
    for point in start:
        _draw_dot(out, point, radius, HANDLE_RED)
    return _draw_numbers(out, start, goal, radius) if numbers else out


def draw_watermark(frame: Frame) -> Frame:
    """Return a copy of `frame` with a small 'AI-generated' pill in the lower right corner."""
    frame = check_frame(frame)
    height, width = frame.shape[:2]
    # Drawn four times too large and reduced: type this small is far better shaped that way.
    size = 4.0 * min(max(8.0, 0.026 * math.sqrt(height * width)), 30.0)
    for text in ("AI-generated", "AI"):
        font = _font(round(size))
        left, top, right, bottom = font.getbbox(text, anchor="ls")
        pill = (math.ceil(right - left + 1.5 * size), math.ceil(1.9 * size))
        margin = max(2, round(0.12 * size))
        if pill[0] / 4 + 2 * margin <= 0.75 * width and pill[1] / 4 + 2 * margin <= height:
            break
    else:
        return frame.copy()  # a thumbnail on which no word can be read
    layer = Image.new("RGBA", pill, (*_WHITE, 0))
    draw = ImageDraw.Draw(layer)
    box = (0, 0, pill[0] - 1, pill[1] - 1)
    draw.rounded_rectangle(box, pill[1] / 2, fill=(*_WHITE, 110))
    rim = max(2.0, 0.09 * size)
    inner = (box[0] + rim, box[1] + rim, box[2] - rim, box[3] - rim)
    draw.rounded_rectangle(inner, pill[1] / 2 - rim, fill=(*_DARK, 175))
    centre = (pill[0] / 2, pill[1] / 2 - (top + bottom) / 2)
    draw.text(centre, text, font=font, fill=(*_WHITE, 245), anchor="ms")
    small = layer.resize((math.ceil(pill[0] / 4), math.ceil(pill[1] / 4)), Image.Resampling.BOX)
    canvas = Image.fromarray(frame)
    canvas.paste(small, (width - small.width - margin, height - small.height - margin), small)
    return np.array(canvas)


def contact_sheet(
    images: Sequence[Frame],
    columns: int,
    labels: Sequence[str] | None = None,
    gap: int = 8,
    *,
    background: tuple[int, int, int] = (250, 250, 251),
) -> Frame:
    """Lay frames out in rows of `columns`, each centred in a cell of the largest frame's size.

    Args:
        images: uint8 `[H, W, 3]` each; sizes may differ.
        labels: one caption under each frame; one too long for its cell is shortened.
        gap: pixels between cells and around the sheet.
    Returns: uint8 `[H, W, 3]`. Raises: MediaError for no images, a wrong number of labels, too large a sheet.
    """
    frames = [check_frame(image, f"image {i + 1}") for i, image in enumerate(images)]
    if not frames or columns < 1 or gap < 0:
        raise MediaError(
            f"A sheet of {len(frames)} images in {columns} columns with a gap of {gap} cannot be drawn; "
            "give at least one image, one column and no negative gap."
        )
    if labels is not None and len(labels) != len(frames):
        raise MediaError(f"There are {len(labels)} labels for {len(frames)} images; give one to each.")
    columns = min(columns, len(frames))
    rows = math.ceil(len(frames) / columns)
    cell_h = max(frame.shape[0] for frame in frames)
    cell_w = max(frame.shape[1] for frame in frames)
    font_size = round(min(max(11.0, 0.07 * cell_w), 28.0))
    caption = 0 if labels is None else round(1.7 * font_size)
    width = gap + columns * (cell_w + gap)
    height = gap + rows * (cell_h + caption + gap)
    if width * height > _MAX_PIXELS:
        raise MediaError(f"The sheet would be {width}×{height} pixels; lay out fewer or smaller images.")

    sheet = Image.new("RGB", (width, height), background)
    draw = ImageDraw.Draw(sheet)
    ink = _DARK if sum(background) > 380 else _WHITE
    for i, frame in enumerate(frames):
        left = gap + (i % columns) * (cell_w + gap)
        top = gap + (i // columns) * (cell_h + caption + gap)
        h, w = frame.shape[:2]
        sheet.paste(Image.fromarray(frame), (left + (cell_w - w) // 2, top + (cell_h - h) // 2))
        if labels is not None:
            text = _shorten(_plain(labels[i]), _font(font_size), cell_w)
            middle = (left + cell_w / 2, top + cell_h + caption / 2)
            draw.text(middle, text, font=_font(font_size), fill=ink, anchor="mm")
    return np.array(sheet)


def side_by_side(frames: Sequence[Frame], labels: Sequence[str] | None = None, gap: int = 8) -> Frame:
    """Lay frames out in one row, as `contact_sheet` does."""
    return contact_sheet(frames, max(1, len(frames)), labels, gap)


# ---- marks ---------------------------------------------------------------------------------------


def _dot_radius(frame: Frame) -> float:
    """Radius of a mark's coloured disc: 3 px at 128², 6 px at 384², 11 px at 1024²."""
    height, width = frame.shape[:2]
    return max(3.0, 0.16 * math.sqrt(height * width) ** 0.61)


def _ring(radius: float) -> float:
    return max(1.6, 0.36 * radius)


def _draw_dot(out: Frame, point: Points, radius: float, colour: tuple[int, int, int]) -> None:
    ring = _ring(radius)
    edge = max(0.75, 0.14 * radius)

    def disc(size: float) -> _Distance:
        return lambda x, y: np.hypot(x - point[0], y - point[1]) - size

    for size, fill, alpha in (
        (radius + ring + edge, _DARK, 0.55),
        (radius + ring, _WHITE, 1.0),
        (radius, colour, 1.0),
    ):
        _paint(out, point, point, size, disc(size), fill, alpha)


def _draw_arrow(out: Frame, start: Points, end: Points, radius: float) -> None:
    """A white arrow with a dark edge between the rings of two dots; nothing where there is no room."""
    length = float(np.hypot(*(end - start)))
    ring = _ring(radius)
    clear = length - 2 * (radius + ring)
    if clear < 0.5 * radius:
        return
    along = (end - start) / length
    tip = end - along * (radius + 0.5 * ring)
    head = min(2.5 * radius, 0.8 * clear)
    half = 0.55 * head
    shaft = max(0.75, 0.24 * radius)
    edge = max(0.9, 0.2 * radius)
    base = tip - along * head
    across = np.array([-along[1], along[0]])
    corners = np.stack([tip, base + across * half, base - across * half])

    def arrow(x: Points, y: Points) -> Points:
        return np.minimum(_segment(x, y, start, base) - shaft, _triangle(x, y, corners))

    reach = half + edge
    _paint(out, start, tip, reach, lambda x, y: arrow(x, y) - edge, _DARK, 0.8)
    _paint(out, start, tip, reach, arrow, _WHITE, 1.0)


def _draw_trail(out: Frame, path: Points, radius: float) -> None:
    half = max(0.6, 0.16 * radius)
    edge = max(0.6, 0.12 * radius)
    for grow, colour, alpha in ((edge, _WHITE, 0.85), (0.0, HANDLE_RED, 1.0)):
        for a, b in pairwise(path):
            if np.hypot(*(b - a)) > 1e-6:

                def line(x: Points, y: Points, a: Points = a, b: Points = b, size: float = half + grow) -> Points:
                    return _segment(x, y, a, b) - size

                _paint(out, a, b, half + grow, line, colour, alpha)


def _draw_numbers(out: Frame, points: Points, goals: Points, radius: float) -> Frame:
    canvas = Image.fromarray(out)
    draw = ImageDraw.Draw(canvas)
    size = max(9.0, 2.3 * radius)
    stroke = max(1, round(0.2 * radius))
    for i, (point, goal) in enumerate(zip(points, goals, strict=True)):
        # Behind the handle, where the arrow is not; beside it or ahead where that would leave the picture.
        length = float(np.hypot(*(goal - point)))
        ahead = (goal - point) / length if length > radius else np.array([-0.75, 0.66])
        left = np.array([ahead[1], -ahead[0]])
        for way in (-ahead, left, -left, ahead):
            at = point + way * (1.5 * radius + 0.62 * size)
            if 0.5 * size <= at[0] <= canvas.width - 0.5 * size and 0.5 * size <= at[1] <= canvas.height - 0.5 * size:
                text, font = str(i + 1), _font(round(size))
                xy = (float(at[0]), float(at[1]))
                draw.text(xy, text, font=font, fill=_WHITE, anchor="mm", stroke_width=stroke, stroke_fill=_DARK)
                break
    return np.array(canvas)


def _dim_fixed(out: Frame, mask: Frame, mark_size: float) -> None:
    """Grey and dim `out` where `mask` (0 or 255, `[H, W]` before enlarging) is 0, and draw the border."""
    size = (out.shape[1], out.shape[0])
    scale = out.shape[0] / mask.shape[0]
    picture, small = Image.fromarray(out), Image.fromarray(mask)
    fixed = Image.blend(picture, picture.convert("L").convert("RGB"), 0.6)
    fixed = fixed.point([round(0.6 * level + 22) for level in range(256)] * 3)
    out[:] = np.asarray(Image.composite(picture, fixed, small.resize(size, Image.Resampling.BILINEAR)))
    if mask.min() == mask.max():
        return
    # A straight border blurred by sigma has the value Phi(distance / sigma), so the distance can be read off
    # the blurred mask (Phi as a logistic curve): one table from value to coverage draws the line.
    half = max(0.65, 0.13 * _dot_radius(out)) * mark_size
    edge = max(0.8, 0.7 * half)
    sigma = max(scale, 1.1 * (half + edge))
    value = (np.arange(256) + 0.5) / 256
    away = np.abs(np.log(value / (1 - value))) * (sigma / 1.702)
    level = np.asarray(small.resize(size, Image.Resampling.NEAREST).filter(ImageFilter.GaussianBlur(sigma)))
    for width, colour, alpha in ((half + edge, _DARK, 0.5), (half, _WHITE, 0.95)):
        coverage = np.clip(width + 0.5 - away, 0, 1) * alpha
        ys, xs = np.nonzero((coverage > 0)[level])
        _blend(out, ys, xs, coverage[level[ys, xs]], colour)


# ---- distances and blending ----------------------------------------------------------------------


def _segment(x: Points, y: Points, a: Points, b: Points) -> Points:
    """Distance of points `(x, y)` from the line segment a-b."""
    ab = b - a
    t = np.clip(((x - a[0]) * ab[0] + (y - a[1]) * ab[1]) / max(float(ab @ ab), 1e-12), 0, 1)
    return np.hypot(x - a[0] - t * ab[0], y - a[1] - t * ab[1])


def _triangle(x: Points, y: Points, corners: Points) -> Points:
    """Signed distance of points `(x, y)` from a triangle `[3, 2]`, negative inside."""
    far = np.full_like(x, np.inf)
    inside = np.full_like(x, np.inf)
    (x0, y0), (x1, y1), (x2, y2) = corners
    turn = math.copysign(1.0, (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0))
    for a, b in ((0, 1), (1, 2), (2, 0)):
        ab = corners[b] - corners[a]
        far = np.minimum(far, _segment(x, y, corners[a], corners[b]))
        inside = np.minimum(inside, turn * (ab[0] * (y - corners[a][1]) - ab[1] * (x - corners[a][0])))
    return np.where(inside >= 0, -far, far)


def _paint(
    out: Frame,
    a: Points,
    b: Points,
    reach: float,
    distance: _Distance,
    colour: tuple[int, int, int],
    alpha: float,
) -> None:
    """Blend `colour` where `distance` is negative; the shape lies within `reach` of the segment a-b."""
    height, width = out.shape[:2]
    reach += 1.0
    low = np.floor(np.minimum(a, b) - reach)
    high = np.ceil(np.maximum(a, b) + reach)
    x0, y0 = (int(v) for v in np.clip(low, 0, (width, height)))
    x1, y1 = (int(v) + 1 for v in np.clip(high, -1, (width - 1, height - 1)))
    if x0 >= x1 or y0 >= y1:
        return
    # A long diagonal has a large box but touches few of its pixels: only those near the line go on.
    length = float(np.hypot(*(b - a)))
    row = np.arange(x0, x1, dtype=np.float64)
    column = np.arange(y0, y1, dtype=np.float64)[:, None]
    if length > 8 * reach:
        nx, ny = (a[1] - b[1]) / length, (b[0] - a[0]) / length
        ys, xs = np.nonzero(np.abs((row - a[0]) * nx + (column - a[1]) * ny) <= reach)
    else:
        ys, xs = (index.ravel() for index in np.indices((y1 - y0, x1 - x0)))
    coverage = np.clip(0.5 - distance(row[xs], column[ys, 0]), 0, 1) * alpha
    _blend(out, ys + y0, xs + x0, coverage, colour)


def _blend(
    out: Frame,
    ys: npt.NDArray[np.intp],
    xs: npt.NDArray[np.intp],
    alpha: npt.NDArray[np.floating],
    colour: tuple[int, int, int],
) -> None:
    old = out[ys, xs].astype(np.float32)
    out[ys, xs] = np.rint(old + (np.asarray(colour, np.float32) - old) * alpha[:, None].astype(np.float32))


# ---- checks and type -----------------------------------------------------------------------------


def _check_points(points: npt.ArrayLike, name: str, ndim: int) -> Points:
    try:
        array = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.zeros(1)
    if array.size == 0 and ndim == 2:
        array = np.zeros((0, 2))
    if array.ndim != ndim or array.shape[-1] != 2:
        shape = "[points, 2]" if ndim == 2 else "[steps, points, 2]"
        raise MediaError(f"{name} is not an array of (x, y) points; give numbers of shape {shape}.")
    if not np.isfinite(array).all():
        raise MediaError(f"{name} has a point that is not a finite number; give (x, y) in pixels.")
    return array


def _check_mask(mask: npt.ArrayLike, frame: Frame) -> Frame:
    array = np.asarray(mask)
    if array.shape != frame.shape[:2]:
        raise MediaError(
            f"movable_mask is {list(array.shape)} but the frame is {list(frame.shape[:2])}; give one value a pixel."
        )
    return np.where(array >= 0.5, np.uint8(255), np.uint8(0))


def _scaled_size(frame: Frame, factor: float) -> tuple[int, int]:
    if not (math.isfinite(factor) and factor > 0):
        raise MediaError(f"The scale is {factor}; give a number above 0.")
    height, width = (max(1, round(side * factor)) for side in frame.shape[:2])
    if height * width > _MAX_PIXELS:
        raise MediaError(f"A scale of {factor} makes {width}×{height} pixels of the picture; give a smaller one.")
    return height, width


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own embedded face, so that pictures look the same on every machine."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise MediaError("This Pillow cannot draw text; install a Pillow that was built with FreeType.")
    return font


def _plain(text: str) -> str:
    """`text` in printable ASCII, which is what the embedded face can draw."""
    swaps = str.maketrans({"×": "x", "→": "->", "–": "-", "—": "-", "…": "...", "’": "'"})
    folded = unicodedata.normalize("NFKD", text.translate(swaps))
    letters = (c for c in folded if not unicodedata.combining(c))
    return " ".join("".join(c if c.isascii() else "?" for c in letters).split())


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
