"""Who computes a step's synthesis and its gradient: one small interface, and the choice behind it.

``DragSession`` knows four calls: features of a latent, whole or around the handles; the gradient of the latent from
that of the feature; and the picture. The reference engine answers them with ``Generator`` and autograd, in float32;
the fast one with ``FrozenSynthesis``. In float32 both agree to rounding.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from . import ops, regions
from .errors import DragError
from .frozen import FrozenSynthesis, Trace, supported
from .generator import Activations, Generator
from .packed_conv import can_pack
from .regions import RegionTrace
from .views import FeatureView

PRECISIONS = ("auto", "fp32", "bf16")
# The packed weights of every network that is alive, shared by its sessions.
_frozen: weakref.WeakKeyDictionary[Generator, dict[tuple[Any, ...], FrozenSynthesis]] = weakref.WeakKeyDictionary()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Features(Protocol):
    """What an engine remembers of a forward pass."""

    @property
    def view(self) -> FeatureView:
        """What the drag ops read of it."""
        ...


class Engine(Protocol):
    """name and precision as reports show them. Latents are w_plus [1, num_ws, w_dim] float32."""

    name: str
    precision: str

    def whole(self, w_plus: Tensor) -> Any:
        """Features of the whole picture: what a picture and a mask loss need."""
        ...

    def around(self, w_plus: Tensor, handle_points: Tensor, reach: int, whole: Any | None) -> Any:
        """Features as far as pixels within ``reach`` of the points [1, N, 2] go; may be more. whole: those of the
        same latent, if they are there already."""
        ...

    def gradient(self, features: Any, grad_feature: Tensor) -> Tensor:
        """grad_feature, like the view's feature → gradient of the first rows of w_plus, [1, rows, w_dim] float32; the
        rows beyond have none. To be called once for each ``features``."""
        ...

    def picture(self, whole: Any, w_plus: Tensor) -> Tensor:
        """[1, image_channels, H, W], about −1…1; the same w_plus as for ``whole``."""
        ...

    def preview(self, whole: Any, w_plus: Tensor) -> Tensor:
        """[1, image_channels, h, w]: what the ToRGB layers up to the feature block make, in its resolution; the picture
        itself where there are none."""
        ...


@dataclass(frozen=True)
class GraphFeatures:
    """A forward pass with autograd's graph, whose leaf is w_plus."""

    activations: Activations
    w_plus: Tensor
    view: FeatureView


class ReferenceEngine:
    """``Generator`` and autograd: the specification of every other engine."""

    name, precision = "reference", "fp32"

    def __init__(self, generator: Generator, block: int, noise: str) -> None:
        self.generator, self.block, self.noise = generator, block, noise

    def whole(self, w_plus: Tensor) -> GraphFeatures:
        leaf = w_plus.detach().requires_grad_()
        activations = self.generator.features(leaf, self.block, self.noise)
        return GraphFeatures(activations, leaf, FeatureView(activations.x.detach(), image_size(self.generator)))

    def around(self, w_plus: Tensor, handle_points: Tensor, reach: int, whole: GraphFeatures | None) -> GraphFeatures:
        return self.whole(w_plus) if whole is None else whole

    def gradient(self, features: GraphFeatures, grad_feature: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(features.activations.x, features.w_plus, grad_feature)
        return gradient

    @torch.no_grad()
    def picture(self, whole: GraphFeatures, w_plus: Tensor) -> Tensor:
        return self.generator.render(whole.activations, w_plus)

    @torch.no_grad()
    def preview(self, whole: GraphFeatures, w_plus: Tensor) -> Tensor:
        return self.generator.preview(whole.activations, w_plus)


@dataclass(frozen=True)
class FrozenFeatures:
    """A forward pass of frozen weights, whole or on crops."""

    trace: Trace | RegionTrace
    view: FeatureView


class FastEngine:
    """``FrozenSynthesis``, shared by all sessions on the model; on crops where that is less work."""

    name = "fast"

    def __init__(self, synthesis: FrozenSynthesis, precision: str, size: tuple[int, int]) -> None:
        self.synthesis, self.precision, self.size = synthesis, precision, size

    def whole(self, w_plus: Tensor) -> FrozenFeatures:
        trace = self.synthesis.forward(w_plus)
        return FrozenFeatures(trace, FeatureView(trace.feature, self.size))

    def around(self, w_plus: Tensor, handle_points: Tensor, reach: int, whole: FrozenFeatures | None) -> FrozenFeatures:
        resolution = 4 << self.synthesis.block
        region = regions.region_around(handle_points[0], reach, resolution, self.size[0])
        first = None if region is None else regions.first_block(self.synthesis, region)
        if region is None or first is None or not ops.serves_crops(self.synthesis.const):
            return self.whole(w_plus) if whole is None else whole
        if whole is None:
            trace = regions.forward(self.synthesis, w_plus, region, first)
        else:
            assert isinstance(whole.trace, Trace)
            trace = regions.from_whole(self.synthesis, whole.trace, region, first)
        scale = self.size[0] // resolution
        side = region.size * scale
        return FrozenFeatures(trace, FeatureView(trace.feature, self.size, region.origin * scale, (side, side)))

    def gradient(self, features: FrozenFeatures, grad_feature: Tensor) -> Tensor:
        if isinstance(features.trace, RegionTrace):
            return regions.backward(self.synthesis, features.trace, grad_feature)
        return self.synthesis.backward(features.trace, grad_feature)

    def picture(self, whole: FrozenFeatures, w_plus: Tensor) -> Tensor:
        assert isinstance(whole.trace, Trace)
        return self.synthesis.render(whole.trace, w_plus)

    def preview(self, whole: FrozenFeatures, w_plus: Tensor) -> Tensor:
        assert isinstance(whole.trace, Trace)
        return self.synthesis.preview(whole.trace, w_plus)


def as_picture(image: Tensor) -> np.ndarray:
    """[1, image_channels, H, W], about −1…1 → uint8 [H, W, 3]."""
    pixels = (image[0].float() * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    if pixels.shape[2] < 3:  # grey
        pixels = pixels[..., :1].expand(-1, -1, 3)
    return pixels[..., :3].cpu().numpy().copy()


def image_size(generator: Generator) -> tuple[int, int]:
    return generator.config.resolution, generator.config.resolution


def best_precision(device: torch.device) -> tuple[str, str]:
    """(precision, reason): what "auto" means on this device for the fast engine."""
    if device.type == "cpu":
        if torch.cpu._is_amx_tile_supported() and can_pack(torch.empty(0, dtype=torch.bfloat16)):
            return "bf16", "this CPU multiplies bfloat16 matrices in hardware (AMX)"
        return "fp32", "this CPU has no AMX; bfloat16 is not measured on such CPUs"
    return "fp32", "lower precisions are not measured on this device yet"


def resolve(generator: Generator, device: torch.device, engine: str, precision: str) -> tuple[str, str]:
    """(engine, precision) that serve a session which asked for these; raises DragError if they cannot be combined."""
    if precision not in PRECISIONS:
        raise DragError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}.")
    reason = supported(generator)
    if engine == "reference" or (engine == "auto" and reason is not None):
        if precision not in ("auto", "fp32"):
            why = f" ({reason})" if engine == "auto" else ""
            raise DragError(f"The reference engine computes in fp32 only, not in {precision}{why}.")
        return "reference", "fp32"
    if reason is not None:
        raise DragError(f"The fast engine cannot run this network: {reason}.")
    return "fast", best_precision(device)[0] if precision == "auto" else precision


def make_engine(
    generator: Generator, device: torch.device, block: int, noise: str, engine: str = "auto", precision: str = "auto"
) -> Engine:
    """The engine for a session. Frozen weights are packed at the first call and then shared."""
    name, resolved = resolve(generator, device, engine, precision)
    if name == "reference":
        return ReferenceEngine(generator, block, noise)
    kept = _frozen.setdefault(generator, {})
    key = (block, resolved, noise, device)
    if key not in kept:
        kept[key] = FrozenSynthesis(generator, block, DTYPES[resolved], noise)
    return FastEngine(kept[key], resolved, image_size(generator))
