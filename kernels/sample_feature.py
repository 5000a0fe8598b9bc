"""sample_feature in Triton. What it computes: ``reference.sample_feature``.

One launch, one program per point and block of channels. A point reads four cells of C channels, so the launch itself
is the cost.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take Triton values; the launcher below is typed)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from ._shared import on_device, rounded_pixel, upsampled_at


@triton.jit(do_not_specialize=["points_each", "h", "w", "height", "width"])
def sample(
    feature,
    points,
    out,
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
    BLOCK_C: tl.constexpr,
):
    point = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    one = tl.arange(0, 1)
    x = rounded_pixel(tl.load(points + 2 * point + one).to(tl.float32))
    y = rounded_pixel(tl.load(points + 2 * point + 1 + one).to(tl.float32))
    cells = feature + (point // points_each).to(tl.int64) * stride_b
    strides, sizes, scales = (stride_c, stride_h, stride_w), (h, w, height, width), (scale_x, scale_y)
    values = upsampled_at(cells, x, y, one == 0, channel, channels, strides, sizes, scales)
    place = out + point.to(tl.int64) * channels + one[:, None] + channel[None, :]
    tl.store(place, values, mask=(channel < channels)[None, :])


def sample_feature(feature: Tensor, points: Tensor, image_size: tuple[int, int]) -> Tensor:
    """See ``reference.sample_feature``; features are float32, bfloat16 or float16."""
    batch, channels, h, w = feature.shape
    height, width = image_size
    count = points.shape[1]
    out = torch.empty(batch, count, channels, dtype=torch.float32, device=feature.device)
    row = configs.launch("sample", channels, feature.device)
    with on_device(feature):
        sample[batch * count, triton.cdiv(channels, row.block_c)](
            feature,
            points.contiguous(),
            out,
            *feature.stride(),
            channels,
            count,
            w / width,
            h / height,
            h,
            w,
            height,
            width,
            BLOCK_C=row.block_c,
            **row.options(),
        )
    return out
