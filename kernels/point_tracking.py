"""point_tracking in Triton. What it computes: ``reference.point_tracking``.

Two launches. ``tracking_search``: one program per block of window pixels (linear, row-major) finds the block's first
minimum; ``tracking_choice``: one program per point takes the first minimum of its blocks. The window at the default
settings, 49×49 pixels at 1024², reads 8×8 cells of C channels, which the first-level cache keeps: the work is
2401·C blends, spread over 76 programs a point. An inactive point's programs return at once.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take Triton values; the launcher below is typed)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from ._shared import on_device, rounded_pixel, upsampled_at, window_start


@triton.jit(do_not_specialize=["points_each", "h", "w", "height", "width", "r2", "side_x", "side_y", "blocks"])
def tracking_search(
    feature,
    reference_feature,
    handle_points,
    active,
    distances,
    indices,
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
    r2,
    side_x,
    side_y,
    blocks,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    point = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    if tl.load(active + point) == 0:
        return
    handle_x = rounded_pixel(tl.load(handle_points + 2 * point).to(tl.float32))
    handle_y = rounded_pixel(tl.load(handle_points + 2 * point + 1).to(tl.float32))
    index = block * BLOCK + tl.arange(0, BLOCK)
    x = window_start(handle_x, r2, side_x, width) + index % side_x
    y = window_start(handle_y, r2, side_y, height) + index // side_x
    keep = (index < side_x * side_y) & (tl.abs(x - handle_x) <= r2) & (tl.abs(y - handle_y) <= r2)
    cells = feature + (point // points_each).to(tl.int64) * stride_b

    strides, sizes, scales = (stride_c, stride_h, stride_w), (h, w, height, width), (scale_x, scale_y)
    squares = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    for first in range(0, channels, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        values = upsampled_at(cells, x, y, keep, channel, channels, strides, sizes, scales)
        place = reference_feature + point.to(tl.int64) * channels + channel
        difference = values - tl.load(place, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
        squares = tl.fma(difference, difference, squares)
    distance = tl.sqrt_rn(tl.sum(squares, axis=1))
    # As argmin has it, a NaN is the least of all; here it travels as −1.
    distance = tl.where(distance >= 0.0, distance, -1.0)
    least, at = tl.min(tl.where(keep, distance, float("inf")), axis=0, return_indices=True)
    tl.store(distances + tl.program_id(0), least)
    tl.store(indices + tl.program_id(0), block * BLOCK + at)


@triton.jit(do_not_specialize=["height", "width", "r2", "side_x", "side_y", "blocks"])
def tracking_choice(
    handle_points,
    active,
    distances,
    indices,
    moved,
    distance,
    height,
    width,
    r2,
    side_x,
    side_y,
    blocks,
    BLOCK: tl.constexpr,
):
    point = tl.program_id(0)
    handle_x = tl.load(handle_points + 2 * point).to(tl.float32)
    handle_y = tl.load(handle_points + 2 * point + 1).to(tl.float32)
    shortest = 0.0
    if tl.load(active + point) != 0:
        shortest = float("inf")
        nearest = -1
        for first in range(0, blocks, BLOCK):
            block = first + tl.arange(0, BLOCK)
            known = tl.load(distances + point * blocks + block, mask=block < blocks, other=float("inf"))
            least, at = tl.min(known, axis=0, return_indices=True)
            if least < shortest:  # strictly: an earlier block keeps a tie
                shortest = least
                nearest = tl.load(indices + point * blocks + first + at)
        if nearest >= 0:  # else the window lies outside the image: the handle stays, infinitely far
            x = window_start(rounded_pixel(handle_x), r2, side_x, width) + nearest % side_x
            y = window_start(rounded_pixel(handle_y), r2, side_y, height) + nearest // side_x
            handle_x, handle_y = x.to(tl.float32), y.to(tl.float32)
    tl.store(moved + 2 * point, handle_x)
    tl.store(moved + 2 * point + 1, handle_y)
    tl.store(distance + point, tl.where(shortest < 0.0, float("nan"), shortest))


def point_tracking(
    feature: Tensor,
    reference_feature: Tensor,
    handle_points: Tensor,
    active: Tensor,
    r2: int,
    image_size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """See ``reference.point_tracking``; features are float32, bfloat16 or float16."""
    batch, channels, h, w = feature.shape
    height, width = image_size
    count = handle_points.shape[1]
    handle_points, active = handle_points.contiguous(), active.contiguous().view(torch.uint8)
    moved = torch.empty(batch, count, 2, dtype=torch.float32, device=feature.device)
    distance = torch.empty(batch, count, dtype=torch.float32, device=feature.device)
    search = configs.launch("tracking_search", channels, feature.device)
    choice = configs.launch("tracking_choice", 1, feature.device)
    side_x, side_y = min(2 * r2 + 1, width), min(2 * r2 + 1, height)
    blocks = triton.cdiv(side_x * side_y, search.block)
    distances = torch.empty(batch * count * blocks, dtype=torch.float32, device=feature.device)
    indices = torch.empty(batch * count * blocks, dtype=torch.int32, device=feature.device)
    with on_device(feature):
        tracking_search[(batch * count * blocks,)](
            feature,
            reference_feature.contiguous(),
            handle_points,
            active,
            distances,
            indices,
            *feature.stride(),
            channels,
            count,
            w / width,
            h / height,
            h,
            w,
            height,
            width,
            r2,
            side_x,
            side_y,
            blocks,
            BLOCK=search.block,
            BLOCK_C=search.block_c,
            **search.options(),
        )
        tracking_choice[(batch * count,)](
            handle_points,
            active,
            distances,
            indices,
            moved,
            distance,
            height,
            width,
            r2,
            side_x,
            side_y,
            blocks,
            BLOCK=choice.block,
            **choice.options(),
        )
    return moved, distance
