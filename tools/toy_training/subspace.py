# SPDX-License-Identifier: Apache-2.0
"""A w whose every direction is one that pictures vary in, so that a drag stays where pictures are."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from draggan_fast.generator import LRELU_GAIN, LRELU_SLOPE, Generator

COMPONENTS = 84  # of 512: 97 % of the variance of w; with 72, as many as z has, the pictures lose 0.2 dB
SAMPLES = 16384
POWER = 1.3  # 1 would be white; with more, drags lean on the directions that pictures differ in most, poses above all


@torch.no_grad()
def principal(generator: Generator, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(mean of w [512], its main directions [COMPONENTS, 512], orthonormal, the unit for w's place along each).

    Units are w's deviations to the power POWER, but for a common factor: places have a mean square of about 1.
    """
    mapping = generator.mapping
    draw = torch.Generator().manual_seed(seed)
    w = mapping.w(torch.randn(SAMPLES, generator.config.z_dim, generator=draw).to(mapping.w_avg.device))
    mean = w.mean(dim=0)
    _, singular, directions = torch.linalg.svd(w - mean, full_matrices=False)
    deviations = singular[:COMPONENTS] / len(w) ** 0.5
    units = deviations**POWER
    return mean, directions[:COMPONENTS], units * (deviations / units).square().mean().sqrt()


@torch.no_grad()
def whitened(generator: Generator, seed: int) -> Generator:
    """The same pictures from a w of 2·COMPONENTS numbers, which a drag can move without leaving where pictures are.

    Adam moves every number of w alike, but w varies 25 times as much along its first main direction as along its 84th,
    and hardly at all along the 428 others: a drag in it goes mostly where no picture ever was, and networks answer that
    with anything. So one more mapping layer gives w's places v along the main directions, each in a unit of its own.
    Its leaky ReLU is undone by giving both v and −v: lrelu(v) − lrelu(−v) = (1 + slope)·gain·v is what the styles, now
    functions of v alone, listen to.
    """
    mean, directions, units = principal(generator, seed)
    config = generator.config
    layer = len(config.mapping_widths)
    widths = (*config.mapping_widths, 2 * COMPONENTS)
    white = Generator(replace(config, w_dim=2 * COMPONENTS, mapping_widths=widths)).to(mean.device)
    inward = directions / units[:, None]
    outward = directions.T * units / (LRELU_GAIN * (1 + LRELU_SLOPE))
    new, old = white.state_dict(), generator.state_dict()
    for name, tensor in new.items():
        if name == f"mapping.layers.{layer}.weight":
            tensor.copy_(torch.cat([inward, -inward]))
        elif name == f"mapping.layers.{layer}.bias":
            tensor.copy_(torch.cat([-inward @ mean, inward @ mean]))
        elif name.endswith("affine.weight"):
            tensor.copy_(torch.cat([old[name] @ outward, -old[name] @ outward], dim=1))
        elif name.endswith("affine.bias"):
            tensor.copy_(old[name] + old[name.removesuffix("bias") + "weight"] @ mean)
        elif name != "mapping.w_avg":
            tensor.copy_(old[name])
    draw = torch.Generator().manual_seed(seed + 1)
    z = torch.randn(SAMPLES, config.z_dim, generator=draw).to(mean.device)
    white.mapping.w_avg.copy_(white.mapping.w(z).mean(dim=0))
    return white
