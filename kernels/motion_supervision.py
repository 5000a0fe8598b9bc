"""motion_supervision in Triton. What it computes: ``reference.motion_supervision``.

The gradient of the shifted sample is separable: with S(p) the sign of U(p + d) − U(p) on the patch, cell (i, j)
receives Σ_y k_y(i) Σ_x k_x(j) S(x, y), where k are the bilinear weights of the shift and of the upsampling together.
Two launches, no atomics:

``supervision_rows``, one program per point, run of ``BLOCK_X`` pixels in one row of its window, and block of channels:
the signs of its pixels in registers, the inner sum (over x) into a scratch of float32 [B, N, slots, columns, C], its
share of the loss and its count of pixels beside it. A patch of 15×15 pixels (1024², r1 = 6) makes 120 programs a point
at C = 256 and 92 KB of scratch.

``supervision_gradient``, one program per run of ``BLOCK_W`` cells in one row of the map and block of channels, writes
every element of the gradient once: zeros, unless some point's patch reaches its cells. Which points do is one test of
32 points side by side; for those that do it adds the outer sum (over y), point after point in their order, so that
the result has the same bits every time. The map's first program also adds up the loss. Writing the map (C·h·w
elements) is the memory floor of the op, and all that most of the programs do.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take Triton values; the launcher below is typed)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from ._shared import (
    blend,
    direction,
    on_device,
    rounded_pixel,
    shifted_weight,
    source_cells,
    upsampled_at,
    window_start,
)

POINTS = tl.constexpr(32)  # points tested side by side: the bits of an int32
SIZES = ["points_each", "h", "w", "height", "width", "r1", "side_x", "side_y", "x_blocks", "columns"]
WHOLE = ["whole_height", "whole_width"]
PARTIALS = tl.constexpr(8)  # partial sums read side by side: more of them cost every program registers


@triton.jit
def load_drag(handle_points, target_points, active, point, mask, reach, side_x, side_y, height, width):
    """A drag: (first pixel x, y of the window around its patch, d's whole pixels x, y and fractions x, y, takes part).

    point may be one or many; those that are masked take no part.
    """
    handle_x = tl.load(handle_points + 2 * point, mask=mask, other=0.0).to(tl.float32)
    handle_y = tl.load(handle_points + 2 * point + 1, mask=mask, other=0.0).to(tl.float32)
    target_x = tl.load(target_points + 2 * point, mask=mask, other=0.0).to(tl.float32)
    target_y = tl.load(target_points + 2 * point + 1, mask=mask, other=0.0).to(tl.float32)
    dx, dy, far = direction(handle_x, handle_y, target_x, target_y)
    left = window_start(rounded_pixel(handle_x), reach, side_x, width)
    top = window_start(rounded_pixel(handle_y), reach, side_y, height)
    whole_x, whole_y = tl.floor(dx), tl.floor(dy)
    takes_part = far & (tl.load(active + point, mask=mask, other=0) != 0)
    return left, top, whole_x.to(tl.int32), whole_y.to(tl.int32), dx - whole_x, dy - whole_y, takes_part


@triton.jit
def stretched_square(pixel, pixels, handle):
    """(pixel·W/(W − 1) − handle)² in float64, operation by operation as in reference.patch_mask."""
    stretched = pixel.to(tl.float64) * pixels.to(tl.float64) / tl.maximum(pixels - 1, 1).to(tl.float64)
    return (stretched - handle.to(tl.float64)) * (stretched - handle.to(tl.float64))


@triton.jit(do_not_specialize=[*SIZES, *WHOLE])
def supervision_rows(
    feature,
    handle_points,
    target_points,
    active,
    crop_origin,
    whole_height,
    whole_width,
    rows,
    losses,
    counts,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    channels,
    points_each,
    scale_x,
    scale_y,
    h,
    w,
    height,
    width,
    r1,
    side_x,
    side_y,
    x_blocks,
    columns,
    CROPS: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    slots = side_y * x_blocks
    point = tl.program_id(0) // slots
    slot = tl.program_id(0) % slots
    left, top, whole_x, whole_y, fx, fy, takes_part = load_drag(
        handle_points, target_points, active, point, point >= 0, r1 + 1, side_x, side_y, height, width
    )
    if takes_part == 0:
        return

    # The patch: which of this run of pixels belong to the stretched circle.
    run = left + slot % x_blocks * BLOCK_X
    x = run + tl.arange(0, BLOCK_X)
    y = top + slot // x_blocks + tl.zeros([BLOCK_X], tl.int32)
    handle_x, handle_y = tl.load(handle_points + 2 * point), tl.load(handle_points + 2 * point + 1)
    from_x, from_y, circle_width, circle_height = 0, 0, width, height
    if CROPS:  # the circle depends on where in the whole image a pixel lies
        batch = point // points_each
        from_x = tl.load(crop_origin + 2 * batch).to(tl.int32)
        from_y = tl.load(crop_origin + 2 * batch + 1).to(tl.int32)
        circle_width, circle_height = whole_width, whole_height
        handle_x, handle_y = handle_x + from_x.to(tl.float32), handle_y + from_y.to(tl.float32)
    square_x = stretched_square(x + from_x, circle_width, handle_x)
    square_y = stretched_square(y + from_y, circle_height, handle_y)
    member = (x < left + side_x) & (square_x + square_y < r1.to(tl.float64) * r1.to(tl.float64))

    # Its loss and its signs.
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    cells = feature + (point // points_each).to(tl.int64) * stride_b
    strides, sizes, scales = (stride_c, stride_h, stride_w), (h, w, height, width), (scale_x, scale_y)
    moved_x, moved_y = x + whole_x, y + whole_y
    fixed = upsampled_at(cells, x, y, member, channel, channels, strides, sizes, scales)
    v00 = upsampled_at(cells, moved_x, moved_y, member, channel, channels, strides, sizes, scales)
    v10 = upsampled_at(cells, moved_x + 1, moved_y, member, channel, channels, strides, sizes, scales)
    v01 = upsampled_at(cells, moved_x, moved_y + 1, member, channel, channels, strides, sizes, scales)
    v11 = upsampled_at(cells, moved_x + 1, moved_y + 1, member, channel, channels, strides, sizes, scales)
    difference = blend(blend(v00, v10, fx), blend(v01, v11, fx), fy) - fixed
    sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
    loss = tl.sum(tl.sum(tl.abs(difference), axis=1), axis=0)
    tl.store(losses + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), loss)
    if tl.program_id(1) == 0:
        tl.store(counts + tl.program_id(0), tl.sum(member.to(tl.float32), axis=0))

    # The inner half of the adjoint: each column of cells under the run takes its share of the signs.
    run += whole_x
    first, last = source_cells(run, scale_x, w)[0], source_cells(run + BLOCK_X, scale_x, w)[1]
    place = rows + tl.program_id(0).to(tl.int64) * columns * channels + channel
    for column in range(first, last + 1):
        weight = shifted_weight(moved_x, fx, column, scale_x, w, width)
        share = tl.sum(sign * weight[:, None], axis=0)
        tl.store(place + (column - first) * channels, share, mask=channel < channels)


@triton.jit
def row_sums(values, length, keep, lanes):
    """Sums of the rows of values [lanes, length], in a fixed order; rows that are not kept are not read and give 0."""
    total = tl.zeros([POINTS], tl.float32)
    for first in range(0, length, PARTIALS):
        entry = first + tl.arange(0, PARTIALS)
        mask = keep[:, None] & (entry < length)[None, :]
        total += tl.sum(tl.load(values + lanes[:, None] * length + entry[None, :], mask=mask, other=0.0), axis=1)
    return total


@triton.jit(do_not_specialize=SIZES)
def supervision_gradient(
    handle_points,
    target_points,
    active,
    rows,
    losses,
    counts,
    loss,
    grad,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    channels,
    points_each,
    scale_x,
    scale_y,
    h,
    w,
    height,
    width,
    r1,
    side_x,
    side_y,
    x_blocks,
    columns,
    loss_parts,
    BLOCK_X: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    segments = tl.cdiv(w, BLOCK_W)
    batch = tl.program_id(0) // (h * segments)
    row = tl.program_id(0) // segments % h
    first_column = tl.program_id(0) % segments * BLOCK_W
    column = first_column + tl.arange(0, BLOCK_W)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    lane = tl.arange(0, POINTS)
    slots = side_y * x_blocks

    total = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    for first_point in range(0, points_each, POINTS):
        # Which of 32 points reach these cells, as the bits of one number (the last is its sign, and shifts down too).
        points = batch * points_each + first_point + lane
        present = first_point + lane < points_each
        left, top, whole_x, whole_y, _fx, _fy, takes_part = load_drag(
            handle_points, target_points, active, points, present, r1 + 1, side_x, side_y, height, width
        )
        left, top = left + whole_x, top + whole_y
        first_x, last_x = source_cells(left, scale_x, w)[0], source_cells(left + side_x, scale_x, w)[1]
        first_y, last_y = source_cells(top, scale_y, h)[0], source_cells(top + side_y, scale_y, h)[1]
        near = (row >= first_y) & (row <= last_y) & (first_column + BLOCK_W > first_x) & (first_column <= last_x)
        bits = tl.sum((takes_part & near).to(tl.int32) << lane, axis=0)
        if bits != 0:
            pixels = row_sums(counts + (batch * points_each + first_point) * slots, slots, takes_part, lane)
            terms = tl.maximum(pixels, 1.0) * channels
            for k in range(POINTS):
                if (bits >> k) & 1 != 0:
                    point = batch * points_each + first_point + k
                    x, y, by_x, by_y, _part, fraction, _takes_part = load_drag(
                        handle_points, target_points, active, point, point >= 0, r1 + 1, side_x, side_y, height, width
                    )
                    scale = 1.0 / tl.sum(tl.where(lane == k, terms, 0.0), axis=0)
                    for slot in range(slots):
                        run = x + by_x + slot % x_blocks * BLOCK_X
                        weight = shifted_weight(y + by_y + slot // x_blocks, fraction, row, scale_y, h, height) * scale
                        first = source_cells(run, scale_x, w)[0]
                        last = source_cells(run + BLOCK_X, scale_x, w)[1]
                        reached = (column >= first) & (column <= last)
                        place = rows + (point * slots + slot).to(tl.int64) * columns * channels
                        share = tl.load(
                            place + ((column - first) * channels)[:, None] + channel[None, :],
                            mask=reached[:, None] & (channel < channels)[None, :],
                            other=0.0,
                        )
                        total = tl.fma(share, weight, total)
    place = grad + batch.to(tl.int64) * stride_b + row * stride_h
    tl.store(
        place + (column * stride_w)[:, None] + (channel * stride_c)[None, :],
        total.to(grad.dtype.element_ty),
        mask=(column < w)[:, None] & (channel < channels)[None, :],
    )

    if (row == 0) & (first_column == 0) & (tl.program_id(1) == 0):
        loss_sum = 0.0
        for first_point in range(0, points_each, POINTS):
            points = batch * points_each + first_point + lane
            present = first_point + lane < points_each
            takes_part = load_drag(
                handle_points, target_points, active, points, present, r1 + 1, side_x, side_y, height, width
            )[6]
            first_entry = (batch * points_each + first_point) * slots
            pixels = row_sums(counts + first_entry, slots, takes_part, lane)
            change = row_sums(losses + first_entry * loss_parts, slots * loss_parts, takes_part, lane)
            loss_sum += tl.sum(change / (tl.maximum(pixels, 1.0) * channels), axis=0)
        tl.store(loss + batch, loss_sum)


def motion_supervision(
    feature: Tensor,
    handle_points: Tensor,
    target_points: Tensor,
    active: Tensor,
    r1: int,
    image_size: tuple[int, int],
    crop_origin: Tensor | None = None,
    whole_size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``reference.motion_supervision``; features are float32, bfloat16 or float16."""
    batch, channels, h, w = feature.shape
    height, width = image_size
    count = handle_points.shape[1]
    handle_points, target_points = handle_points.contiguous(), target_points.contiguous()
    active = active.contiguous().view(torch.uint8)
    loss = torch.empty(batch, dtype=torch.float32, device=feature.device)
    grad = torch.empty_like(feature)

    first = configs.launch("supervision_rows", channels, feature.device)
    second = configs.launch("supervision_gradient", channels, feature.device)
    # The window around a patch: the stretched circle can reach one pixel beyond the radius, the image is all there is.
    side_x, side_y = min(2 * r1 + 3, width), min(2 * r1 + 3, height)
    x_blocks = triton.cdiv(side_x, first.block)
    slots = side_y * x_blocks
    channel_blocks = triton.cdiv(channels, first.block_c)
    # BLOCK_X + 1 neighbouring pixels lie over so many columns: the span, rounded up, and its two ends; rounding, one.
    columns = min(w, int(first.block * w / width) + 4)
    scratch = torch.empty(
        batch * count * slots * (columns * channels + channel_blocks + 1), dtype=torch.float32, device=feature.device
    )
    rows, losses, counts = scratch.split(
        [batch * count * slots * each for each in (columns * channels, channel_blocks, 1)]
    )
    geometry = (channels, count, w / width, h / height, h, w, height, width, r1, side_x, side_y, x_blocks, columns)
    with on_device(feature):
        supervision_rows[batch * count * slots, channel_blocks](
            feature,
            handle_points,
            target_points,
            active,
            active if crop_origin is None else crop_origin.contiguous(),  # what is absent is not read
            *(whole_size or image_size),
            rows,
            losses,
            counts,
            *feature.stride(),
            *geometry,
            CROPS=crop_origin is not None,
            BLOCK_X=first.block,
            BLOCK_C=first.block_c,
            **first.options(),
        )
        supervision_gradient[batch * h * triton.cdiv(w, second.block), triton.cdiv(channels, second.block_c)](
            handle_points,
            target_points,
            active,
            rows,
            losses,
            counts,
            loss,
            grad,
            *grad.stride(),
            *geometry,
            channel_blocks,
            BLOCK_X=first.block,
            BLOCK_W=second.block,
            BLOCK_C=second.block_c,
            **second.options(),
        )
    return loss, grad
