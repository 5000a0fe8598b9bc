"""Brush strokes → the movable region. web/strokes.js paints the same pixels in the page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np

from . import protocol
from .errors import DragError
from .protocol import ProtocolError

MAX_PAINTED = 64  # how many times over strokes may paint the whole picture
ROW_COST = 16  # pixels of a mask that are painted in the time that a row of a line takes, about
LEAST_RADIUS = math.sqrt(0.5)  # pixels: as far as a point can be from the nearest centre of a pixel
TIE = 1e-6  # pixels: a centre that lies on the edge is inside, however its distance was rounded
ROWS_AT_ONCE = 1 << 15

Segment = tuple[tuple[float, float], tuple[float, float]]


def stroke_mask(message: protocol.Mask, present: np.ndarray | None, image_size: tuple[int, int]) -> np.ndarray | None:
    """The movable region [H, W] bool, or None = everything: strokes painted in order onto what the message says.

    A stroke covers the pixels whose centres are within its radius of its line, and at least the nearest one of each
    point in the picture. Raises ProtocolError for what costs too much, DragError if nothing may change.
    """
    if message.strokes is None:
        return None
    height, width = image_size
    # What lies outside the picture is neither drawn nor charged: a line to the horizon has as many rows.
    lines = [segments(stroke, image_size) for stroke in message.strokes]
    painted = sum(cost(within, stroke.radius, image_size) for stroke, within in zip(message.strokes, lines))
    if painted > MAX_PAINTED * height * width:
        raise ProtocolError("limit", "These strokes paint too much; use fewer points or a smaller radius.", message.id)
    if message.base == "present" and present is not None:
        mask = present.astype(bool)
    else:
        mask = np.full(image_size, message.base != "fixed")
    for stroke, within in zip(message.strokes, lines):
        paint(mask, within, stroke.radius, stroke.movable)
    if not mask.any():
        raise DragError("Nothing may change with this mask; leave something movable.")
    return mask


def segments(stroke: protocol.Stroke, image_size: tuple[int, int]) -> list[Segment]:
    """The lines of a stroke, as far as they can be seen: clipped to the picture and a radius around it. A single point
    is a line to itself."""
    height, width = image_size
    edge = stroke.radius + 1
    box = (-edge, -edge, width + edge, height + edge)
    ends = itertools.pairwise(stroke.points if len(stroke.points) > 1 else stroke.points * 2)
    found = (clipped(start, end, box) for start, end in ends)
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


def cost(lines: list[Segment], radius: float, image_size: tuple[int, int]) -> float:
    """Pixels that could be painted in the time that ``paint`` takes, about: of the rows from the first to the last, and
    those of each line once more."""
    height, width = image_size
    if not lines:
        return 0.0
    rows = sum(min(abs(end[1] - start[1]) + 2 * radius + 1, height) for start, end in lines)
    heights = [y for line in lines for _, y in line]
    return ROW_COST * rows + width * min(max(heights) - min(heights) + 2 * radius + 1, height)


def paint(mask: np.ndarray, lines: Iterable[Segment], radius: float, value: bool) -> None:
    """Sets the pixels of mask, [H, W] bool, whose centres are within the radius of one of the lines."""
    height, width = mask.shape
    ends = np.array(list(lines), dtype=np.float64).reshape(-1, 4)
    if not len(ends):
        return
    reach = max(radius, LEAST_RADIUS) + TIE
    tops = np.clip(np.ceil(np.minimum(ends[:, 1], ends[:, 3]) - reach), 0, height).astype(np.int64)
    bottoms = np.clip(np.floor(np.maximum(ends[:, 1], ends[:, 3]) + reach) + 1, 0, height).astype(np.int64)
    first, last = int(tops.min()), int(bottoms.max())
    # How many lines begin to cover a row at this pixel, less those that no longer do: summed up, how many do.
    changes = np.zeros((max(last - first, 0), width + 1), dtype=np.int16)  # the protocol has fewer lines than that
    batch = max(ROWS_AT_ONCE // height, 1)
    for at in range(0, len(ends), batch):
        here = slice(at, at + batch)
        counts = np.maximum(bottoms[here] - tops[here], 0)
        which = np.repeat(np.arange(len(counts)), counts)
        rows = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + tops[here][which]
        left, right = spans(ends[here][which], rows, reach)
        begins = np.clip(np.ceil(left), 0, width).astype(np.int64)
        stops = np.clip(np.floor(right) + 1, 0, width).astype(np.int64)
        some = stops > begins
        np.add.at(changes, (rows[some] - first, begins[some]), 1)
        np.add.at(changes, (rows[some] - first, stops[some]), -1)
    np.cumsum(changes, axis=1, out=changes)
    np.copyto(mask[first:last], value, where=changes[:, :width] > 0)


def spans(ends: np.ndarray, rows: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Where a row enters and leaves what is within reach of a line: ends [N, 4] and rows [N] → left, right [N] (left >
    right if it never does). Convex, so one span: of the discs around both ends and the rectangle between them."""
    ax, ay, bx, by = ends.T
    dx, dy = bx - ax, by - ay
    length = np.sqrt(dx * dx + dy * dy)
    left, right = np.full(len(rows), np.inf), np.full(len(rows), -np.inf)

    def widen(low: np.ndarray, high: np.ndarray) -> None:
        seen = low <= high  # False for NaN
        np.copyto(left, np.minimum(left, low), where=seen)
        np.copyto(right, np.maximum(right, high), where=seen)

    with np.errstate(divide="ignore", invalid="ignore"):
        for x, y in ((ax, ay), (bx, by)):
            half = np.sqrt(reach * reach - (rows - y) ** 2)  # NaN beyond the disc
            widen(x - half, x + half)
        ux, uy, v = dx / length, dy / length, rows - ay  # NaN for a point: there is no rectangle
        along = between(-v * uy, length - v * uy, ux)
        across = between(v * ux - reach, v * ux + reach, uy)
        widen(ax + np.maximum(along[0], across[0]), ax + np.minimum(along[1], across[1]))
    return left, right


def between(low: np.ndarray, high: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The u with low ≤ u · slope ≤ high; with slope 0 that is any or none."""
    one, other = low / slope, high / slope
    level = np.where((low <= 0) & (high >= 0), np.inf, -np.inf)
    flat = slope == 0
    return np.where(flat, -level, np.minimum(one, other)), np.where(flat, level, np.maximum(one, other))
