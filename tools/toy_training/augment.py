# SPDX-License-Identifier: Apache-2.0
"""Changes to rendered pictures, so that what is learned on them holds for a generator's pictures too."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 1.0  # pixels: a landmark nearer to the border than this, or beyond it, is not asked for


def _uniform(draw: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=draw)


def move(image: Tensor, points: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turns, scales and shifts: a drag takes heads to places that the renderer's own poses hardly reach.

    image: [B, 3, S, S].  points: [B, K, 2], (x, y) in its pixels.  Both are given back, moved alike.
    """
    n, size = image.shape[0], image.shape[-1]
    moved = (torch.rand(n, generator=draw) < 0.8).float()
    angle = moved * torch.randn(n, generator=draw) * 0.10
    scale = torch.exp(moved * torch.randn(n, generator=draw) * 0.07)
    shift = moved[:, None] * torch.randn(n, 2, generator=draw) * (7.0 / 64.0)  # of half a picture
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # [B, 2, 2]
    half = size / 2
    centred = (points + 0.5) / half - 1
    points = ((centred @ matrix.transpose(1, 2) + shift[:, None]) + 1) * half - 0.5
    inverse = torch.linalg.inv(matrix)
    theta = torch.cat([inverse, -(inverse @ shift[:, :, None])], dim=2)
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False), points


def degrade(image: Tensor, draw: torch.Generator) -> Tensor:
    """Blurs or sharpens, recolours, adds fine and coarse noise, and hides a small rectangle; [B, 3, S, S] in −1…1."""
    n, _, _, size = image.shape
    sigma = float(_uniform(draw, (1,), 0.5, 1.6))
    ticks = torch.arange(-4, 5).float()
    kernel = torch.exp(-0.5 * (ticks / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    blurred = F.conv2d(F.pad(image, (4, 4, 4, 4), mode="replicate"), kernel[:, :, None, :], groups=3)
    blurred = F.conv2d(blurred, kernel[:, :, :, None], groups=3)
    image = image + _uniform(draw, (n, 1, 1, 1), -0.7, 1.0) * (blurred - image)  # below 0 it sharpens

    gain = 1 + 0.12 * torch.randn(n, 1, 1, 1, generator=draw) + 0.06 * torch.randn(n, 3, 1, 1, generator=draw)
    offset = 0.10 * torch.randn(n, 1, 1, 1, generator=draw) + 0.05 * torch.randn(n, 3, 1, 1, generator=draw)
    image = image * gain + offset
    coarse = torch.randn(n, 3, size // 8, size // 8, generator=draw)
    coarse = F.interpolate(coarse, size=size, mode="bilinear")
    image = image + _uniform(draw, (n, 1, 1, 1), 0.0, 0.06) * coarse
    image = image + _uniform(draw, (n, 1, 1, 1), 0.0, 0.08) * torch.randn(image.shape, generator=draw)

    centre, reach = _uniform(draw, (n, 2, 1, 1, 1), 0, size), _uniform(draw, (n, 2, 1, 1, 1), 2, 7)
    x, y = torch.arange(size).float().reshape(1, 1, 1, size), torch.arange(size).float().reshape(1, 1, size, 1)
    inside = ((x - centre[:, 0]).abs() < reach[:, 0]) & ((y - centre[:, 1]).abs() < reach[:, 1])
    hidden = inside & (torch.rand(n, 1, 1, 1, generator=draw) < 0.4)
    colour = _uniform(draw, (n, 3, 1, 1), -1.0, 1.0)
    return torch.where(hidden, colour, image).clamp(-1.0, 1.0)


def visible(points: Tensor, size: int) -> Tensor:
    """[B, K] bool: which (x, y) of [B, K, 2] lie inside a picture of ``size`` pixels, with a margin."""
    return ((points >= MARGIN) & (points <= size - 1 - MARGIN)).all(dim=2)


def target_heat(points: Tensor, size: int, cells: int, sigma: float = 0.75) -> Tensor:
    """Gaussians around the points as distributions over cells: [B, K, 2] in pixels → [B, K, cells, cells]."""
    at = (points + 0.5) * (cells / size) - 0.5
    ticks = torch.arange(cells).float()
    gx, gy = (torch.exp(-0.5 * ((ticks - at[..., axis, None]) / sigma) ** 2) for axis in (0, 1))
    heat = gy[..., :, None] * gx[..., None, :]
    return heat / heat.sum(dim=(2, 3), keepdim=True).clamp_min(math.ulp(1.0))
