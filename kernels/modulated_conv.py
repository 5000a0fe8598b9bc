"""What surrounds the convolution of a StyleGAN2 layer, in plain PyTorch: the specification of the fast passes.

A layer is: scale the input by the style → convolution with constant weights → demodulate, add noise and bias, leaky
ReLU, gain, clamp (Karras et al. 2020, §2.2, in the activation-scaled form). A layer's last pass also scales by the
*next* layer's style, and the backward pass yields the channel sums that the gradient of style and demodulation need,
so that every map is read and written once.

Shared conventions. Maps: [B, C, h, w], float32 or bfloat16, channels-last in memory; arithmetic is float32. Per-channel
factors (style, demodulation): [B, C] float32. bias: [C] float32. noise: [h, w] or [B, h, w] float32 (strength
included) or None.
gain > 0; clamp: the bound of the output (gain included) or None.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.2  # of the leaky ReLU
CHANNELS_LAST = torch.channels_last


def per_channel(values: Tensor) -> Tensor:
    return values.float()[..., :, None, None]


def activate(
    y: Tensor,
    demodulation: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    style: Tensor | None,
    gain: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor]:
    """(x, x·style) from the convolution's output y, both like y; style None = the second is x itself."""
    z = y.float() * per_channel(demodulation) + per_channel(bias)
    if noise is not None:
        z = z + noise.float().unsqueeze(-3)
    x = F.leaky_relu(z, SLOPE) * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    scaled = x if style is None else x * per_channel(style)
    return tuple(t.to(y.dtype).contiguous(memory_format=CHANNELS_LAST) for t in (x, scaled))  # type: ignore[return-value]


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
    """The transpose of ``activate``, from x alone: (grad_y like x, grad_style [B, C], grad_demodulation [B, C]).

    grad: gradient of x·style. The convolution's output is not kept: with z = demodulation·y + noise + bias known from
    x (leaky ReLU is invertible), demodulation·y = z − noise − bias. Where x was clamped nothing flows back.
    """
    grad, value = grad.float(), x.float()
    grad_style = (grad * value).sum(dim=(2, 3))
    if style is not None:
        grad = grad * per_channel(style)
    slope = torch.where(value >= 0, gain, gain * SLOPE)
    grad_z = grad * slope
    if clamp is not None:
        grad_z = grad_z.masked_fill(value.abs() >= clamp, 0)
    convolved = value / slope - per_channel(bias)
    if noise is not None:
        convolved = convolved - noise.float().unsqueeze(-3)
    grad_demodulation = (grad_z * convolved).sum(dim=(2, 3)) / demodulation.float()
    grad_y = (grad_z * per_channel(demodulation)).to(x.dtype).contiguous(memory_format=CHANNELS_LAST)
    return grad_y, grad_style, grad_demodulation


def phases_to_map(phases: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Even/odd rows × even/odd columns of the ×2 layer's transposed convolution → the map [B, C, 2h+1, 2w+1]."""
    even_even, even_odd, odd_even, odd_odd = phases
    batch, channels, h1, w1 = even_even.shape
    whole = even_even.new_empty(batch, channels, 2 * h1 - 1, 2 * w1 - 1).contiguous(memory_format=CHANNELS_LAST)
    whole[..., ::2, ::2], whole[..., ::2, 1::2] = even_even, even_odd
    whole[..., 1::2, ::2], whole[..., 1::2, 1::2] = odd_even, odd_odd
    return whole


def fir_padding(taps: tuple[float, ...]) -> tuple[int, int]:
    """How many zeros the FIR of a ×2 layer sees before and after the map, per axis."""
    return (len(taps) + 1) // 2 - 1, (len(taps) - 2) // 2


def normalised(taps: tuple[float, ...]) -> list[float]:
    """The 1-D taps of the FIR, flipped into correlation order, summing to 2 (4 over both axes)."""
    return [2.0 * t / sum(taps) for t in reversed(taps)]


def fir(phases: tuple[Tensor, Tensor, Tensor, Tensor], taps: tuple[float, ...]) -> Tensor:
    """The FIR over the phases' map: → y [B, C, 2h, 2w], like the phases."""
    whole = phases_to_map(phases).float()
    before, after = fir_padding(taps)
    whole = F.pad(whole, (before, after, before, after))
    for dim in (2, 3):
        length = whole.shape[dim] - len(taps) + 1
        whole = sum(tap * whole.narrow(dim, j, length) for j, tap in enumerate(normalised(taps)))  # type: ignore[assignment]
    return whole.to(phases[0].dtype).contiguous(memory_format=CHANNELS_LAST)


def fir_backward(grad: Tensor, taps: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The transpose of ``fir``: grad [B, C, 2h, 2w] → gradients of the four phases, like grad."""
    whole = grad.float()
    before, after = fir_padding(taps)
    count = len(taps)
    whole = F.pad(whole, (count - 1 - before, count - 1 - after, count - 1 - before, count - 1 - after))
    for dim in (2, 3):
        length = whole.shape[dim] - count + 1
        flipped = normalised(taps)[::-1]
        whole = sum(tap * whole.narrow(dim, j, length) for j, tap in enumerate(flipped))  # type: ignore[assignment]
    whole = whole.to(grad.dtype)
    return tuple(  # type: ignore[return-value]
        whole[..., i::2, j::2].contiguous(memory_format=CHANNELS_LAST) for i in (0, 1) for j in (0, 1)
    )
