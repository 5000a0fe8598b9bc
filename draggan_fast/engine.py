"""Who computes a step's synthesis and its gradient: one small interface, and the choice behind it.

``DragSession`` knows four calls: features of a latent, whole or around the handles; the gradient of the latent from
that of the feature; and the picture. The reference engine answers them with ``Generator`` and autograd, in float32;
the fast one with ``FrozenSynthesis``. In float32 both agree to rounding.
"""

from __future__ import annotations

import math
import os
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from . import regions
from .errors import DragError
from .frozen import FrozenSynthesis, Trace, scaled_for, supported
from .generator import Activations, Generator
from .packed_conv import can_pack
from .places import Place, Places, Region
from .regions import RegionTrace
from .views import FeatureView

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)
# Operations that a multiprocessor's tensor cores do per clock, accumulating in float32, by compute capability (data
# sheets, ascending), and its other units in float32. What share of it a convolution of one picture reaches, and what a
# launch inside a graph takes, are guesses; how many launches a block on crops needs beyond a whole one is counted.
TENSOR_RATES = {(7, 0): 1024, (7, 5): 512, (8, 0): 2048, (8, 6): 512, (9, 0): 4096}
FLOAT32_RATE, CLOCK, EFFICIENCY = 256, 1.7e9, 0.4
LEVEL_LAUNCHES, LAUNCH_SECONDS = 55, 1.7e-6
COMPILE = "DRAGGAN_FAST_COMPILE"
FP16_CAPABILITY, BF16_CAPABILITY = 7, 8  # compute capabilities whose tensor cores multiply these


class CompiledSynthesis(FrozenSynthesis):
    """With torch's compiler around the whole forward pass and around the picture (not around crops). It writes kernels
    of its own for the passes between the convolutions; its first call takes a minute."""

    def __init__(self, generator: Generator, block: int, precision: torch.dtype, noise: str = "const") -> None:
        super().__init__(generator, block, precision, noise)
        compiled: Any = torch.compile  # it would forget the signatures
        self._forward = compiled(super().forward, fullgraph=True, dynamic=False)
        self._render = compiled(super().render, fullgraph=True, dynamic=False)

    def forward(self, w_plus: Tensor) -> Trace:
        trace: Trace = self._forward(w_plus)
        return trace

    def render(self, trace: Trace, w_plus: Tensor) -> Tensor:
        picture: Tensor = self._render(trace, w_plus)
        return picture


class Shared(NamedTuple):
    """What the sessions on a network share: its packed weights, and whatever steps were captured (graphs.py)."""

    synthesis: FrozenSynthesis
    captured: OrderedDict[Any, Any]


# Of every network that is alive the last few: packed weights are several times as large as the network. Sessions keep
# what they use in any case.
KEPT = 2
_frozen: weakref.WeakKeyDictionary[Generator, OrderedDict[tuple[Any, ...], Shared]] = weakref.WeakKeyDictionary()


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

    def __init__(
        self,
        synthesis: FrozenSynthesis,
        precision: str,
        size: tuple[int, int],
        captured: OrderedDict[Any, Any] | None = None,
    ) -> None:
        self.synthesis, self.precision, self.size = synthesis, precision, size
        self.captured = OrderedDict() if captured is None else captured
        self.level_cost = level_cost(self.device, synthesis.precision)
        self._places = Places(synthesis)

    @property
    def device(self) -> torch.device:
        return self.synthesis.const.device

    @property
    def resolution(self) -> int:
        """Cells along an axis of the whole feature."""
        return 4 << self.synthesis.block

    def whole(self, w_plus: Tensor) -> FrozenFeatures:
        trace = self.synthesis.forward(w_plus)
        return FrozenFeatures(trace, FeatureView(seen(trace.feature), self.size))

    def around(self, w_plus: Tensor, handle_points: Tensor, reach: int, whole: FrozenFeatures | None) -> FrozenFeatures:
        region = regions.region_around(handle_points[0], reach, self.resolution, self.size[0])
        first = None if region is None else regions.first_block(self.synthesis, region, self.level_cost)
        if region is None or first is None:
            return self.whole(w_plus) if whole is None else whole
        return self.on_crops(w_plus, region, first, whole, self._places.of(region, first))

    def on_crops(
        self,
        w_plus: Tensor,
        region: Region,
        first: int,
        whole: FrozenFeatures | None,
        known: Sequence[Place] | None = None,
    ) -> FrozenFeatures:
        if whole is None:
            trace = regions.forward(self.synthesis, w_plus, region, first, known)
        else:
            assert isinstance(whole.trace, Trace)
            trace = regions.from_whole(self.synthesis, whole.trace, region, first, known)
        scale = self.size[0] // self.resolution
        side = region.size * scale
        return FrozenFeatures(trace, FeatureView(seen(trace.feature), self.size, region.origin * scale, (side, side)))

    def gradient(self, features: FrozenFeatures, grad_feature: Tensor) -> Tensor:
        grad_feature, scale = scaled_for(self.synthesis.precision, grad_feature)
        if isinstance(features.trace, RegionTrace):
            gradient = regions.backward(self.synthesis, features.trace, grad_feature)
        else:
            gradient = self.synthesis.backward(features.trace, grad_feature)
        return gradient if scale is None else gradient / scale

    def picture(self, whole: FrozenFeatures, w_plus: Tensor) -> Tensor:
        assert isinstance(whole.trace, Trace)
        return self.synthesis.render(whole.trace, w_plus)

    def preview(self, whole: FrozenFeatures, w_plus: Tensor) -> Tensor:
        assert isinstance(whole.trace, Trace)
        return self.synthesis.preview(whole.trace, w_plus)


def as_picture(image: Tensor) -> np.ndarray:
    """[1, image_channels, H, W], about −1…1 → uint8 [H, W, 3]. Raises DragError rather than show what is not finite."""
    if not math.isfinite(image.sum().item()):  # one pass; what is no picture at all may be so large that it overflows
        raise DragError("The picture of this latent is not finite: it is too far from what the network knows.")
    pixels = (image[0].float() * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    if pixels.shape[2] < 3:  # grey
        pixels = pixels[..., :1].expand(-1, -1, 3)
    return pixels[..., :3].cpu().numpy().copy()


def seen(feature: Tensor) -> Tensor:
    """A feature as the drag ops get it: float16 in float32, since the ops give gradients in the feature's dtype, and
    these lie below what float16 holds."""
    return feature.float() if feature.dtype == torch.float16 else feature


def image_size(generator: Generator) -> tuple[int, int]:
    return generator.config.resolution, generator.config.resolution


def level_cost(device: torch.device, precision: torch.dtype) -> float:
    """What a block on crops costs in kernel launches, as multiply-adds of a forward pass (see ``regions.first_block``).

    Nothing on a CPU. A GPU that computes the whole block in the time of those launches had better do that: an estimate
    from its number of multiprocessors, not measured yet (tools/gpu_step.py compares both ways).
    """
    if device.type != "cuda":
        return 0.0
    properties = torch.cuda.get_device_properties(device)
    per_clock = FLOAT32_RATE
    if precision != torch.float32:
        capability = (properties.major, properties.minor)
        known = [rate for least, rate in TENSOR_RATES.items() if least <= capability]
        per_clock = known[-1] if known else FLOAT32_RATE
    flop_per_second = properties.multi_processor_count * per_clock * CLOCK * EFFICIENCY
    return LEVEL_LAUNCHES * LAUNCH_SECONDS * flop_per_second / 4  # a multiply-add is two, and the backward pass as much


def best_precision(device: torch.device) -> tuple[str, str]:
    """(precision, reason): what "auto" means on this device for the fast engine."""
    if device.type == "cpu":
        if torch.cpu._is_amx_tile_supported() and can_pack(torch.empty(0, dtype=torch.bfloat16)):
            return "bf16", "this CPU multiplies bfloat16 matrices in hardware (AMX)"
        return "fp32", "this CPU has no AMX; bfloat16 is not measured on such CPUs"
    major, minor = torch.cuda.get_device_capability(device)
    this = f"this GPU (compute capability {major}.{minor})"
    if major >= BF16_CAPABILITY:
        return "bf16", f"{this} multiplies bfloat16 in its tensor cores; by its data sheet, not measured here"
    if major >= FP16_CAPABILITY:
        return "fp16", f"{this} has tensor cores for float16 but not for bfloat16; by its data sheet, not measured here"
    return "fp32", f"{this} has no tensor cores"


def switched_on(name: str, usual: bool) -> bool:
    """An environment variable that is "on" or "off". Raises DragError for anything else."""
    wished = os.environ.get(name, "on" if usual else "off")
    if wished not in ("on", "off"):
        raise DragError(f"{name} must be on or off, not {wished!r}.")
    return wished == "on"


def compiles(device: torch.device) -> bool:
    """Whether torch's compiler is used: on a GPU, for who sets DRAGGAN_FAST_COMPILE=on. Not measured yet."""
    return switched_on(COMPILE, usual=False) and device.type == "cuda"


def refusal(precision: str, device: torch.device) -> str | None:
    """Why this precision is not served on the device, in a sentence; None if it is."""
    if precision == "fp16" and device.type == "cpu":
        return "fp16 is for GPUs: on a CPU it would be slower than fp32 and less exact; choose fp32 or bf16."
    return None


def resolve(generator: Generator, device: torch.device, engine: str, precision: str) -> tuple[str, str]:
    """(engine, precision) that serve a session which asked for these; raises DragError if they cannot be combined."""
    if precision not in PRECISIONS:
        raise DragError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}.")
    refused = refusal(precision, device)
    if refused is not None:
        raise DragError(refused)
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
    kept = _frozen.setdefault(generator, OrderedDict())
    key = (block, resolved, noise, device, changes_of(generator))
    if key not in kept:
        kind = CompiledSynthesis if compiles(device) else FrozenSynthesis
        kept[key] = Shared(kind(generator, block, DTYPES[resolved], noise), OrderedDict())
    kept.move_to_end(key)
    while len(kept) > KEPT:
        kept.popitem(last=False)
    return FastEngine(kept[key].synthesis, resolved, image_size(generator), kept[key].captured)


def changes_of(generator: Generator) -> int:
    """A number that grows when somebody writes to the network's weights: what was packed before is then another's."""
    return sum(0 if p.is_inference() else p._version for p in generator.parameters())
