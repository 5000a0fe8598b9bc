"""The passes around the convolutions of a frozen network, and the choice of who computes them.

``draggan_fast.kernels.modulated_conv`` says what they compute. Float32 and bfloat16 maps on a CPU are served by the
compiled library where there is one, everything else by that specification; ``ops.forced_backend`` and
DRAGGAN_FAST_BACKEND force ``reference`` or ``cpp`` here too, and leave the choice where they force a backend that has
only drag ops (``cuda``, ``triton``). These are plain functions, not PyTorch operators: a step calls
them about thirty times, knows its own backward pass, and would pay for the dispatcher's bookkeeping. No autograd.

Maps must be channels-last; the compiled passes refuse others, with a sentence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import DragError
from .kernels import modulated_conv
from .kernels.modulated_conv import Phases
from .ops import what_is_missing, wished_backend

__all__ = ["Phases", "activate", "activate_backward", "activate_backward_fir", "backend", "fir_activate"]

COMPILED_DTYPES = (torch.float32, torch.bfloat16)


def backend(device_type: str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """Who serves such maps here: "cpp" or "reference". Raises DragError if a forced backend cannot."""
    wished = wished_backend()
    if wished == "reference":
        return "reference"
    missing = what_is_missing("cpp", device_type)
    if missing is None and dtype not in COMPILED_DTYPES:
        missing = f"it computes them for float32 and bfloat16 maps, not for {dtype}"
    if missing is None:
        return "cpp"
    if wished == "cpp":
        raise DragError(
            f"The backend 'cpp' was asked for but cannot serve the passes around the convolutions: {missing}."
        )
    return "reference"


def _compiled(x: Tensor) -> bool:
    return backend(x.device.type, x.dtype) == "cpp"


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
    if not _compiled(y):
        return modulated_conv.activate(y, demodulation, noise, bias, style, gain, clamp)
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
    if not _compiled(x):
        return modulated_conv.activate_backward(grad, style, x, demodulation, noise, bias, gain, clamp)
    return torch.ops.draggan_fast_native.activate_backward(grad, style, x, demodulation, noise, bias, gain, clamp)


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
    if not _compiled(phases[0]):
        return modulated_conv.fir_activate(phases, taps, demodulation, noise, bias, style, gain, clamp)
    x, scaled = torch.ops.draggan_fast_native.fir_activate(*phases, taps, demodulation, noise, bias, style, gain, clamp)
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
    if not _compiled(x):
        return modulated_conv.activate_backward_fir(grad, style, x, demodulation, noise, bias, gain, clamp, taps)
    *phases, grad_style, grad_demodulation = torch.ops.draggan_fast_native.activate_backward_fir(
        grad, style, x, demodulation, noise, bias, gain, clamp, taps
    )
    return (phases[0], phases[1], phases[2], phases[3]), grad_style, grad_demodulation
