"""Convolutions with constant weights, packed once into the layout that the CPU library (oneDNN) computes in.

The packed calls are those that torch.compile emits for a frozen convolution. They save what ``F.conv2d`` does anew at
every call, which on small maps costs more than the convolution itself, and they never fall to PyTorch's own slow
convolution. Where oneDNN is missing or cannot serve a type, ``F.conv2d`` computes the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def can_pack(weight: Tensor) -> bool:
    """Whether packed convolutions exist for weights of this device and type."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class PackedConv:
    """A stride-1 convolution without bias: weight [C', C, kh, kw] (constant), zero padding (rows, columns).

    x [B, C, h, w] channels-last → [B, C', h', w'] channels-last. input_hw: the map size the packing is tuned for;
    other sizes work too.
    """

    def __init__(self, weight: Tensor, padding: tuple[int, int], input_hw: tuple[int, int]) -> None:
        self.padding = list(padding)
        self.packed = can_pack(weight)
        if self.packed:
            shape = [1, weight.shape[1], *input_hw]
            dense = weight.contiguous().to_mkldnn()
            pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the last argument
            self.weight: Tensor = pack(dense, self.padding, [1, 1], [1, 1], 1, shape)
        else:
            self.weight = weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor, padding: tuple[int, int] | None = None) -> Tensor:
        pad = self.padding if padding is None else list(padding)
        if not self.packed:
            return F.conv2d(x, self.weight, padding=pad)
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, None, pad, [1, 1], [1, 1], 1, "none", [], "")

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """total += conv(x), in the same pass where the library can."""
        if not self.packed:
            total += F.conv2d(x, self.weight, padding=self.padding)
            return
        torch.ops.mkldnn._convolution_pointwise_.binary(
            total, x, self.weight, None, self.padding, [1, 1], [1, 1], 1, "add", 1.0, None, [], ""
        )
