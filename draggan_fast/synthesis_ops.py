"""The passes around the convolutions of a frozen network, Winograd's convolutions and styles: who computes them.

``draggan_fast.kernels.modulated_conv``, ``.winograd``, ``.winograd_up`` and ``.styles`` say what they compute. Float32
and bfloat16 maps on a CPU are served by the compiled library where there is one, maps on a GPU by Triton where it is
installed, everything else by those specifications: also what torch.compile traces, which fuses plain operators itself.
``ops.forced_backend`` and DRAGGAN_FAST_BACKEND force ``reference``, ``cpp`` or ``triton`` here too, and leave the
choice where they force the one that has only drag ops (``cuda``). These are plain functions, not PyTorch operators: a
step calls them about thirty times, knows its own backward pass, and would pay for the dispatcher's bookkeeping. No
autograd.

Maps must be channels-last; the fast passes refuse others, with a sentence.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import DragError
from .kernels import modulated_conv, styles, winograd
from .kernels import winograd_up as up_specification
from .kernels.modulated_conv import Phases
from .ops import what_is_missing, wished_backend

__all__ = [
    "Phases", "StyleMatrices", "activate", "activate_backward", "activate_backward_fir", "backend", "fir_activate",
    "latent_gradient", "modulation", "to_rgb", "winograd_conv", "winograd_served", "winograd_up",
    "winograd_up_transpose", "winograd_up_weight", "winograd_weight",
]  # fmt: skip

SERVED_DTYPES = {
    "cpp": (torch.float32, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def backend(device_type: str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """Who serves such maps here: "cpp", "triton" or "reference". Raises DragError if a forced backend cannot."""
    wished = wished_backend()
    if wished == "reference":
        return "reference"
    usual = "triton" if device_type == "cuda" else "cpp"
    name = wished if wished in SERVED_DTYPES else usual
    missing = what_is_missing(name, device_type)
    if missing is None and dtype not in SERVED_DTYPES[name]:
        served = [NAMES[known] for known in SERVED_DTYPES[name]]
        missing = f"it computes them for {' and '.join(served)} maps, not for {dtype}"
    if missing is None:
        return name
    if wished == name:
        raise DragError(
            f"The backend {name!r} was asked for but cannot serve the passes around the convolutions: {missing}."
        )
    return "reference"


def _server(x: Tensor) -> str:
    """The backend of a call on this map."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:  # traced or faked: nothing to compute on
        return "reference"
    return backend(x.device.type, x.dtype)


@functools.cache
def _triton(stem: str) -> ModuleType:
    return importlib.import_module(f"draggan_fast.kernels.{stem}")  # late: it imports Triton


def activate(
    y: Tensor,
    demodulation: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    style: Tensor | None,
    gain: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor]:
    """(x, x·style) from a convolution's output; see ``modulated_conv.activate``."""
    server = _server(y)
    if server == "reference":
        return modulated_conv.activate(y, demodulation, noise, bias, style, gain, clamp)
    if server == "triton":
        return _triton("modulated_conv_triton").activate(y, demodulation, noise, bias, style, gain, clamp)
    x, scaled = torch.ops.draggan_fast_native.activate(y, demodulation, noise, bias, style, gain, clamp)
    return x, x if style is None else scaled


def activate_backward(
    grad: Tensor,
    style: Tensor | None,
    x: Tensor,
    demodulation: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    gain: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_y, grad_style, grad_demodulation); see ``modulated_conv.activate_backward``."""
    server = _server(x)
    arguments = (grad, style, x, demodulation, noise, bias, gain, clamp)
    if server == "reference":
        return modulated_conv.activate_backward(*arguments)
    if server == "triton":
        return _triton("modulated_conv_triton").activate_backward(*arguments)
    return torch.ops.draggan_fast_native.activate_backward(*arguments)


def fir_activate(
    phases: Phases,
    taps: tuple[float, ...],
    demodulation: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    style: Tensor | None,
    gain: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor]:
    """(x, x·style) from the ×2 layer's transposed convolution; see ``modulated_conv.fir_activate``."""
    server = _server(phases[0])
    rest = (taps, demodulation, noise, bias, style, gain, clamp)
    if server == "reference":
        return modulated_conv.fir_activate(phases, *rest)
    if server == "triton":
        return _triton("modulated_conv_fir_triton").fir_activate(phases, *rest)
    x, scaled = torch.ops.draggan_fast_native.fir_activate(*phases, *rest)
    return x, x if style is None else scaled


def activate_backward_fir(
    grad: Tensor,
    style: Tensor | None,
    x: Tensor,
    demodulation: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    gain: float,
    clamp: float | None,
    taps: tuple[float, ...],
) -> tuple[Phases, Tensor, Tensor]:
    """(gradients of the phases, grad_style, grad_demodulation); see ``modulated_conv.activate_backward_fir``."""
    server = _server(x)
    arguments = (grad, style, x, demodulation, noise, bias, gain, clamp, taps)
    if server == "reference":
        return modulated_conv.activate_backward_fir(*arguments)
    if server == "triton":
        return _triton("modulated_conv_fir_triton").activate_backward_fir(*arguments)
    *phases, grad_style, grad_demodulation = torch.ops.draggan_fast_native.activate_backward_fir(*arguments)
    return (phases[0], phases[1], phases[2], phases[3]), grad_style, grad_demodulation


def winograd_served() -> bool:
    """Whether Winograd convolutions are faster here than the library's: only the compiled ones are."""
    return backend() == "cpp"


def winograd_weight(weight: Tensor) -> Tensor:
    """[C', C, 3, 3] as ``winograd_conv`` wants it, [36, ⌈C'/16⌉, C, 16]; see ``winograd.transform_weight``."""
    return winograd.transform_weight(weight)


def winograd_conv(x: Tensor, panels: Tensor, out_channels: int, padding: tuple[int, int]) -> Tensor:
    """A 3×3 convolution of a float32 map on the CPU; see ``winograd.winograd_conv``. Few tiles (4×4 outputs) or few
    channels are dearer than directly: the transforms cost what the products save."""
    if _server(x) == "cpp":
        return torch.ops.draggan_fast_native.winograd_conv(x, panels, out_channels, padding)
    return winograd.winograd_conv(x, panels, out_channels, padding)


def winograd_up_weight(weight: Tensor) -> Tensor:
    """[C', C, 3, 3] as ``winograd_up`` wants it, for ``winograd_up_transpose`` turned before; see
    ``kernels.winograd_up.transform_weight``."""
    return up_specification.transform_weight(weight)


def winograd_up(x: Tensor, panels: Tensor, out_channels: int) -> Phases:
    """The ×2 layer's transposed convolution of a float32 map on the CPU; see ``kernels.winograd_up``."""
    if _server(x) == "cpp":
        first, second, third, fourth = torch.ops.draggan_fast_native.winograd_up(x, panels, out_channels)
        return first, second, third, fourth
    return up_specification.winograd_up(x, panels, out_channels)


def winograd_up_transpose(phases: Phases, panels: Tensor, out_channels: int) -> Tensor:
    """Its transpose: the phases → a map; see ``kernels.winograd_up``."""
    if _server(phases[0]) == "cpp":
        return torch.ops.draggan_fast_native.winograd_up_transpose(*phases, panels, out_channels)
    return up_specification.winograd_up_transpose(phases, panels, out_channels)


class StyleMatrices(NamedTuple):
    """Of each layer, see ``kernels.styles``."""

    affines: list[Tensor]
    biases: list[Tensor]
    energies: list[Tensor]


def modulation(w_plus: Tensor, first_row: int, matrices: StyleMatrices) -> tuple[list[Tensor], list[Tensor]]:
    """(styles, demodulations) of the layers; see ``kernels.styles.modulation``."""
    if _server(w_plus) == "cpp":
        made = torch.ops.draggan_fast_native.modulation(w_plus.contiguous(), first_row, *matrices)
        return made[: len(made) // 2], made[len(made) // 2 :]
    return styles.modulation(w_plus, first_row, *matrices)


def latent_gradient(
    grad_styles: list[Tensor],
    grad_demodulations: list[Tensor],
    modulated: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor] | None],
    matrices: StyleMatrices,
) -> Tensor:
    """[B, layers, w_dim]; modulated: styles, demodulations, divisors. See ``kernels.styles.latent_gradient``."""
    of_styles, of_demodulations, divisors = modulated
    if divisors is None and _server(of_styles[0]) == "cpp":
        return torch.ops.draggan_fast_native.latent_gradient(
            grad_styles, grad_demodulations, of_styles, of_demodulations, matrices.energies, matrices.affines
        )
    return styles.latent_gradient(
        grad_styles, grad_demodulations, of_styles, of_demodulations, matrices.energies, matrices.affines, divisors
    )


def to_rgb(x: Tensor, weight: Tensor, bias: Tensor, clamp: float | None, onto: Tensor | None) -> Tensor:
    """``kernels.styles.to_rgb``, added to an image that is there (in place)."""
    if x.dtype == torch.float32 and _server(x) == "cpp":
        if onto is None:
            onto = x.new_zeros(x.shape[0], len(bias), *x.shape[2:])
        onto = onto.contiguous()
        torch.ops.draggan_fast_native.add_to_rgb(x, weight, bias, clamp, onto)
        return onto
    added = styles.to_rgb(x, weight, bias, clamp)
    return added if onto is None else onto.add_(added)
