"""The ×2 layer's transposed convolution with constant weights, by four packed convolutions or by Winograd's way.

A transposed 3×3 convolution of stride 2 is four small ones of stride 1, one per phase of the output (even/odd rows ×
even/odd columns; 4 + 2 + 2 + 1 of the nine weights).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import synthesis_ops
from .packed_conv import KernelPart, PackedConv, may_transform
from .synthesis_ops import Phases

# For each phase: which rows (columns) of the 3×3 kernel it uses, in correlation order, and its padding.
PHASE = (((2, 0), 1), ((1,), 0))
TILE, SIDE = 3, 7  # kernels/winograd_up.py
# When Winograd's way is taken: by trial on AVX2, no record holds these convolutions yet.
LEAST_TILES, MANY_TILES = 4, 9  # the second where there are many weights: they are three times as many as directly
MANY_WEIGHTS = 1 << 16  # C·C'
LEAST_CHANNELS = 32  # C·C' / (C + C'): what is multiplied for each channel that is transformed


def up_pays(shape: tuple[int, int, int], channels: tuple[int, int]) -> bool:
    """Whether Winograd's way is less work for an x of this (batch, height, width) and these numbers of channels."""
    batch, *hw = shape
    down, across = (math.ceil(side / TILE) for side in hw)
    least = LEAST_TILES if channels[0] * channels[1] <= MANY_WEIGHTS else MANY_TILES
    return batch * down * across >= least and channels[0] * channels[1] >= LEAST_CHANNELS * sum(channels)


class PackedUp:
    """weight [C', C, 3, 3] (constant): x [B, C, h, w] → the four phases [B, C', h + 1 or h, w + 1 or w], or, if it is
    made for the transpose, phases of C' channels → [B, C, h, w]. All channels-last.

    size: of most x, along an axis. As a ``PackedConv`` it keeps the weights as they are today, in the form that serves
    that size, and makes another form only for other sizes.
    """

    def __init__(self, weight: Tensor, precision: torch.dtype, size: int, transposed: bool) -> None:
        self._weight, self._precision, self._size, self._transposed = weight, precision, size, transposed
        self._whole = KernelPart(weight, precision, (0, 1, 2), (0, 1, 2), transposed)
        self._made_version = self._whole.version()
        self._channels = (weight.shape[0], weight.shape[1])
        self._out_channels = weight.shape[1] if transposed else weight.shape[0]
        # What there is from the beginning, one of both.
        self._panels: Tensor | None = None
        self._direct: tuple[PackedConv, ...] | None = None
        made = self._whole()
        if may_transform(made) and up_pays((1, size, size), self._channels):
            self._panels = synthesis_ops.winograd_up_weight(made)
        else:
            self._direct = self._convolutions()

    def _convolutions(self) -> tuple[PackedConv, ...]:
        found = []
        for rows, pad_rows in PHASE:
            for columns, pad_columns in PHASE:
                part = KernelPart(self._weight, self._precision, rows, columns, self._transposed)
                padding, input_hw = (pad_rows, pad_columns), (self._size, self._size)
                if self._transposed:
                    padding = (len(rows) - 1 - pad_rows, len(columns) - 1 - pad_columns)
                    input_hw = (self._size + pad_rows, self._size + pad_columns)
                found.append(PackedConv(part, padding, input_hw, part.version))
        return tuple(found)

    def _convolutions_for(self, shape: tuple[int, int, int]) -> tuple[PackedConv, ...] | None:
        """Those for an x of this (batch, height, width); None = Winograd's way is to be taken."""
        if self._panels is not None and up_pays(shape, self._channels) and synthesis_ops.winograd_served():
            return None
        if self._direct is None and self._whole.version() == self._made_version:
            self._direct = self._convolutions()
        return self._direct  # None: the weights are others now, but not those of this network

    def __call__(self, x: Tensor) -> Phases:
        batch, _, h, w = x.shape
        if x.is_meta:  # nothing but sizes
            return self._phases_like(x)
        convolutions = self._convolutions_for((batch, h, w))
        if convolutions is None:
            assert self._panels is not None
            return synthesis_ops.winograd_up(x, self._panels, self._out_channels)
        first, second, third, fourth = (conv(x) for conv in convolutions)
        return first, second, third, fourth

    def _phases_like(self, x: Tensor) -> Phases:
        batch, _, h, w = x.shape
        first, second, third, fourth = (
            x.new_empty(batch, h + i, w + j, self._out_channels).permute(0, 3, 1, 2) for i in (1, 0) for j in (1, 0)
        )
        return first, second, third, fourth

    def transpose(self, phases: Phases) -> Tensor:
        """Only of one that was made for it."""
        batch, _, h, w = phases[3].shape
        if phases[3].is_meta:
            return phases[3].new_empty(batch, h, w, self._out_channels).permute(0, 3, 1, 2)
        convolutions = self._convolutions_for((batch, h, w))
        if convolutions is None:
            assert self._panels is not None
            return synthesis_ops.winograd_up_transpose(phases, self._panels, self._out_channels)
        total = convolutions[0](phases[0])
        for conv, phase in zip(convolutions[1:], phases[1:]):
            conv.add_to(total, phase)
        return total
