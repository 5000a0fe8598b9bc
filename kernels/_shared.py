"""What the Triton kernels share: rounding, the virtual upsampling, the geometry of a drag.

Each function is the one of ``reference.py`` that its docstring names. subtle: a launch passes
``enable_fp_fusion=False`` (``fuse`` in the launch table). Left to itself the compiler contracts a·b + c into one
rounding where it likes, not everywhere alike, and then two ways to the same pixel differ by a rounding error, whose
sign is a gradient. Where a fused multiply-add is wanted it is written, as ``tl.fma``. mask_loss, where only one way
leads to a pixel, may fuse.

An offset inside one feature map is 32 bits wide: C·h·w (counted with its strides) must stay below 2³¹ elements.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
import triton
import triton.language as tl

# Beyond any image, and small enough that whatever is added to it stays an exact float32 and far from int32's end.
FARTHEST = tl.constexpr(1 << 22)


def on_device(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@triton.jit
def rounded_pixel(coordinate):
    """torch.round(coordinate) as int32: half to even. What is NaN or beyond ±FARTHEST becomes ±FARTHEST."""
    held = tl.where(coordinate > -FARTHEST, coordinate, -1.0 * FARTHEST)  # NaN compares false
    held = tl.where(held < FARTHEST, held, 1.0 * FARTHEST)
    floor = tl.floor(held)
    rest = held - floor  # exact
    whole = floor.to(tl.int32)
    up = (rest > 0.5) | ((rest == 0.5) & ((whole & 1) == 1))
    return whole + up.to(tl.int32)


@triton.jit
def window_start(pixel, reach, side, pixels):
    """The first pixel of a window around a pixel, moved so that its ``side`` ≤ ``pixels`` pixels lie in the image."""
    return tl.minimum(tl.maximum(pixel - reach, 0), pixels - side)


@triton.jit
def blend(a, b, fraction):
    """a + fraction·(b − a): exactly a where a = b (reference.blend)."""
    return tl.fma(fraction, b - a, a)


@triton.jit
def source_cells(pixel, scale, cells):
    """One axis of reference.source_cells: (lower, upper, fraction) of int32 image pixels; scale is cells per pixel.

    Any pixel, also outside the image, gives cells that exist.
    """
    source = (pixel.to(tl.float32) + 0.5) * scale - 0.5
    source = tl.minimum(tl.maximum(source, 0.0), (cells - 1).to(tl.float32))
    lower = source.to(tl.int32)  # not negative, so this is the floor
    return lower, tl.minimum(lower + 1, cells - 1), source - lower.to(tl.float32)


@triton.jit
def cell_weight(pixel, cell, scale, cells, pixels):
    """How much a cell counts in U at image pixels, along one axis; 0 for pixels outside 0 … pixels − 1."""
    lower, upper, fraction = source_cells(pixel, scale, cells)
    weight = tl.where(lower == cell, 1.0 - fraction, 0.0) + tl.where(upper == cell, fraction, 0.0)
    return tl.where((pixel >= 0) & (pixel < pixels), weight, 0.0)


@triton.jit
def shifted_weight(pixel, fraction, cell, scale, cells, pixels):
    """The same in U sampled between two pixels, ``fraction`` of the way from ``pixel`` to the next one."""
    here = cell_weight(pixel, cell, scale, cells, pixels)
    after = cell_weight(pixel + 1, cell, scale, cells, pixels)
    return (1.0 - fraction) * here + fraction * after


@triton.jit
def upsampled_at(cells, x, y, keep, channel, channels, strides, sizes, scales):
    """reference.upsampled_at: U at int32 image pixels x, y [P] for channels [K] → [P, K] float32.

    ``cells`` points at one session's feature map; strides are (C, h, w)'s, sizes (h, w, H, W), scales cells per pixel
    in x and y. Pixels outside the image, and those not kept, give zeros.
    """
    stride_c, stride_h, stride_w = strides
    h, w, height, width = sizes
    scale_x, scale_y = scales
    x0, x1, fx = source_cells(x, scale_x, w)
    y0, y1, fy = source_cells(y, scale_y, h)
    inside = keep & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    mask = inside[:, None] & (channel < channels)[None, :]
    columns = (channel * stride_c)[None, :]
    row0, row1 = y0 * stride_h, y1 * stride_h
    x0, x1 = x0 * stride_w, x1 * stride_w
    v00 = tl.load(cells + (row0 + x0)[:, None] + columns, mask=mask, other=0.0).to(tl.float32)
    v10 = tl.load(cells + (row0 + x1)[:, None] + columns, mask=mask, other=0.0).to(tl.float32)
    v01 = tl.load(cells + (row1 + x0)[:, None] + columns, mask=mask, other=0.0).to(tl.float32)
    v11 = tl.load(cells + (row1 + x1)[:, None] + columns, mask=mask, other=0.0).to(tl.float32)
    fx, fy = fx[:, None], fy[:, None]
    return blend(blend(v00, v10, fx), blend(v01, v11, fx), fy)


@triton.jit
def direction(handle_x, handle_y, target_x, target_y):
    """From handle to target: (unit vector x, y, whether the distance is above 1 and finite); else the vector is 0."""
    dx, dy = target_x - handle_x, target_y - handle_y
    length = tl.sqrt_rn(dx * dx + dy * dy)
    far = (length > 1.0) & (length < float("inf"))
    unit_x, unit_y = tl.div_rn(dx, length + 1e-7), tl.div_rn(dy, length + 1e-7)
    return tl.where(far, unit_x, 0.0), tl.where(far, unit_y, 0.0), far
