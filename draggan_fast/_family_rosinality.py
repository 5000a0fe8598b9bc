"""Files of the rosinality implementation: ``{'g_ema': state dict, 'latent_avg': [512]}``, written by
torch.save.

Every weight is scaled by 1/sqrt(fan-in) at run time. The first files of 2019 were saved before the program
kept its noise pictures; it draws those afresh on loading, so here they are drawn once and for all from a
fixed seed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._family_common import (
    MAPPING_LR,
    MAX_BLOCKS,
    Checkpoint,
    Source,
    check_start,
    count_blocks,
    describe,
    filter_taps,
    one_value,
)
from ._pickle_data import Refused


class _Conversion:
    """One generator on its way from ``source`` to ``out``."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.out: dict[str, Tensor] = {}
        self.filters: list[tuple[float, ...]] = []
        self.noise_seed = None if "noises.noise_0" in source else torch.Generator().manual_seed(0)

    def linear(self, name: str, path: str, lr: float = 1.0) -> None:
        matrix = self.source.take(path + ".weight", 2)
        self.out[name + ".weight"] = matrix * (lr / math.sqrt(matrix.shape[1]))
        self.out[name + ".bias"] = self.source.take(path + ".bias", 1) * lr

    def modulated(self, name: str, path: str) -> None:
        kernel = self.source.take(path + ".weight", 5)[0]
        self.out[name + ".weight"] = kernel / math.sqrt(kernel.shape[1:].numel())
        self.linear(name + ".affine", path + ".modulation")

    def filter(self, name: str) -> None:
        self.filters.append(filter_taps(self.source.take(name, 2), 4.0))

    def noise(self, index: int, resolution: int) -> Tensor:
        if self.noise_seed is not None:
            return torch.randn(resolution, resolution, generator=self.noise_seed)
        return self.source.take(f"noises.noise_{index}", 4)[0, 0]

    def convolution(self, name: str, path: str, b: int, index: int) -> None:
        self.modulated(name, path + ".conv")
        self.out[name + ".bias"] = self.source.take(path + ".activate.bias", 1)
        self.out[name + ".noise_strength"] = self.source.take(path + ".noise.weight", 1)[0]
        self.out[name + ".noise_const"] = self.noise(index, 4 << b)

    def to_rgb(self, name: str, path: str) -> None:
        self.modulated(name, path + ".conv")
        self.out[name + ".bias"] = self.source.take(path + ".bias", 4).flatten()

    def block(self, b: int) -> None:
        name = f"synthesis.blocks.{b}"
        if not b:
            self.convolution(name + ".conv1", "conv1", 0, 0)
            self.to_rgb(name + ".to_rgb", "to_rgb1")
            return
        self.convolution(name + ".conv0", f"convs.{2 * b - 2}", b, 2 * b - 1)
        self.filter(f"convs.{2 * b - 2}.conv.blur.kernel")
        self.convolution(name + ".conv1", f"convs.{2 * b - 1}", b, 2 * b)
        self.to_rgb(name + ".to_rgb", f"to_rgbs.{b - 1}")
        self.filter(f"to_rgbs.{b - 1}.upsample.kernel")

    def mapping(self) -> None:
        self.out["mapping.w_avg"] = self.source.take("latent_avg", 1, 2).flatten()
        for i in range(self.source.count("style.{}.weight", first=1)):
            self.linear(f"mapping.layers.{i}", f"style.{i + 1}", MAPPING_LR)


def convert(state: dict[Any, Any], latent_avg: Any, file_size: int) -> Checkpoint:
    """The generator in a state dict. Raises Refused if it is not an unmodified, square StyleGAN2."""
    if not all(isinstance(name, str) for name in state) or "input.input" not in state:
        raise Refused("its g_ema is not a StyleGAN2 generator of the rosinality program; give a StyleGAN2 checkpoint")
    if latent_avg is None:
        raise Refused(
            "it has no latent_avg (a training snapshot has none), which truncation needs; "
            "add the mean of many mapped latents to the file as 'latent_avg'"
        )
    source = Source({**state, "latent_avg": latent_avg}, file_size)
    later = [f"convs.{2 * b - 1}.conv.weight" in source for b in range(1, MAX_BLOCKS + 1)]
    blocks = count_blocks([True, *later, False])
    const = source.take("input.input", 4)
    check_start(const, blocks)
    conversion = _Conversion(source)
    conversion.out["synthesis.const"] = const[0]
    for b in range(blocks):
        conversion.block(b)
    conversion.mapping()
    source.finish()
    taps = one_value("resample_filter", conversion.filters or [(1.0, 3.0, 3.0, 1.0)])
    metadata = {} if conversion.noise_seed is None else {"noise": "drawn on loading, the file has none"}
    return Checkpoint(describe(conversion.out, None, taps), conversion.out, "rosinality", metadata)
