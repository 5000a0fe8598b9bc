"""The passes around a plain layer's convolution in Triton. What they compute: ``modulated_conv.activate`` and
``activate_backward``; those of the ×2 layer are in ``modulated_conv_fir_triton.py``.

Maps are channels-last, so that a tile of ``BLOCK`` pixels × ``BLOCK_C`` channels is read and written in whole lines,
and factors per channel are read once a tile. The floor is memory: at [1, 256, 128, 128] in bfloat16 ``activate`` reads
8.4 MB and writes 16.8 MB, ``activate_backward`` reads 16.8 MB and writes 8.4 MB: 25 MB, 5 µs at 4.8 TB/s.

The sums over a map's pixels go through memory: every program writes those of its ``RUN`` tiles, float32
[B, parts, 2, C], and ``modulation_sums`` adds them in a fixed order, so that results have the same bits every time.
In bfloat16 they are 4% of the traffic.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take Triton values; the launchers below are typed)
from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from ._shared import on_device

SLOPE = tl.constexpr(0.2)  # of the leaky ReLU
RUN = 4  # tiles that a program of the backward passes goes over
# subtle: not among them are the channels: that 16 divides them lets the compiler read and write 16 bytes at a time.
SIZES = ["pixels", "noise_stride", "demodulation_stride", "style_stride"]


@triton.jit
def activated(z, gain, clamp, CLAMP: tl.constexpr):
    """Leaky ReLU, gain, clamp. Comparisons, not minima: a NaN stays one."""
    x = tl.where(z > 0.0, z, z * SLOPE) * gain
    if CLAMP:
        x = tl.where(x > clamp, clamp, x)
        x = tl.where(x < -clamp, -clamp, x)
    return x


@triton.jit
def undone(grad, value, style, gain, bound, CLAMP: tl.constexpr, STYLE: tl.constexpr):
    """(gradient of z, slope of the activation at the stored value): grad is that of value·style; style [1, C]."""
    slope = tl.where(value > 0.0, gain, gain * SLOPE)
    if STYLE:
        grad = grad * style
    grad = grad * slope
    if CLAMP:
        grad = tl.where(tl.abs(value) >= bound, 0.0, grad)
    return grad, slope


@triton.jit
def store_activated(z, x, scaled, place, mask, style, gain, clamp, CLAMP: tl.constexpr, STYLE: tl.constexpr):
    """Stores the activation of z and, if there is a style [1, C], its product with it."""
    value = activated(z, gain, clamp, CLAMP)
    tl.store(x + place, value.to(x.dtype.element_ty), mask=mask)
    if STYLE:
        tl.store(scaled + place, (value * style).to(x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def activate_map(
    y,
    x,
    scaled,
    demodulation,
    noise,
    bias,
    style,
    gain,
    clamp,
    channels,
    pixels,
    noise_stride,
    demodulation_stride,
    style_stride,
    NOISE: tl.constexpr,
    STYLE: tl.constexpr,
    CLAMP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    present = channel < channels
    mask = (pixel < pixels)[:, None] & present[None, :]
    place = pixel[:, None] * channels + channel[None, :]
    start = batch * pixels * channels
    factor = tl.load(demodulation + batch * demodulation_stride + channel, mask=present, other=0.0)[None, :]
    z = tl.load(y + start + place, mask=mask, other=0.0).to(tl.float32) * factor
    z += tl.load(bias + channel, mask=present, other=0.0)[None, :]
    if NOISE:
        z += tl.load(noise + batch * noise_stride + pixel, mask=pixel < pixels, other=0.0)[:, None]
    by = factor
    if STYLE:
        by = tl.load(style + batch * style_stride + channel, mask=present, other=0.0)[None, :]
    store_activated(z, x + start, scaled + start, place, mask, by, gain, clamp, CLAMP, STYLE)


@triton.jit(do_not_specialize=[*SIZES, "parts"])
def activate_map_backward(
    grad,
    x,
    grad_y,
    partials,
    demodulation,
    noise,
    bias,
    style,
    gain,
    bound,
    channels,
    pixels,
    noise_stride,
    demodulation_stride,
    style_stride,
    parts,
    NOISE: tl.constexpr,
    STYLE: tl.constexpr,
    CLAMP: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    present = channel < channels
    factor = tl.load(demodulation + batch * demodulation_stride + channel, mask=present, other=0.0)[None, :]
    shift = tl.load(bias + channel, mask=present, other=0.0)[None, :]
    by = factor
    if STYLE:
        by = tl.load(style + batch * style_stride + channel, mask=present, other=0.0)[None, :]
    grad += batch * pixels * channels
    x += batch * pixels * channels
    grad_y += batch * pixels * channels
    style_sum = tl.zeros([BLOCK_C], tl.float32)
    demodulation_sum = tl.zeros([BLOCK_C], tl.float32)
    for tile in range(0, RUN):
        pixel = (tl.program_id(0) * RUN + tile) * BLOCK + tl.arange(0, BLOCK)
        mask = (pixel < pixels)[:, None] & present[None, :]
        place = pixel[:, None] * channels + channel[None, :]
        incoming = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        style_sum += tl.sum(incoming * value, axis=0)
        grad_z, slope = undone(incoming, value, by, gain, bound, CLAMP, STYLE)
        convolved = value / slope - shift
        if NOISE:
            convolved -= tl.load(noise + batch * noise_stride + pixel, mask=pixel < pixels, other=0.0)[:, None]
        demodulation_sum += tl.sum(grad_z * convolved, axis=0)  # 0 where masked: grad_z is
        tl.store(grad_y + place, (grad_z * factor).to(grad_y.dtype.element_ty), mask=mask)
    at = partials + (batch * parts + tl.program_id(0)) * 2 * channels + channel
    tl.store(at, style_sum, mask=present)
    tl.store(at + channels, demodulation_sum, mask=present)


@triton.jit(do_not_specialize=["demodulation_stride", "parts"])
def modulation_sums(
    partials,
    demodulation,
    grad_style,
    grad_demodulation,
    channels,
    demodulation_stride,
    parts,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    present = channel < channels
    style_sum = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    demodulation_sum = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    for first in range(0, parts, BLOCK):
        part = first + tl.arange(0, BLOCK)
        mask = (part < parts)[:, None] & present[None, :]
        at = partials + (batch * parts + part[:, None]) * 2 * channels + channel[None, :]
        style_sum += tl.load(at, mask=mask, other=0.0)
        demodulation_sum += tl.load(at + channels, mask=mask, other=0.0)
    factor = tl.load(demodulation + batch * demodulation_stride + channel, mask=present, other=1.0)
    place = batch * channels + channel
    tl.store(grad_style + place, tl.sum(style_sum, axis=0), mask=present)
    tl.store(grad_demodulation + place, tl.sum(demodulation_sum, axis=0) / factor, mask=present)


class Factors:
    """What a pass multiplies with and adds, as the kernels take it: tensors, strides over the batch, what is there."""

    def __init__(
        self, demodulation: Tensor, noise: Tensor | None, bias: Tensor, style: Tensor | None, clamp: float | None
    ) -> None:
        self.demodulation, self.bias = lined_up(demodulation), bias.contiguous()
        self.noise = self.bias if noise is None else noise.contiguous()  # what is absent is not read
        self.style = self.demodulation if style is None else lined_up(style)
        self.noise_stride = noise[0].numel() if noise is not None and noise.ndim == 3 else 0
        self.strides = (self.noise_stride, self.demodulation.stride(0), self.style.stride(0))
        self.present = {"NOISE": noise is not None, "STYLE": style is not None, "CLAMP": clamp is not None}

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.demodulation, self.noise, self.bias, self.style


def lined_up(factors: Tensor) -> Tensor:
    """[B, C] with its channels side by side; one row for all of the batch may stay so."""
    return factors if factors.stride(1) == 1 else factors.contiguous()


def new_map(like: Tensor, height: int, width: int) -> Tensor:
    """An empty channels-last map [B, C, height, width]."""
    shape = (*like.shape[:2], height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def check_map(name: str, values: Tensor) -> None:
    if not values.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"{name} must be contiguous in the channels-last memory format.")


@functools.cache
def stored_bound(clamp: float | None, dtype: torch.dtype) -> float:
    """The clamp as a clamped x shows it: in bfloat16 it may be below."""
    return 0.0 if clamp is None else torch.tensor(clamp, dtype=dtype).item()


def activate(
    y: Tensor,
    demodulation: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    style: Tensor | None,
    gain: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor]:
    """See ``modulated_conv.activate``; maps are float32, bfloat16 or float16."""
    check_map("y", y)
    batch, channels, h, w = y.shape
    factors = Factors(demodulation, noise, bias, style, clamp)
    x = torch.empty_like(y)
    scaled = x if style is None else torch.empty_like(y)
    row = configs.launch("activate_map", channels, y.device)
    with on_device(y):
        activate_map[triton.cdiv(h * w, row.block), triton.cdiv(channels, row.block_c), batch](
            y,
            x,
            scaled,
            *factors.tensors,
            gain,
            clamp or 0.0,
            channels,
            h * w,
            *factors.strides,
            **factors.present,
            BLOCK=row.block,
            BLOCK_C=row.block_c,
            **row.options(),
        )
    return x, scaled


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
    """See ``modulated_conv.activate_backward``; maps are float32, bfloat16 or float16."""
    check_map("grad", grad)
    check_map("x", x)
    batch, channels, h, w = x.shape
    factors = Factors(demodulation, noise, bias, style, clamp)
    grad_y = torch.empty_like(x)
    row = configs.launch("activate_map_backward", channels, x.device)
    parts = triton.cdiv(h * w, row.block * RUN)
    partials = torch.empty(batch, parts, 2, channels, dtype=torch.float32, device=x.device)
    with on_device(x):
        activate_map_backward[parts, triton.cdiv(channels, row.block_c), batch](
            grad,
            x,
            grad_y,
            partials,
            *factors.tensors,
            gain,
            stored_bound(clamp, x.dtype),
            channels,
            h * w,
            *factors.strides,
            parts,
            **factors.present,
            RUN=RUN,
            BLOCK=row.block,
            BLOCK_C=row.block_c,
            **row.options(),
        )
        return grad_y, *summed(partials, factors.demodulation)


def summed(partials: Tensor, demodulation: Tensor) -> tuple[Tensor, Tensor]:
    """partials [B, parts, 2, C] of Σ grad·x and Σ grad_z·(demodulation·y) → (grad_style, grad_demodulation) [B, C]."""
    batch, parts, _, channels = partials.shape
    grad_style = torch.empty(batch, channels, dtype=torch.float32, device=partials.device)
    grad_demodulation = torch.empty_like(grad_style)
    row = configs.launch("modulation_sums", channels, partials.device)
    modulation_sums[triton.cdiv(channels, row.block_c), batch](
        partials,
        demodulation,
        grad_style,
        grad_demodulation,
        channels,
        demodulation.stride(0),
        parts,
        BLOCK=row.block,
        BLOCK_C=row.block_c,
        **row.options(),
    )
    return grad_style, grad_demodulation
