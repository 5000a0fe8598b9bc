"""mask_loss in Triton. What it computes: ``reference.mask_loss``.

Let D = feature − feature0. Four neighbouring cells span a quad of image pixels, in which U − U0 is the bilinear blend
of four D. With s(p) = weight · sign(U − U0) at a pixel, the gradient of a cell is Σ s(p)·(the cell's share of p), and
because the loss is homogeneous in D it is Σ D·gradient: it costs nothing per pixel. What remains per pixel and
channel is one blend, two comparisons, two selections and two sums, 7 instructions.

Two launches. ``mask_quads``, one program per run of ``BLOCK_W`` quads in one row and block of channels, walks each
quad's pixels once and writes the shares of the quads' upper and lower cells, float32 each, to two scratch maps; the
shares of the quad's right cells stay in registers for the next quad. ``mask_gradient`` adds the two maps, divides, and
writes the gradient; its first program of a session adds up the loss, in a fixed order.

At [1, 256, 128, 128] in float32, image 1024²: 268 M pixels × channels. 1.9 G lane instructions are about 65 µs of an
H200's 132 × 128 lanes at 1.75 GHz (half the picture movable: half of it). Memory: the floor is to read two maps and
write one, 50 MB, 10 µs at 4.8 TB/s; the two scratch maps add 67 MB, so memory is not what limits. The alternatives
are worse here: a program that owns cells instead of quads evaluates every pixel two to four times. The CPU's shortcut,
walking only quads of mixed signs, does not pay: 32 neighbouring channels share a warp, and in one of them the signs
are mixed nearly always. A quad whose pixels are all movable does pay: one scan of the mask skips it for all channels.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take Triton values; the launcher below is typed)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from ._shared import on_device

SCAN_ROWS = tl.constexpr(8)  # mask pixels looked at side by side
SCAN_COLUMNS = tl.constexpr(16)
PIXELS = 8  # of one quad's row, walked side by side, if it has so many
PARTIALS = tl.constexpr(512)  # partial sums read side by side


@triton.jit
def first_pixel(cell, cells, pixels):
    """The first image pixel whose source coordinate (p + 0.5)·cells/pixels − 0.5 is ≥ cell; pixels if none is.

    Exact, in integers: (2p + 1)·cells ≥ (2·cell + 1)·pixels. What lies before cell 0 belongs to it (the clamp).
    """
    first = tl.cdiv((2 * cell + 1) * pixels - cells, 2 * cells)
    return tl.where(cell <= 0, 0, tl.where(cell >= cells, pixels, tl.minimum(first, pixels)))


@triton.jit
def fraction_within(pixel, cell, scale, cells):
    """How far a pixel is from a cell to the next one, 0 … 1; 0 from the last cell on (its next one is itself)."""
    source = (tl.cast(pixel, tl.float32) + 0.5) * scale - 0.5
    source = tl.minimum(source, (cells - 1).to(tl.float32)) - tl.cast(cell, tl.float32)
    return tl.minimum(tl.maximum(source, 0.0), 1.0)


@triton.jit
def load_change(feature, feature0, place, place0, mask):
    """feature − feature0 of one cell, in float32."""
    value = tl.load(feature + place, mask=mask, other=0.0).to(tl.float32)
    return value - tl.load(feature0 + place0, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["h", "w", "height", "width"])
def mask_quads(
    feature,
    feature0,
    movable_mask,
    upper_shares,
    lower_shares,
    losses,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    stride0_b,
    stride0_c,
    stride0_h,
    stride0_w,
    mask_stride_b,
    mask_stride_h,
    mask_stride_w,
    channels,
    scale_x,
    scale_y,
    h,
    w,
    height,
    width,
    BLOCK_X: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    segments = tl.cdiv(w, BLOCK_W)
    batch = (tl.program_id(0) // (h * segments)).to(tl.int64)
    row = tl.program_id(0) // segments % h
    start = tl.program_id(0) % segments * BLOCK_W
    end = tl.minimum(start + BLOCK_W, w)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    present = channel < channels
    feature += batch * stride_b
    feature0 += batch * stride0_b
    movable_mask += batch * mask_stride_b
    upper, lower = channel * stride_c + row * stride_h, channel * stride_c + tl.minimum(row + 1, h - 1) * stride_h
    upper0, lower0 = channel * stride0_c + row * stride0_h, channel * stride0_c + tl.minimum(row + 1, h - 1) * stride0_h
    first_y, last_y = first_pixel(row, h, height), first_pixel(row + 1, h, height)

    # The quad left of the run is walked too, for what it gives to the run's first cells.
    first_column = tl.maximum(start - 1, 0)
    d00 = load_change(feature, feature0, upper + first_column * stride_w, upper0 + first_column * stride0_w, present)
    d01 = load_change(feature, feature0, lower + first_column * stride_w, lower0 + first_column * stride0_w, present)
    carried_upper = tl.zeros([BLOCK_C], tl.float32)
    carried_lower = tl.zeros([BLOCK_C], tl.float32)
    loss = tl.zeros([BLOCK_C], tl.float32)
    for column in range(first_column, end):
        right = tl.minimum(column + 1, w - 1)
        d10 = load_change(feature, feature0, upper + right * stride_w, upper0 + right * stride0_w, present)
        d11 = load_change(feature, feature0, lower + right * stride_w, lower0 + right * stride0_w, present)
        first_x, last_x = first_pixel(column, w, width), first_pixel(column + 1, w, width)

        heaviest = 0.0
        for top in range(first_y, last_y, SCAN_ROWS):
            for left in range(first_x, last_x, SCAN_COLUMNS):
                y = (top + tl.arange(0, SCAN_ROWS))[:, None]
                x = (left + tl.arange(0, SCAN_COLUMNS))[None, :]
                place = y * mask_stride_h + x * mask_stride_w
                movable = tl.load(movable_mask + place, mask=(y < last_y) & (x < last_x), other=1).to(tl.float32)
                heaviest = tl.maximum(heaviest, tl.max(tl.max(tl.abs(1.0 - movable), axis=1), axis=0))

        g00 = tl.zeros([BLOCK_C], tl.float32)
        g10 = tl.zeros([BLOCK_C], tl.float32)
        g01 = tl.zeros([BLOCK_C], tl.float32)
        g11 = tl.zeros([BLOCK_C], tl.float32)
        if heaviest > 0:
            left_step, right_step = d01 - d00, d11 - d10
            for left in range(first_x, last_x, BLOCK_X):
                x = left + tl.arange(0, BLOCK_X)
                fx = fraction_within(x, column, scale_x, w)[:, None]
                for y in range(first_y, last_y):
                    place = y * mask_stride_h + x * mask_stride_w
                    movable = tl.load(movable_mask + place, mask=x < last_x, other=1).to(tl.float32)
                    weight = (1.0 - movable)[:, None]
                    fy = fraction_within(y, row, scale_y, h)
                    left_change = tl.fma(left_step, fy, d00)
                    slope = tl.fma(right_step, fy, d10) - left_change
                    change = tl.fma(slope[None, :], fx, left_change[None, :])
                    signed = tl.where(change > 0, weight, tl.where(change < 0, -weight, 0.0))
                    to_right = tl.sum(signed * fx, axis=0)
                    to_left = tl.sum(signed, axis=0) - to_right
                    g00 = tl.fma(to_left, 1.0 - fy, g00)
                    g10 = tl.fma(to_right, 1.0 - fy, g10)
                    g01 = tl.fma(to_left, fy, g01)
                    g11 = tl.fma(to_right, fy, g11)
        if column >= start:
            loss += (d00 * g00 + d10 * g10) + (d01 * g01 + d11 * g11)
            place = ((batch * h + row) * w + column) * channels + channel
            tl.store(upper_shares + place, carried_upper + g00, mask=present)
            tl.store(lower_shares + place, carried_lower + g01, mask=present)
        carried_upper, carried_lower = g10, g11
        d00, d01 = d10, d11
    tl.store(losses + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(loss, axis=0))


@triton.jit(do_not_specialize=["h", "w", "loss_parts"])
def mask_gradient(
    upper_shares,
    lower_shares,
    losses,
    loss,
    grad,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    channels,
    terms,
    h,
    w,
    loss_parts,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    segments = tl.cdiv(w, BLOCK_W)
    batch = (tl.program_id(0) // (h * segments)).to(tl.int64)
    row = tl.program_id(0) // segments % h
    column = tl.program_id(0) % segments * BLOCK_W + tl.arange(0, BLOCK_W)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (column < w)[:, None] & (channel < channels)[None, :]
    place = (batch * h + row) * w * channels + (column * channels)[:, None] + channel[None, :]
    upper = tl.load(upper_shares + place, mask=mask, other=0.0)
    lower = tl.load(lower_shares + place - w * channels, mask=mask & (row > 0), other=0.0)
    target = grad + batch * stride_b + row * stride_h + (column * stride_w)[:, None] + (channel * stride_c)[None, :]
    tl.store(target, ((upper + lower) / terms).to(grad.dtype.element_ty), mask=mask)

    if (tl.program_id(0) % (h * segments) == 0) & (tl.program_id(1) == 0):
        total = tl.zeros([PARTIALS], tl.float32)
        for first in range(0, loss_parts, PARTIALS):
            part = first + tl.arange(0, PARTIALS)
            total += tl.load(losses + batch * loss_parts + part, mask=part < loss_parts, other=0.0)
        tl.store(loss + batch, tl.sum(total, axis=0) / terms)


def mask_loss(
    feature: Tensor, feature0: Tensor, movable_mask: Tensor, image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """See ``reference.mask_loss``; features are float32, bfloat16 or float16, the mask of any number type or bool."""
    batch, channels, h, w = feature.shape
    height, width = image_size
    if movable_mask.dtype == torch.bool:
        movable_mask = movable_mask.view(torch.uint8)
    loss = torch.empty(batch, dtype=torch.float32, device=feature.device)
    grad = torch.empty_like(feature)
    quads = configs.launch("mask_quads", channels, feature.device)
    gradient = configs.launch("mask_gradient", channels, feature.device)
    grid = (batch * h * triton.cdiv(w, quads.block), triton.cdiv(channels, quads.block_c))
    elements = batch * h * w * channels
    scratch = torch.empty(2 * elements + grid[0] * grid[1], dtype=torch.float32, device=feature.device)
    upper_shares, lower_shares, losses = scratch.split([elements, elements, grid[0] * grid[1]])
    with on_device(feature):
        mask_quads[grid](
            feature,
            feature0,
            movable_mask,
            upper_shares,
            lower_shares,
            losses,
            *feature.stride(),
            *feature0.stride(),
            *movable_mask.stride(),
            channels,
            w / width,
            h / height,
            h,
            w,
            height,
            width,
            BLOCK_X=min(PIXELS, configs.power_of_two(max(width // w, 1))),
            BLOCK_W=quads.block,
            BLOCK_C=quads.block_c,
            **quads.options(),
        )
        mask_gradient[batch * h * triton.cdiv(w, gradient.block), triton.cdiv(channels, gradient.block_c)](
            upper_shares,
            lower_shares,
            losses,
            loss,
            grad,
            *grad.stride(),
            channels,
            float(channels * height * width),
            h,
            w,
            grid[0] // max(batch, 1) * grid[1],
            BLOCK_W=gradient.block,
            BLOCK_C=gradient.block_c,
            **gradient.options(),
        )
    return loss, grad
