"""Convolutions with constant weights, packed once into the layout that the CPU library (oneDNN) computes in, or, where
that is less work, transformed once for Winograd's convolution.

The packed calls are those that torch.compile emits for a frozen convolution. They save what ``F.conv2d`` does anew at
every call, which on small maps costs more than the convolution itself, and they never fall to PyTorch's own slow
convolution. Where oneDNN is missing or cannot serve a type, ``F.conv2d`` computes the same.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import synthesis_ops

# When Winograd's convolution is taken: on AVX2 1.6 to 2.8 times as fast from 64 channels on, 1.5 times with 32
# (bench/benchmark_ops.py; bench/results/*_convolutions_*). Not measured on AVX-512 yet.
WINOGRAD_CHANNELS = 32  # of input and output: transforms cost as many channels as there are, products their square
WINOGRAD_TILES = 9
WINOGRAD_GAIN = 1.3  # how many times fewer multiplications: tiles that hang over the border are computed whole
MAX_SIZES = 256  # of maps: each number of handles has its own; packings are shared, of those there are a handful


def can_pack(weight: Tensor) -> bool:
    """Whether packed convolutions exist for weights of this device and type."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def may_transform(weight: Tensor) -> bool:
    """Whether a convolution with this weight may be computed by Winograd's way here."""
    square = weight.shape[2:] == (3, 3) and min(weight.shape[:2]) >= WINOGRAD_CHANNELS
    # The meta device, on which memory is planned, stands for the CPU.
    here = weight.device.type in ("cpu", "meta") and weight.dtype == torch.float32
    return square and here and synthesis_ops.winograd_served()


def winograd_pays(shape: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether maps of this (batch, height, width) are large enough for it."""
    batch, height, width = shape[0], *(side + 2 * pad - 2 for side, pad in zip(shape[1:], padding))
    tiles = batch * math.ceil(height / 4) * math.ceil(width / 4)
    return tiles >= WINOGRAD_TILES and 9 * batch * height * width >= WINOGRAD_GAIN * 36 * tiles


@dataclass(frozen=True)
class KernelPart:
    """Some rows and columns of a kernel, or the transpose of that convolution, made when it is asked for.

    weight [C', C, 3, 3]: the layer's own, of today: other weights that it is given later are none of ours.
    """

    weight: Tensor
    precision: torch.dtype
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    transposed: bool

    def __call__(self) -> Tensor:
        kernel = self.weight[:, :, list(self.rows)][:, :, :, list(self.columns)].to(self.precision)
        return kernel.flip(2, 3).transpose(0, 1) if self.transposed else kernel

    def version(self) -> int:
        """Another number after the weight was changed in place, which tensors made for inference do not count."""
        return 0 if self.weight.is_inference() else self.weight._version


class PackedConv:
    """A stride-1 convolution without bias: weight [C', C, kh, kw] (constant), zero padding (rows, columns).

    x [B, C, h, w] channels-last → [B, C', h', w'] channels-last. weight: makes it, from what does not change in place
    (``version`` says so); input_hw: the size of most maps. oneDNN chooses a layout per size of map, batch and number of
    threads; a weight in another one is laid out anew at every call, which on a crop of 8² takes ten times as long as
    the convolution. So each size gets its own packing when it first comes, unless it is one there is already.

    A 3×3 convolution in float32 whose most maps are served better by Winograd's has its weight transformed instead, and
    packings for those sizes only that are not.
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
        self._out_channels = made.shape[0]
        self.packed = can_pack(made)
        self._forms: dict[tuple[Any, ...], Tensor] = {}
        # What there is from the beginning, one of both: the layer as it was frozen, whatever becomes of the network.
        self._first: Tensor | None = None
        self._transformed: Tensor | None = None
        if may_transform(made) and winograd_pays((1, *input_hw), self.padding):
            self._transformed = synthesis_ops.winograd_weight(made)
        elif self.packed:
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

    def _direct(self, x: Tensor, padding: list[int]) -> Tensor | None:
        """The weight for a direct convolution of this map; None = Winograd's is to be taken."""
        shape = (x.shape[0], x.shape[2], x.shape[3])
        if self._transformed is not None and winograd_pays(shape, padding) and synthesis_ops.winograd_served():
            return None
        return self._form(shape, padding) if self.packed else self._first

    def _form(self, shape: tuple[int, int, int], padding: list[int]) -> Tensor | None:
        """The weight as oneDNN wants it for maps of this (batch, height, width); None = only the transformed one is
        left of it."""
        key = (*shape, *padding, torch.get_num_threads())
        if (form := self._forms.get(key)) is not None:
            return form
        if self._version() != self._made:  # the weights are others now, but not those of this network
            return self._first
        form = self._pack(self._make(), shape, padding)
        distinct = {id(known): known for known in (self._first, *list(self._forms.values())) if known is not None}
        form = next((known for known in distinct.values() if same_layout(known, form)), form)
        if len(self._forms) >= MAX_SIZES:
            self._forms.pop(next(iter(self._forms)), None)  # the oldest
        self._forms[key] = form
        return form

    def __call__(self, x: Tensor, padding: tuple[int, int] | None = None) -> Tensor:
        pad = self.padding if padding is None else list(padding)
        if x.is_meta:  # nothing but sizes
            sized = self._make() if self._first is None else self._first
            return F.conv2d(x, sized, padding=pad).to(memory_format=torch.channels_last)
        weight = self._direct(x, pad)
        if weight is None:
            assert self._transformed is not None
            return synthesis_ops.winograd_conv(x, self._transformed, self._out_channels, (pad[0], pad[1]))
        if not self.packed:
            return F.conv2d(x, weight, padding=pad)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, None, pad, [1, 1], [1, 1], 1, "none", [], "")

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """total += conv(x), in the same pass where the library can."""
        weight = self._direct(x, self.padding)
        if weight is None or not self.packed:
            total += self(x)
            return
        torch.ops.mkldnn._convolution_pointwise_.binary(
            total, x, weight, None, self.padding, [1, 1], [1, 1], 1, "add", 1.0, None, [], ""
        )


def same_layout(one: Tensor, other: Tensor) -> bool:
    """Whether two packings of one weight are the same bytes."""
    size: int = torch.ops.mkldnn._nbytes(one)
    if size != torch.ops.mkldnn._nbytes(other):
        return False
    first, second = (torch.ops.mkldnn.data_ptr(form) for form in (one, other))
    return ctypes.string_at(first, size) == ctypes.string_at(second, size)
