# SPDX-License-Identifier: Apache-2.0
"""Styles that listen only where w varies: what a drag adds outside of that changes nothing any more."""

from __future__ import annotations

import torch
from torch import Tensor

from draggan_fast.generator import Affine, Generator

COMPONENTS = 96  # of 512: 98 % of the variance of w; with 72, as many as z has, the pictures lose 0.2 dB
SAMPLES = 8192


@torch.no_grad()
def principal(generator: Generator, seed: int) -> tuple[Tensor, Tensor]:
    """(mean of w [512], the COMPONENTS main directions of w [COMPONENTS, 512], orthonormal)."""
    mapping = generator.mapping
    draw = torch.Generator().manual_seed(seed)
    w = mapping.w(torch.randn(SAMPLES, generator.config.z_dim, generator=draw).to(mapping.w_avg.device))
    mean = w.mean(dim=0)
    return mean, torch.linalg.svd(w - mean, full_matrices=False)[2][:COMPONENTS]


@torch.no_grad()
def restrict(generator: Generator, mean: Tensor, directions: Tensor) -> None:
    """Makes every style a function of w's projection on mean + span(directions). Doing it twice is doing it once.

    A drag moves w by as much as two pictures differ, three quarters of it in directions that no picture ever took:
    networks answer such moves with anything, pictures must not.
    """
    for module in generator.synthesis.modules():
        if isinstance(module, Affine):
            inside = (module.weight @ directions.T) @ directions
            module.bias += (module.weight - inside) @ mean
            module.weight.copy_(inside)
