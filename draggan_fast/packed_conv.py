"""Convolutions with constant weights, packed once into the layout that the CPU library (oneDNN) computes in.

The packed calls are those that torch.compile emits for a frozen convolution. They save what ``F.conv2d`` does anew at
every call, which on small maps costs more than the convolution itself, and they never fall to PyTorch's own slow
convolution. Where oneDNN is missing or cannot serve a type, ``F.conv2d`` computes the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SIZES = 256  # of maps: each number of handles has its own; packings are shared, of those there are a handful


def can_pack(weight: Tensor) -> bool:
    """Whether packed convolutions exist for weights of this device and type."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class PackedConv:
    """A stride-1 convolution without bias: weight [C', C, kh, kw] (constant), zero padding (rows, columns).

    x [B, C, h, w] channels-last → [B, C', h', w'] channels-last. weight: makes it, from what does not change in place
    (``version`` says so); input_hw: the size of most maps. oneDNN chooses a layout per size of map, batch and number of
    threads; a weight in another one is laid out anew at every call, which on a crop of 8² takes ten times as long as
    the convolution. So each size gets its own packing when it first comes, unless it is one there is already.
    """

    def __init__(
        self,
        weight: Callable[[], Tensor],
        padding: tuple[int, int],
        input_hw: tuple[int, int],
        version: Callable[[], int] = int,
    ) -> None:
        self.padding = list(padding)
        self._make, self._version, self._made = weight, version, version()
        made = weight()
        self.packed = can_pack(made)
        self._forms: dict[tuple[Any, ...], Tensor] = {}
        if self.packed:
            self._first = self._pack(made, (1, *input_hw), self.padding)
        else:
            self._first = made.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def _pack(weight: Tensor, shape: tuple[int, ...], padding: list[int]) -> Tensor:
        """The layout for maps of this (batch, height, width)."""
        batch, *hw = shape
        pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the last argument
        dense = weight.contiguous().to_mkldnn()
        return pack(dense, padding, [1, 1], [1, 1], 1, [batch, weight.shape[1], *hw])

    def _weight(self, x: Tensor, padding: list[int]) -> Tensor:
        """The weight as oneDNN wants it for this map."""
        shape = (x.shape[0], x.shape[2], x.shape[3])
        key = (*shape, *padding, torch.get_num_threads())
        if (form := self._forms.get(key)) is not None:
            return form
        if self._version() != self._made:  # the weights are others now, but not those of this network
            return self._first
        form = self._pack(self._make(), shape, padding)
        distinct = {id(known): known for known in (self._first, *list(self._forms.values()))}
        form = next((known for known in distinct.values() if same_layout(known, form)), form)
        if len(self._forms) >= MAX_SIZES:
            self._forms.pop(next(iter(self._forms)), None)  # the oldest
        self._forms[key] = form
        return form

    def __call__(self, x: Tensor, padding: tuple[int, int] | None = None) -> Tensor:
        pad = self.padding if padding is None else list(padding)
        if not self.packed:
            return F.conv2d(x, self._first, padding=pad)
        weight = self._weight(x, pad)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, None, pad, [1, 1], [1, 1], 1, "none", [], "")

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """total += conv(x), in the same pass where the library can."""
        if not self.packed:
            total += F.conv2d(x, self._first, padding=self.padding)
            return
        torch.ops.mkldnn._convolution_pointwise_.binary(
            total, x, self._weight(x, self.padding), None, self.padding, [1, 1], [1, 1], 1, "add", 1.0, None, [], ""
        )


def same_layout(one: Tensor, other: Tensor) -> bool:
    """Whether two packings of one weight are the same bytes."""
    size: int = torch.ops.mkldnn._nbytes(one)
    if size != torch.ops.mkldnn._nbytes(other):
        return False
    first, second = (torch.ops.mkldnn.data_ptr(form) for form in (one, other))
    return ctypes.string_at(first, size) == ctypes.string_at(second, size)
