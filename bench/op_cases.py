"""The cases of the op micro-benchmarks: feature [1, 256, 128, 128] under an image of 1024², as in a config-f network.

The suite ``ops`` and ``benchmark_ops.py`` (pytest-benchmark) measure the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from draggan_fast import DragConfig, ops

from . import materialised
from .timing import COLD_BYTES, rotation
from .workloads import DTYPES, default_points, half_mask

CHANNELS, CELLS, IMAGE = 256, 128, 1024
PUBLISHED = "published"  # the baseline of these cases: the materialised way


@dataclass(frozen=True)
class OpCase:
    """One op on one input. name: the row's; mask: "half" or None.  points: 0 for the mask loss.

    gbytes: 10^9 bytes that cannot be avoided: what is needed of the inputs read once, the results written once.
    """

    name: str
    op: str
    points: int
    mask: str | None
    precision: str
    image: int
    device: torch.device
    arguments: Callable[[Tensor], tuple[Any, ...]]  # feature -> everything the op takes after it
    gbytes: float
    shape: tuple[int, int, int]

    def feature(self) -> Tensor:
        """A new feature [1, C, h, w], channels-last; always the same values."""
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(1, *self.shape, generator=generator)
        return values.to(self.device, DTYPES[self.precision]).contiguous(memory_format=torch.channels_last)

    def backend(self, name: str, cold: bool = True) -> Callable[[], Any]:
        """What is timed: the public op served by this backend. cold: every call has an input no cache holds."""
        features = rotation(self.feature, self.feature_bytes, COLD_BYTES if cold else 0)
        rest = self.arguments(self.feature())
        function = getattr(ops, self.op)

        def run() -> Any:
            with ops.forced_backend(name):
                return function(next(features), *rest)

        return run

    def published(self, cold: bool = True) -> Callable[[], Any]:
        """The materialised way, on NCHW."""
        features = rotation(lambda: self.feature().contiguous(), self.feature_bytes, COLD_BYTES if cold else 0)
        rest = tuple(a.contiguous() if isinstance(a, Tensor) else a for a in self.arguments(self.feature()))
        function = getattr(materialised, self.op)
        return lambda: function(next(features), *rest)

    def ways(self) -> list[str]:
        """The baseline and every backend that serves this op on this device. Not Triton's interpreter on a CPU: it
        shows what a kernel computes, and takes minutes for it."""
        backends = ops.available_backends(self.op, self.device.type)
        return [PUBLISHED, *(b for b in backends if b != "triton" or self.device.type != "cpu")]

    def runner(self, way: str, cold: bool = True) -> Callable[[], Any]:
        return self.published(cold) if way == PUBLISHED else self.backend(way, cold)

    @property
    def detail(self) -> str:
        return f"{self.points} point(s)" if self.points else "half the picture fixed"

    @property
    def feature_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.precision].itemsize


def op_cases(
    device: torch.device,
    precision: str = "fp32",
    points: tuple[int, ...] = (1, 16),
    image: int = IMAGE,
    shape: tuple[int, int, int] = (CHANNELS, CELLS, CELLS),
) -> Iterator[OpCase]:
    """Motion supervision, tracking and sampling with these numbers of points; the mask loss with half the picture
    fixed, once where the feature changed at random (every cell has mixed signs) and once smoothly, as a latent does it.
    """
    config, size = DragConfig(), (image, image)
    r1, r2 = config.pixels(config.r1, image), config.pixels(config.r2, image)
    channels, h, w = shape
    width = DTYPES[precision].itemsize
    map_bytes, cell = channels * h * w * width, channels * width

    def cells(reach: int) -> int:
        """Feature cells under a window of image pixels."""
        return math.prod(min(math.ceil((2 * reach + 1) * s / image) + 1, s) for s in (h, w))

    def case(name: str, op: str, n: int, mask: str | None, arguments: Callable[..., Any], moved: int) -> OpCase:
        return OpCase(name, op, n, mask, precision, image, device, arguments, moved / 1e9, shape)

    for n in points:
        handles, targets = (torch.tensor([p], dtype=torch.float32, device=device) for p in default_points(image, n))
        active = torch.ones(1, n, dtype=torch.bool, device=device)
        references = torch.randn(1, n, channels, generator=torch.Generator().manual_seed(1)).to(device)

        def supervised(_: Tensor, h: Tensor = handles, t: Tensor = targets, a: Tensor = active) -> tuple[Any, ...]:
            return h, t, a, r1, size

        def tracked(_: Tensor, f: Tensor = references, h: Tensor = handles, a: Tensor = active) -> tuple[Any, ...]:
            return f, h, a, r2, size

        def sampled(_: Tensor, h: Tensor = handles) -> tuple[Any, ...]:
            return h, size

        read = n * cell * cells(r1 + 1)
        yield case("motion_supervision", "motion_supervision", n, None, supervised, map_bytes + read)
        yield case("point_tracking", "point_tracking", n, None, tracked, n * (cell * cells(r2) + channels * 4))
        yield case("sample_feature", "sample_feature", n, None, sampled, n * (4 * cell + channels * 4))

    movable = half_mask(image)[None].to(device)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(1, channels, h, w, generator=generator)
    swell = F.interpolate(noise[:, :, : max(h // 16, 2), : max(w // 16, 2)], size=(h, w), mode="bicubic")
    for name, change in (("mask_loss", noise), ("mask_loss, smooth change", swell)):

        def held(feature: Tensor, change: Tensor = change) -> tuple[Any, ...]:
            moved = (feature.float() + 0.1 * change.to(device)).to(feature.dtype)
            return moved.contiguous(memory_format=torch.channels_last), movable, size

        # Half the cells of both features, the whole gradient, the mask.
        yield case(name, "mask_loss", 0, "half", held, 2 * map_bytes + image * image * 4)
