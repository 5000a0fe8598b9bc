"""Who computes a step's synthesis and its gradient: one small interface, and the choice behind it.

``DragSession`` knows three calls: features of a latent, gradient of the latent from the gradient of the feature, and
the picture. The reference engine answers them with ``Generator`` and autograd, in float32; the fast one with
``FrozenSynthesis``. In float32 both agree to rounding.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .errors import DragError
from .frozen import FrozenSynthesis, Trace, supported
from .generator import Activations, Generator

PRECISIONS = ("auto", "fp32", "bf16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Features(Protocol):
    """What an engine remembers of a forward pass."""

    @property
    def feature(self) -> Tensor:
        """[B, C, h, w] of the feature block."""
        ...


class Engine(Protocol):
    """name and precision as reports show them."""

    name: str
    precision: str

    def features(self, w_plus: Tensor) -> Features:
        """w_plus [B, num_ws, w_dim] float32 → the truncated synthesis."""
        ...

    def gradient(self, features: Any, grad_feature: Tensor) -> Tensor:
        """grad_feature [B, C, h, w] → gradient of the first rows of w_plus, [B, rows, w_dim] float32; the rows beyond
        have none. To be called once per ``features``."""
        ...

    def picture(self, features: Any, w_plus: Tensor) -> Tensor:
        """[B, image_channels, H, W], about −1…1; the same w_plus as for ``features``."""
        ...


class GraphFeatures(NamedTuple):
    """A forward pass with autograd's graph."""

    activations: Activations
    w_plus: Tensor  # its leaf

    @property
    def feature(self) -> Tensor:
        return self.activations.x.detach()


class ReferenceEngine:
    """``Generator`` and autograd: the specification of every other engine."""

    name, precision = "reference", "fp32"

    def __init__(self, generator: Generator, block: int, noise: str) -> None:
        self.generator, self.block, self.noise = generator, block, noise

    def features(self, w_plus: Tensor) -> GraphFeatures:
        leaf = w_plus.detach().requires_grad_()
        return GraphFeatures(self.generator.features(leaf, self.block, self.noise), leaf)

    def gradient(self, features: GraphFeatures, grad_feature: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(features.activations.x, features.w_plus, grad_feature)
        return gradient

    @torch.no_grad()
    def picture(self, features: GraphFeatures, w_plus: Tensor) -> Tensor:
        return self.generator.render(features.activations, w_plus)


class FastEngine:
    """``FrozenSynthesis``, shared by all sessions on the model."""

    name = "fast"

    def __init__(self, synthesis: FrozenSynthesis, precision: str) -> None:
        self.synthesis, self.precision = synthesis, precision

    def features(self, w_plus: Tensor) -> Trace:
        return self.synthesis.forward(w_plus)

    def gradient(self, features: Trace, grad_feature: Tensor) -> Tensor:
        return self.synthesis.backward(features, grad_feature)

    def picture(self, features: Trace, w_plus: Tensor) -> Tensor:
        return self.synthesis.render(features, w_plus)


def best_precision(device: torch.device) -> tuple[str, str]:
    """(precision, reason): what "auto" means on this device for the fast engine."""
    if device.type == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return "bf16", "this CPU multiplies bfloat16 matrices in hardware (AMX)"
        return "fp32", "this CPU has no AMX: bfloat16 would not be faster"
    return "fp32", "lower precisions are not measured on this device yet"


def resolve(generator: Generator, device: torch.device, engine: str, precision: str) -> tuple[str, str]:
    """(engine, precision) that serve a session which asked for these; raises DragError if they cannot be combined."""
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
    return FastEngine(_frozen(weakref.ref(generator), block, resolved, noise), resolved)


@functools.lru_cache(maxsize=8)
def _frozen(generator: weakref.ref[Generator], block: int, precision: str, noise: str) -> FrozenSynthesis:
    network = generator()
    assert network is not None  # the caller holds it
    return FrozenSynthesis(network, block, DTYPES[precision], noise)
