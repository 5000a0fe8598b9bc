# SPDX-License-Identifier: Apache-2.0
"""Features that can be tracked: the nearest feature in another pose of a head is that of the same place on it.

A drag follows its handle by the nearest feature in a small window.  Here that search is made differentiable: the
windows' distances are logits, the truth is where the renderer's geometry has the place in the other picture.  Fur has
no texture of its own, so cheeks and chins are only found if features tell where on the head they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import toy_scene
from torch import Tensor

from draggan_fast.generator import normalize_second_moment

PLACES = 24  # random places on the front of the head, beside the landmarks, that each pair is asked for
FRONT = ((-0.75, 0.75), (-0.85, 0.75))  # local x and y that they come from, head units
POSE, SHAPE = 0.8, 0.35  # standard deviations by which the two of a pair differ: of yaw … scale, and of all else
LEAST_PSI = 0.5
REACH = 6  # pixels of 128: half the side of the window that is searched
SPREAD = 1.0  # pixels of 128: how exactly a place is known (the generator puts landmarks about a pixel off)
TEMPERATURE = 0.15  # of a window's mean squared distance


class Pairs(NamedTuple):
    """n pairs: latents [2n, 72], psi [2n, 1], landmarks [2n, 21, 2] and landmarks and places alike, points
    [2n, 21 + PLACES, 2], in pixels; rows 2k and 2k + 1 are one animal in two poses."""

    latents: Tensor
    psi: Tensor
    landmarks: Tensor
    points: Tensor


class PairsOfAnimals:
    """Endless pairs, drawn by ``draw``; only geometry is computed, no picture."""

    def __init__(self, size: int, draw: torch.Generator, device: torch.device) -> None:
        self.size, self.draw, self.device = size, draw, device
        spread = torch.full((toy_scene.LATENT_DIM,), SHAPE)
        poses = len(toy_scene.KINDS)
        spread[poses : poses + 6] = POSE
        spread[poses + [row.name for row in toy_scene.TABLE].index("fur_light") :] = 0.0
        self.spread = spread

    @torch.no_grad()
    def draw_pairs(self, count: int) -> Pairs:
        shape = (count, toy_scene.LATENT_DIM)
        one = normalize_second_moment(torch.randn(shape, generator=self.draw))
        two = normalize_second_moment(one + self.spread * torch.randn(shape, generator=self.draw))
        latents = torch.stack([one, two], dim=1).flatten(0, 1)
        psi = LEAST_PSI + (1.0 - LEAST_PSI) * torch.rand(count, 1, generator=self.draw)
        low, high = torch.tensor(FRONT).T
        local = low + (high - low) * torch.rand(count, PLACES, 2, generator=self.draw)
        psi, local = (t.repeat_interleave(2, dim=0) for t in (psi, local))
        geometry = toy_scene.geometry(psi * latents)  # truncation draws scenes toward the mean as it does w
        points = torch.cat([geometry.landmarks, toy_scene.places_shown(geometry, local)], dim=1)
        points = torch.stack([points[..., 0] + 1.0, 1.0 - points[..., 1]], dim=2) * (0.5 * self.size) - 0.5
        latents, psi, points = (t.to(self.device) for t in (latents, psi, points))
        return Pairs(latents, psi, points[:, : len(toy_scene.LANDMARKS)], points)


def sample(feature: Tensor, points: Tensor, size: int) -> Tensor:
    """Bilinear features [B, C, h, w] at points [B, K, N, 2], (x, y) in pixels of ``size`` → [B, K, N, C]."""
    grid = (2.0 * points + 1.0) / size - 1.0
    return F.grid_sample(feature, grid, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)


def tracking_loss(feature: Tensor, points: Tensor, size: int) -> Tensor:
    """Cross-entropy of the windows around the true places, both ways between the pictures 2k and 2k + 1.

    feature: [2n, C, h, w].  points: [2n, K, 2], the same places in all pictures, in pixels of ``size``.
    """
    scale = 128 / size
    ticks = torch.arange(-REACH, REACH + 1, device=feature.device) / scale
    offsets = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1).reshape(-1, 2)
    truth = torch.softmax(-(offsets * scale).square().sum(dim=1) / (2 * SPREAD**2), dim=0)
    inside = ((points >= 0) & (points <= size - 1)).all(dim=2)
    known = inside[0::2] & inside[1::2]
    losses = []
    for a, b in ((0, 1), (1, 0)):
        wanted = sample(feature[a::2], points[a::2, :, None], size)
        places = points[b::2, :, None] + offsets
        squared = (sample(feature[b::2], places, size) - wanted).square().sum(dim=3)
        logits = -squared / (TEMPERATURE * squared.detach().mean(dim=2, keepdim=True) + 1e-8)
        outside = ((places < 0) | (places > size - 1)).any(dim=3)
        told = logits.masked_fill(outside, -1e4).log_softmax(dim=2)
        losses.append(-(truth * told).masked_fill(outside, 0.0).sum(dim=2)[known])
    return torch.cat(losses).mean()
