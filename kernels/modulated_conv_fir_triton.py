"""The passes around the ×2 layer's transposed convolution in Triton. What they compute: ``modulated_conv.fir_activate``
and ``activate_backward_fir``.

A program takes ``BLOCK`` cells of one row of the low map × ``BLOCK_C`` channels. Above each cell lies a quad of four
values of the layer's output, and one value of each phase. Forward, the n taps of the FIR need (n + 1)² values of the
phases for a quad, each read once by its program: horizontal sums first, row by row, then two vertical ones; what is
filtered never leaves registers. Backward it is the same the other way round: (n + 1)² values of grad and x give the
quad of phases, and the middle ones, which no other program owns, the channel sums.

Per output value and at 4 taps that is 6.25 reads forward and 12.5 backward, nearly all from the caches, and about 15
(45) multiply-adds. The floor is memory, 34 MB a pass at [1, 256, 128, 128] in bfloat16: 7 µs at 4.8 TB/s.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (kernels take Triton values; the launchers below are typed)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from ._shared import on_device
from .modulated_conv import Phases, fir_padding, normalised
from .modulated_conv_triton import Factors, check_map, new_map, store_activated, stored_bound, summed, undone

EXTRA = ((1, 1), (1, 0), (0, 1), (0, 0))  # rows and columns that the phases have more than the low map
EVEN = tl.constexpr(16)  # added so that no dividend is negative
SIZES = ["h", "w", "noise_stride", "demodulation_stride", "style_stride"]


@triton.jit
def load_cells(values, row, column, rows, columns, channel, channels):
    """One map's values [BLOCK, BLOCK_C] at cells in a row, float32; zeros outside the map."""
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    place = (row * columns + column)[:, None] * channels + channel[None, :]
    return tl.load(values + place, mask=inside[:, None] & (channel < channels)[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def fir_activate_map(
    even_even,
    even_odd,
    odd_even,
    odd_odd,
    x,
    scaled,
    demodulation,
    noise,
    bias,
    style,
    gain,
    clamp,
    channels,
    h,
    w,
    noise_stride,
    demodulation_stride,
    style_stride,
    NOISE: tl.constexpr,
    STYLE: tl.constexpr,
    CLAMP: tl.constexpr,
    TAPS: tl.constexpr,
    COUNT: tl.constexpr,
    BEFORE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    segments = tl.cdiv(w, BLOCK)
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) // segments
    column = tl.program_id(0) % segments * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    even_even += batch * (h + 1) * (w + 1) * channels
    even_odd += batch * (h + 1) * w * channels
    odd_even += batch * h * (w + 1) * channels
    odd_odd += batch * h * w * channels
    x += batch * 4 * h * w * channels
    scaled += batch * 4 * h * w * channels
    noise += batch * noise_stride

    # Output (2·row + a, 2·column + b) is Σ TAPS[j]·TAPS[i]·whole(2·row + a + j − BEFORE, 2·column + b + i − BEFORE).
    y00 = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    y01 = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    y10 = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    y11 = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    for j in tl.static_range(COUNT + 1):
        at_row = row + ((j - BEFORE + EVEN) // 2 - EVEN // 2)
        left = tl.zeros([BLOCK, BLOCK_C], tl.float32)
        right = tl.zeros([BLOCK, BLOCK_C], tl.float32)
        for i in tl.static_range(COUNT + 1):
            at = column + ((i - BEFORE + EVEN) // 2 - EVEN // 2)
            if (i - BEFORE + EVEN) % 2 == 0:
                if (j - BEFORE + EVEN) % 2 == 0:
                    value = load_cells(even_even, at_row, at, h + 1, w + 1, channel, channels)
                else:
                    value = load_cells(odd_even, at_row, at, h, w + 1, channel, channels)
            elif (j - BEFORE + EVEN) % 2 == 0:
                value = load_cells(even_odd, at_row, at, h + 1, w, channel, channels)
            else:
                value = load_cells(odd_odd, at_row, at, h, w, channel, channels)
            if i < COUNT:
                left += TAPS[i] * value
            if i > 0:
                right += TAPS[i - 1] * value
        if j < COUNT:
            y00 += TAPS[j] * left
            y01 += TAPS[j] * right
        if j > 0:
            y10 += TAPS[j - 1] * left
            y11 += TAPS[j - 1] * right

    present = channel < channels
    factor = tl.load(demodulation + batch * demodulation_stride + channel, mask=present, other=0.0)[None, :]
    shift = tl.load(bias + channel, mask=present, other=0.0)[None, :]
    by = factor
    if STYLE:
        by = tl.load(style + batch * style_stride + channel, mask=present, other=0.0)[None, :]
    mask = (column < w)[:, None] & present[None, :]
    for a in tl.static_range(2):
        for b in tl.static_range(2):
            pixel = (2 * row + a) * 2 * w + 2 * column + b
            z = (y00 if b == 0 else y01) if a == 0 else (y10 if b == 0 else y11)
            z = z * factor + shift
            if NOISE:
                z += tl.load(noise + pixel, mask=column < w, other=0.0)[:, None]
            place = pixel[:, None] * channels + channel[None, :]
            store_activated(z, x, scaled, place, mask, by, gain, clamp, CLAMP, STYLE)


@triton.jit
def store_cells(values, value, batch, row, column, rows, columns, channel, channels):
    """The other way round, into a map [B, rows, columns, C] of any type: what lies outside is not stored."""
    inside = (column < columns) & (row < rows)
    values += batch * rows * columns * channels
    place = (row * columns + column)[:, None] * channels + channel[None, :]
    tl.store(values + place, value.to(values.dtype.element_ty), mask=inside[:, None] & (channel < channels)[None, :])


@triton.jit
def tap_at(place, TAPS: tl.constexpr, COUNT: tl.constexpr):
    """TAPS[place] for a place that is known at run time only; 0 beyond them."""
    tap = 0.0
    for known in tl.static_range(COUNT):
        tap = tl.where(place == known, TAPS[known], tap)
    return tap


@triton.jit(do_not_specialize=[*SIZES, "parts"])
def fir_activate_map_backward(
    grad,
    x,
    even_even,
    even_odd,
    odd_even,
    odd_odd,
    partials,
    demodulation,
    noise,
    bias,
    style,
    gain,
    bound,
    channels,
    h,
    w,
    noise_stride,
    demodulation_stride,
    style_stride,
    parts,
    NOISE: tl.constexpr,
    STYLE: tl.constexpr,
    CLAMP: tl.constexpr,
    TAPS: tl.constexpr,
    COUNT: tl.constexpr,
    BEFORE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    segments = tl.cdiv(w + 1, BLOCK)
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) // segments
    column = tl.program_id(0) % segments * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    present = channel < channels
    factor = tl.load(demodulation + batch * demodulation_stride + channel, mask=present, other=0.0)[None, :]
    shift = tl.load(bias + channel, mask=present, other=0.0)[None, :]
    by = factor
    if STYLE:
        by = tl.load(style + batch * style_stride + channel, mask=present, other=0.0)[None, :]
    grad += batch * 4 * h * w * channels
    x += batch * 4 * h * w * channels
    noise += batch * noise_stride

    # Cell (R, S) of the whole transposed convolution receives Σ TAPS[j]·TAPS[i]·grad_y(R + BEFORE − j, S + BEFORE − i).
    ee = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    eo = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    oe = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    oo = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    style_sum = tl.zeros([BLOCK_C], tl.float32)
    demodulation_sum = tl.zeros([BLOCK_C], tl.float32)
    for r in range(COUNT + 1):  # not unrolled: the code would be five times as long, and so would compiling it take
        at_row = 2 * row + (BEFORE + 1 - COUNT + r)
        row_is_own = (r == COUNT - 1 - BEFORE) | (r == COUNT - BEFORE)
        even = tl.zeros([BLOCK, BLOCK_C], tl.float32)
        odd = tl.zeros([BLOCK, BLOCK_C], tl.float32)
        for c in tl.static_range(COUNT + 1):
            at = 2 * column + (BEFORE + 1 - COUNT + c)
            inside = (at >= 0) & (at < 2 * w) & (at_row >= 0) & (at_row < 2 * h)
            mask = inside[:, None] & present[None, :]
            pixel = at_row * 2 * w + at
            place = pixel[:, None] * channels + channel[None, :]
            incoming = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
            value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
            grad_z, slope = undone(incoming, value, by, gain, bound, CLAMP, STYLE)
            if c < COUNT:
                even += TAPS[COUNT - 1 - c] * grad_z
            if c > 0:
                odd += TAPS[COUNT - c] * grad_z
            # The quad of this cell, which no other program owns; what lies beyond the map is zero, and so are its sums.
            if (c == COUNT - 1 - BEFORE or c == COUNT - BEFORE) and row_is_own:
                style_sum += tl.sum(incoming * value, axis=0)
                convolved = value / slope - shift
                if NOISE:
                    convolved -= tl.load(noise + pixel, mask=inside, other=0.0)[:, None]
                demodulation_sum += tl.sum(grad_z * convolved, axis=0)
        ee += tap_at(COUNT - 1 - r, TAPS, COUNT) * even
        eo += tap_at(COUNT - 1 - r, TAPS, COUNT) * odd
        oe += tap_at(COUNT - r, TAPS, COUNT) * even
        oo += tap_at(COUNT - r, TAPS, COUNT) * odd
    store_cells(even_even, ee * factor, batch, row, column, h + 1, w + 1, channel, channels)
    store_cells(even_odd, eo * factor, batch, row, column, h + 1, w, channel, channels)
    store_cells(odd_even, oe * factor, batch, row, column, h, w + 1, channel, channels)
    store_cells(odd_odd, oo * factor, batch, row, column, h, w, channel, channels)
    place = partials + (batch * parts + tl.program_id(0)) * 2 * channels + channel
    tl.store(place, style_sum, mask=present)
    tl.store(place + channels, demodulation_sum, mask=present)


def fir_options(taps: tuple[float, ...]) -> dict[str, object]:
    """The FIR as the kernels have it compiled in; networks have one."""
    return {"TAPS": tuple(normalised(taps)), "COUNT": len(taps), "BEFORE": fir_padding(taps)[0]}


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
    """See ``modulated_conv.fir_activate``; maps are float32, bfloat16 or float16."""
    batch, channels, h, w = phases[3].shape
    for name, phase, extra in zip(("even_even", "even_odd", "odd_even", "odd_odd"), phases, EXTRA, strict=True):
        check_map(name, phase)
        if phase.shape != (batch, channels, h + extra[0], w + extra[1]) or phase.dtype != phases[3].dtype:
            raise ValueError(f"{name} does not fit odd_odd: {phase.dtype} {list(phase.shape)}.")
    factors = Factors(demodulation, noise, bias, style, clamp)
    x = new_map(phases[3], 2 * h, 2 * w)
    scaled = x if style is None else torch.empty_like(x)
    row = configs.launch("fir_activate_map", channels, x.device)
    with on_device(x):
        fir_activate_map[h * triton.cdiv(w, row.block), triton.cdiv(channels, row.block_c), batch](
            *phases,
            x,
            scaled,
            *factors.tensors,
            gain,
            clamp or 0.0,
            channels,
            h,
            w,
            *factors.strides,
            **factors.present,
            **fir_options(taps),
            BLOCK=row.block,
            BLOCK_C=row.block_c,
            **row.options(),
        )
    return x, scaled


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
    """See ``modulated_conv.activate_backward_fir``; maps are float32, bfloat16 or float16."""
    check_map("grad", grad)
    check_map("x", x)
    batch, channels, height, width = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"x must have an even height and width, but its shape is {list(x.shape)}.")
    h, w = height // 2, width // 2
    factors = Factors(demodulation, noise, bias, style, clamp)
    first, second, third, fourth = (new_map(x, h + i, w + j) for i, j in EXTRA)
    row = configs.launch("fir_activate_map_backward", channels, x.device)
    parts = (h + 1) * triton.cdiv(w + 1, row.block)
    partials = torch.empty(batch, parts, 2, channels, dtype=torch.float32, device=x.device)
    with on_device(x):
        fir_activate_map_backward[parts, triton.cdiv(channels, row.block_c), batch](
            grad,
            x,
            first,
            second,
            third,
            fourth,
            partials,
            *factors.tensors,
            gain,
            stored_bound(clamp, x.dtype),
            channels,
            h,
            w,
            *factors.strides,
            parts,
            **factors.present,
            **fir_options(taps),
            BLOCK=row.block,
            BLOCK_C=row.block_c,
            **row.options(),
        )
        return (first, second, third, fourth), *summed(partials, factors.demodulation)
