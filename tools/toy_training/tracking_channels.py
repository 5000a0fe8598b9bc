# SPDX-License-Identifier: Apache-2.0
"""Channels that a block's feature gets for tracking alone: the picture is made without them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from draggan_fast.generator import Generator, StyledConv


@torch.no_grad()
def widened(generator: Generator, block: int, count: int) -> Generator:
    """The same network with ``count`` more channels in a block, which nothing after them reads: the same pictures."""
    channels = list(generator.config.channels)
    channels[block] += count
    wide = Generator(replace(generator.config, channels=tuple(channels)))
    narrow = generator.state_dict()
    for name, tensor in wide.state_dict().items():
        old = narrow[name]
        tensor.fill_(1.0 if name.endswith("affine.bias") else 0.0)
        if tensor.shape != old.shape and name.startswith(f"synthesis.blocks.{block}.conv") and tensor.ndim == 4:
            nn.init.normal_(tensor, std=tensor[0].numel() ** -0.5)
            tensor[: len(old)] = 0.0
        tensor[tuple(slice(size) for size in old.shape)] = old
    return wide.to(narrow["synthesis.const"].device, memory_format=torch.channels_last)


class TrackingChannels(nn.Module):
    """The last ``count`` channels of a block's layers as layers of their own, so that they can be trained alone."""

    def __init__(self, generator: Generator, block: int, count: int) -> None:
        super().__init__()
        config, self.block, self.kept = generator.config, block, generator.config.channels[block] - count
        self.conv0 = StyledConv(config, block, config.channels[block - 1], count, up=True)
        self.conv1 = StyledConv(config, block, config.channels[block], count, up=False)
        for own, whole in self._both(generator):
            own.affine.load_state_dict(whole.affine.state_dict())
            own.affine.requires_grad_(False)
            own.weight.data.copy_(whole.weight[self.kept :])
            own.bias.data.copy_(whole.bias[self.kept :])

    def _both(self, generator: Generator) -> list[tuple[StyledConv, StyledConv]]:
        layer = generator.synthesis.blocks[self.block]
        assert layer.conv0 is not None
        return [(self.conv0, layer.conv0), (self.conv1, layer.conv1)]

    def forward(self, generator: Generator, ws: Tensor) -> Tensor:
        """The block's feature of ws, with these channels as the last; gradients go to these channels only."""
        (_, first), (_, second) = self._both(generator)
        with torch.no_grad():
            x = generator.features(ws, self.block - 1).x
            h = first(x, ws[:, 2 * self.block - 1])[:, : self.kept]
            style = ws[:, 2 * self.block]
            kept = second(torch.cat([h, h.new_zeros(len(h), len(self.conv0.bias), *h.shape[2:])], dim=1), style)
        more = self.conv0(x, ws[:, 2 * self.block - 1])
        more = self.conv1(torch.cat([h, more], dim=1), style)
        return torch.cat([kept[:, : self.kept], more], dim=1)

    @torch.no_grad()
    def write_into(self, generator: Generator) -> None:
        for own, whole in self._both(generator):
            whole.weight[self.kept :] = own.weight
            whole.bias[self.kept :] = own.bias
