"""What surrounds the convolution of a StyleGAN2 layer, in plain PyTorch: the specification of the fast passes.

A layer is: scale the input by the style → convolution with constant weights → demodulate, add noise and bias, leaky
ReLU, gain, clamp (Karras et al. 2020, §2.2, in the activation-scaled form). A layer's last pass also scales by the next
layer's style, and the backward pass yields the channel sums that the gradients of style and demodulation need, so that
every map is read and written once. The ×2 layer's passes include its FIR: its input is the transposed convolution as
four maps, even/odd rows × even/odd columns, and what lies between FIR and epilogue is never stored.

Shared conventions. Maps: [B, C, h, w], float32 or bfloat16 (float64 for tests), channels-last in memory; arithmetic is
float32 (float64), and only results are rounded to the maps' dtype. Per-channel factors (style, demodulation): [B, C]
float32; demodulation is not 0. bias: [C] float32. noise: [h, w] or [B, h, w] float32 (strength included) or
None. gain > 0. clamp > 0: the bound of the output (gain included) or None. taps: 2 to 16 numbers, the FIR of an axis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.2  # of the leaky ReLU
Phases = tuple[Tensor, Tensor, Tensor, Tensor]  # even_even, even_odd, odd_even, odd_odd: rows, then columns


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _per_channel(values: Tensor) -> Tensor:
    return _wide(values)[..., :, None, None]


def _stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


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
    return _activate(y, y.dtype, demodulation, noise, bias, style, gain, clamp)


def _activate(
    y: Tensor,
    dtype: torch.dtype,
    demodulation: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    style: Tensor | None,
    gain: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor]:
    z = _wide(y) * _per_channel(demodulation) + _per_channel(bias)
    if noise is not None:
        z = z + _wide(noise).unsqueeze(-3)
    x = F.leaky_relu(z, SLOPE) * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    stored = _stored(x, dtype)
    return stored, stored if style is None else _stored(x * _per_channel(style), dtype)


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

    grad: gradient of x·style, like x. The convolution's output is not kept: with z = demodulation·y + noise + bias
    known from x (leaky ReLU is invertible), demodulation·y = z − noise − bias. Where x was clamped nothing flows back.
    """
    grad_y, *sums = _activate_backward(grad, style, x, demodulation, noise, bias, gain, clamp)
    return _stored(grad_y, x.dtype), sums[0], sums[1]


def _activate_backward(
    grad: Tensor,
    style: Tensor | None,
    x: Tensor,
    demodulation: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    gain: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``activate_backward`` with grad_y before it is rounded."""
    grad, value = _wide(grad), _wide(x)
    grad_style = (grad * value).sum(dim=(2, 3))
    if style is not None:
        grad = grad * _per_channel(style)
    slope = torch.where(value > 0, gain, gain * SLOPE).to(value.dtype)
    grad_z = grad * slope
    if clamp is not None:
        bound = torch.tensor(clamp, dtype=x.dtype)  # as a clamped x shows it: in bfloat16 it may be below clamp
        grad_z = grad_z.masked_fill(value.abs() >= _wide(bound), 0)
    convolved = value / slope - _per_channel(bias)
    if noise is not None:
        convolved = convolved - _wide(noise).unsqueeze(-3)
    grad_demodulation = (grad_z * convolved).sum(dim=(2, 3)) / _wide(demodulation)
    return grad_z * _per_channel(demodulation), grad_style, grad_demodulation


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
    """``activate`` of y = ``fir(phases)``: phases [B, C, h (+ 1), w (+ 1)] → (x, x·style) [B, C, 2h, 2w]."""
    return _activate(fir(phases, taps), phases[0].dtype, demodulation, noise, bias, style, gain, clamp)


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
    """The transpose of ``fir_activate``: (gradients of the phases, like x; grad_style, grad_demodulation [B, C])."""
    grad_y, grad_style, grad_demodulation = _activate_backward(grad, style, x, demodulation, noise, bias, gain, clamp)
    first, second, third, fourth = (_stored(part, x.dtype) for part in fir_backward(grad_y, taps))
    return (first, second, third, fourth), grad_style, grad_demodulation


def fir_padding(taps: tuple[float, ...]) -> tuple[int, int]:
    """How many zeros the FIR of a ×2 layer sees before and after its input, per axis."""
    return (len(taps) + 1) // 2 - 1, (len(taps) - 2) // 2


def normalised(taps: tuple[float, ...]) -> list[float]:
    """The taps along one axis in correlation order, summing to 2: of every two inputs one was a zero."""
    return [2.0 * tap / sum(taps) for tap in reversed(taps)]


def fir(phases: Phases, taps: tuple[float, ...]) -> Tensor:
    """The FIR over the map that the phases make up: → y [B, C, 2h, 2w], float32 (float64)."""
    even_even, even_odd, odd_even, odd_odd = (_wide(phase) for phase in phases)
    batch, channels, h1, w1 = even_even.shape
    whole = even_even.new_empty(batch, channels, 2 * h1 - 1, 2 * w1 - 1)
    whole[..., ::2, ::2], whole[..., ::2, 1::2] = even_even, even_odd
    whole[..., 1::2, ::2], whole[..., 1::2, 1::2] = odd_even, odd_odd
    return _correlate(whole, normalised(taps), fir_padding(taps))


def fir_backward(grad: Tensor, taps: tuple[float, ...]) -> Phases:
    """The transpose of ``fir``: grad [B, C, 2h, 2w] → gradients of the four phases, float32 (float64)."""
    before, after = fir_padding(taps)
    count = len(taps)
    whole = _correlate(_wide(grad), normalised(taps)[::-1], (count - 1 - before, count - 1 - after))
    return whole[..., ::2, ::2], whole[..., ::2, 1::2], whole[..., 1::2, ::2], whole[..., 1::2, 1::2]


def _correlate(values: Tensor, taps: list[float], padding: tuple[int, int]) -> Tensor:
    values = F.pad(values, (*padding, *padding))
    for dim in (2, 3):
        length = values.shape[dim] - len(taps) + 1
        total = taps[0] * values.narrow(dim, 0, length)
        for j, tap in enumerate(taps[1:], 1):
            total.add_(values.narrow(dim, j, length), alpha=tap)
        values = total
    return values
