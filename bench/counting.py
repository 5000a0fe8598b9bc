"""What a piece of PyTorch code computes and holds in memory, seen from below the dispatcher.

``Operations`` counts arithmetic, ``LiveMemory`` the bytes of all tensors that are alive at the same time. Both see
autograd's own operators as well, since they run under the same dispatcher, and both look *into* the drag ops: where
an op is served by the reference kernels, these run as the plain PyTorch they are.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from draggan_fast.kernels import reference
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from draggan_fast import ops
from draggan_fast.generator import StyledConv, ToRGB


class Inspector(TorchDispatchMode, ABC):
    """Sees every operator that runs inside it; a subclass says what to do with its result in ``seen``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # subtle: the mode is off in here; what is made of other operators has to be run inside it again to be seen.
        with self:
            if func.namespace == "draggan_fast" and ops.backends()[name_of(func)].name == "reference":
                plain = [tuple(a) if isinstance(a, list | torch.Size) else a for a in args]  # image sizes
                return getattr(reference, name_of(func))(*plain, **kwargs)
            if func.namespace == "aten" and func.overloadpacket not in flop_registry:
                result = func.decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
        result = func(*args, **kwargs)
        self.seen(func, args, kwargs, result)
        return result

    @abstractmethod
    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """One operator has run, with this result."""


def name_of(func: Any) -> str:
    """aten::mm → mm."""
    return str(func._schema.name.partition("::")[2])


@dataclass
class Flop:
    """Floating-point operations. matrix: of convolutions and matrix products, a multiply-add counting as two;
    pointwise: of all other arithmetic, one for each element that an elementwise operator makes."""

    matrix: int = 0
    pointwise: int = 0

    @property
    def total(self) -> int:
        return self.matrix + self.pointwise


class Operations(Inspector):
    """Counts arithmetic by part: set ``part`` to whatever the following operators belong to."""

    def __init__(self) -> None:
        super().__init__()
        self.part = ""
        self.by_part: defaultdict[str, Flop] = defaultdict(Flop)

    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.by_part[self.part].matrix += formula(*args, **kwargs, out_val=result)
        elif name_of(func) == "winograd_conv":  # (x, panels, …) → y: 36 products of every 4×4 cells
            (batch, made, height, width), (points, _, channels, _) = result.shape, args[1].shape
            tiles = batch * -(-height // 4) * -(-width // 4)
            self.by_part[self.part].matrix += 2 * points * tiles * channels * made
        elif name_of(func) == "winograd_up":  # (x, panels, …) → phases: 49 products of every 3×3 cells of the first
            (batch, made, height, width), channels = result[0].shape, args[1].shape[2]
            self.by_part[self.part].matrix += 2 * 49 * batch * -(-height // 3) * -(-width // 3) * channels * made
        elif name_of(func) == "winograd_up_transpose":  # (4 phases, panels, …) → x
            (batch, made, height, width), channels = result.shape, args[4].shape[2]
            self.by_part[self.part].matrix += 2 * 49 * batch * -(-height // 3) * -(-width // 3) * channels * made
        elif name_of(func) == "modulation":  # (w_plus, first row, affines, biases, energies): a product each
            weights = sum(t.numel() for part in (args[2], args[4]) for t in part)
            self.by_part[self.part].matrix += 2 * args[0].shape[0] * weights
        elif name_of(func) == "latent_gradient":  # (four lists, energies, affines)
            weights = sum(t.numel() for part in args[4:6] for t in part)
            self.by_part[self.part].matrix += 2 * result.shape[0] * weights
        elif name_of(func) == "add_to_rgb":  # (x, weight, …)
            self.by_part[self.part].matrix += 2 * args[0].numel() * args[1].shape[1]
        elif (
            func.namespace == "mkldnn"
        ):  # the packed convolutions of the fast engine: (x, weight, …) or (sum, x, weight, …)
            weight = args[1] if name_of(func) == "_convolution_pointwise" else args[2]
            self.by_part[self.part].matrix += 2 * result.numel() // weight.shape[0] * weight.numel()
        elif torch.Tag.pointwise in func.tags:
            made = sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point())
            self.by_part[self.part].pointwise += made


class LiveMemory(Inspector):
    """Bytes of the tensors made inside it that are alive, and their peak; on the meta device nothing is allocated.

    heap: those in blocks of at most ``heap_limit`` bytes.  granule: sizes are rounded up to it, as the device's
    allocator does.
    """

    def __init__(self, granule: int = 64, heap_limit: int = 0) -> None:
        super().__init__()
        self.granule, self.heap_limit = granule, heap_limit
        self.live = self.peak = self.heap = 0
        self._sizes: dict[int, int] = {}
        self.watch_swing()

    def watch_swing(self) -> None:
        """``swing`` begins anew."""
        self._highest = self._lowest = self.heap

    @property
    def swing(self) -> int:
        """Bytes of small blocks that come and go: their most less their least since ``watch_swing``."""
        return self._highest - self._lowest

    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = size = -(-storage.nbytes() // self.granule) * self.granule
        self._change(size, +1)
        # subtle: a storage keeps one Python object for life, so this runs when the memory itself is freed.
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        self._change(self._sizes.pop(key), -1)

    def _change(self, size: int, sign: int) -> None:
        self.live += sign * size
        self.peak = max(self.peak, self.live)
        if size <= self.heap_limit:
            self.heap += sign * size
            self._highest, self._lowest = max(self._highest, self.heap), min(self._lowest, self.heap)


# ---- traffic that cannot be avoided ---------------------------------------------------------------------------------


def nbytes(*tensors: Tensor) -> int:
    """Bytes of these tensors' elements, whatever memory they lie in."""
    return sum(t.numel() * t.element_size() for t in tensors)


def weight_bytes(module: nn.Module) -> int:
    return nbytes(*module.parameters(), *module.buffers())


def layer_bytes(layer: nn.Module, x: Tensor, y: Tensor) -> tuple[int, int]:
    """(forward, backward) of one layer x → y, when nothing in between touches memory.

    Forward reads x and the weights and writes y. Backward reads the gradient of y, the weights and, if the layer is
    not linear, y (whose signs are those of the leaky ReLU, and which the demodulation's gradient needs) and x (for
    the style's gradient), and writes the gradient of x. A ToRGB also adds to the upsampled picture so far, which has
    a quarter of its pixels.
    """
    weights, ends = weight_bytes(layer), nbytes(x, y)
    if isinstance(layer, ToRGB):
        return ends + weights + nbytes(y) // 4, 0
    return ends + weights, (2 * ends if isinstance(layer, StyledConv) else ends) + weights


def window_bytes(radius: int, points: int, feature: Tensor, image_size: tuple[int, int]) -> int:
    """Of the feature cells under square windows of ``radius`` image pixels around ``points`` points."""
    _, _, h, w = feature.shape
    side_y = min(-(-(2 * radius + 1) * h // image_size[0]) + 1, h)
    side_x = min(-(-(2 * radius + 1) * w // image_size[1]) + 1, w)
    cells = min(points * side_x * side_y, h * w)
    return cells * feature.shape[1] * feature.element_size()
