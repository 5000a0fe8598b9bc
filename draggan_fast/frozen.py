"""The truncated synthesis with weights that never change, and its backward pass by hand.

What ``Generator.features`` and autograd do at every step and need not: keep gradients and copies of maps for weights
nobody trains, lay weights out anew for each convolution, walk a graph. Here weights are packed once, each map is read
and written once around its convolution, and the backward pass computes the one gradient that a drag needs: that of
w_plus. DESIGN §5 gives the reasons; ``kernels/modulated_conv.py`` specifies the passes between the convolutions.

The ×2 layer is a stride-2 transposed 3×3 convolution (``packed_up``), followed by the FIR.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import synthesis_ops
from .errors import DragError
from .generator import LRELU_GAIN, Generator, StyledConv, ToRGB, upsample
from .packed_conv import KernelPart, PackedConv
from .packed_up import PackedUp
from .synthesis_ops import StyleMatrices

LARGEST_BY_MATRIX = 64  # pixels along an axis; the products grow with the cube


class Modulation(NamedTuple):
    """What the latent does to each layer, in float32.

    A layer gives the same whatever number its style is divided by and its demodulation multiplied by: ``divisors`` is
    that number where it is not 1 (see ``balanced``), and what a gradient of the style must be divided by too.
    """

    styles: tuple[Tensor, ...]  # [B, C]
    demodulations: tuple[Tensor, ...]  # [B, C']
    divisors: tuple[Tensor, ...] | None = None  # [B, 1]

    def for_batch(self, batch: int) -> Modulation:
        """The same, of one latent, for a batch of crops."""
        styles, demodulations = (tuple(t.expand(batch, -1) for t in part) for part in self[:2])
        return Modulation(styles, demodulations, self.divisors)

    def balanced(self) -> Modulation:
        """Every style divided by its largest entry: in float16, whose largest number is 65504, a convolution's output
        then stays near its input's size, as a demodulated layer's does."""
        divisors = tuple(style.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) for style in self.styles)
        return Modulation(
            tuple(style / by for style, by in zip(self.styles, divisors)),
            tuple(factor * by for factor, by in zip(self.demodulations, divisors)),
            divisors,
        )


class Trace(NamedTuple):
    """A forward pass of the first layers, as its backward pass needs it."""

    maps: tuple[Tensor, ...]  # the input of each layer, unscaled, then the last one's output
    modulation: Modulation  # of all layers

    @property
    def feature(self) -> Tensor:
        """[B, C, h, w], channels-last."""
        return self.maps[-1]


class FrozenLayer:
    """One StyledConv with its weights packed: for both directions if it is ``differentiable``."""

    def __init__(self, layer: StyledConv, precision: torch.dtype, differentiable: bool) -> None:
        weight = layer.weight.detach()
        size = layer.resolution // 2 if layer.up else layer.resolution
        self.up, self.taps = layer.up, layer.taps
        self.weights = weight.numel()
        self.multiply_adds = self.weights * size * size
        self.bias = layer.bias.detach().float().clone()  # of today, as all that is packed
        self.energy = layer.weight.detach().float().square().sum(dim=(2, 3))  # Σ W² [C', C]
        self.noise = (layer.noise_const * layer.noise_strength).detach().float() if layer.use_noise else None
        self.clamp = layer.clamp
        self.affine, self.affine_bias = (t.detach().clone() for t in (layer.affine.weight, layer.affine.bias))
        self.conv: PackedConv | PackedUp
        self.conv_back: PackedConv | PackedUp | None = None
        if self.up:
            self.conv = PackedUp(weight, precision, size, transposed=False)
            if differentiable:
                self.conv_back = PackedUp(weight, precision, size, transposed=True)
        else:
            taps, padding, hw = (0, 1, 2), (1, 1), (size, size)
            there, back = (KernelPart(weight, precision, taps, taps, turned) for turned in (False, True))
            self.conv = PackedConv(there, padding, hw, there.version)
            if differentiable:
                self.conv_back = PackedConv(back, padding, hw, back.version)

    def forward(
        self, scaled: Tensor, demodulation: Tensor, noise: Tensor | None, style: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The input times its style [B, C, h, w] → (x, x·style) [B, C', r, r], r = h or 2h; style: of what follows."""
        rest = (demodulation, noise, self.bias, style, LRELU_GAIN, self.clamp)
        if isinstance(self.conv, PackedUp):
            return synthesis_ops.fir_activate(self.conv(scaled), self.taps, *rest)
        return synthesis_ops.activate(self.conv(scaled), *rest)

    def backward(
        self, grad: Tensor, x: Tensor, demodulation: Tensor, noise: Tensor | None, style: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The transpose of ``forward``, at its output x: gradient of x·style → (gradient of the scaled input, of the
        style [B, C'], of the demodulation [B, C'])."""
        rest = (grad, style, x, demodulation, noise, self.bias, LRELU_GAIN, self.clamp)
        if isinstance(self.conv_back, PackedUp):
            phases, grad_style, grad_demodulation = synthesis_ops.activate_backward_fir(*rest, self.taps)
            return self.conv_back.transpose(phases), grad_style, grad_demodulation
        assert self.conv_back is not None
        grad_y, grad_style, grad_demodulation = synthesis_ops.activate_backward(*rest)
        return self.conv_back(grad_y), grad_style, grad_demodulation

    def forward_valid(self, scaled: Tensor, demodulation: Tensor, noise: Tensor | None) -> Tensor:
        """A plain layer without padding: [B, C, h, w] → x [B, C', h − 2, w − 2]; nothing follows."""
        assert isinstance(self.conv, PackedConv)
        y = self.conv(scaled, padding=(0, 0))
        return synthesis_ops.activate(y, demodulation, noise, self.bias, None, LRELU_GAIN, self.clamp)[0]

    def backward_valid(
        self, grad: Tensor, x: Tensor, demodulation: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The transpose of ``forward_valid``: (gradient of the scaled input, of the demodulation)."""
        assert isinstance(self.conv_back, PackedConv)
        grad_y, _, grad_demodulation = synthesis_ops.activate_backward(
            grad, None, x, demodulation, noise, self.bias, LRELU_GAIN, self.clamp
        )
        return self.conv_back(grad_y, padding=(2, 2)), grad_demodulation


def supported(generator: Generator) -> str | None:
    """Why this network cannot be run by ``FrozenSynthesis``, or None if it can."""
    if generator.config.architecture == "resnet":
        return "the resnet architecture has shortcuts that only the reference engine computes"
    return None


def upsampling_matrix(size: int, taps: tuple[float, ...]) -> Tensor:
    """``upsample`` along one axis: [2·size, size], of which every row holds the few taps that fall on a pixel."""
    count, total = len(taps), sum(taps)
    full = torch.zeros(2 * size + count - 2, size, dtype=torch.float64, device="cpu")
    for pixel in range(size):
        full[2 * pixel : 2 * pixel + count, pixel] = torch.tensor(taps, dtype=torch.float64, device="cpu") * (2 / total)
    skip = count - 1 - (count + 1) // 2
    return full[skip : skip + 2 * size].float()


class FrozenRgb:
    """One ToRGB: the style goes into its few weights instead of the map."""

    def __init__(self, layer: ToRGB) -> None:
        self.clamp = layer.clamp
        self.affine, self.affine_bias = (t.detach().clone() for t in (layer.affine.weight, layer.affine.bias))
        self.weight = layer.weight.detach()[:, :, 0, 0].float().clone()  # [image_channels, C]
        self.bias = layer.bias.detach().float().clone()

    def __call__(self, x: Tensor, w: Tensor, onto: Tensor | None) -> Tensor:
        """x [B, C, h, w], w [B, w_dim] → [B, image_channels, h, w] float32, added to ``onto`` if there is one."""
        weight = self.weight * F.linear(w, self.affine, self.affine_bias)[:, None, :]
        return synthesis_ops.to_rgb(x, weight, self.bias, self.clamp, onto)


class FrozenSynthesis:
    """Blocks 0…block of a generator: w_plus → feature, and gradient of the feature → gradient of w_plus.

    precision: torch.float32, bfloat16 or float16 of maps and weights; latents, styles, demodulation and all sums are
    float32. noise: "const" or "none". The packed weights are constant: any number of sessions can share them.
    In float16 a gradient must come scaled (``scaled_for``).
    """

    def __init__(self, generator: Generator, block: int, precision: torch.dtype, noise: str = "const") -> None:
        reason = supported(generator)
        if reason is not None:
            raise DragError(f"The fast engine cannot run this network: {reason}.")
        self.block, self.noise, self.precision = block, noise, precision
        self.taps = generator.config.resample_filter
        blocks = generator.synthesis.blocks
        with torch.no_grad():
            self.const = channels_last(generator.synthesis.const.detach()[None].to(precision))
            every = [(part.block, conv) for part in blocks for conv in (part.conv0, part.conv1) if conv is not None]
            self.layers = [FrozenLayer(conv, precision, differentiable=True) for at, conv in every if at <= block]
            self.later = [FrozenLayer(conv, precision, differentiable=False) for at, conv in every if at > block]
            self.rgb = [None if part.to_rgb is None else FrozenRgb(part.to_rgb) for part in blocks]
        self._matrices, self._later_matrices = matrices_of(self.layers), matrices_of(self.later)
        # Of small pictures on a CPU: two products with mostly zeros take a third of the time of a convolution.
        on_cpu = self.const.device.type == "cpu"
        sizes = [4 << part.block for part in blocks if on_cpu and 4 << part.block <= LARGEST_BY_MATRIX]
        self._upsampling = {size: upsampling_matrix(size, self.taps) for size in sizes}

    def noise_of(self, layer: FrozenLayer) -> Tensor | None:
        """[h, w] float32, strength included, or None."""
        return layer.noise if self.noise == "const" else None

    def modulation(self, w_plus: Tensor) -> Modulation:
        """w_plus [B, num_ws, w_dim] float32 → the modulation of layers 0…2·block."""
        return self._modulation_of(self._matrices, w_plus)

    def _modulation_of(self, matrices: StyleMatrices, w_plus: Tensor, first_row: int = 0) -> Modulation:
        styles, demodulations = synthesis_ops.modulation(w_plus, first_row, matrices)
        modulation = Modulation(tuple(styles), tuple(demodulations))
        return modulation.balanced() if self.precision == torch.float16 else modulation

    @torch.no_grad()
    def forward(self, w_plus: Tensor) -> Trace:
        """w_plus [B, num_ws, w_dim] float32 → the trace with the feature [B, C, h, w] of the block."""
        return self.run_first(len(self.layers), self.modulation(w_plus))

    def run_first(self, count: int, modulation: Modulation) -> Trace:
        """The first ``count`` layers."""
        x = self.const.expand(modulation.styles[0].shape[0], -1, -1, -1)
        return Trace(self._run(self.layers[:count], x, modulation), modulation)

    def _run(self, layers: Sequence[FrozenLayer], x: Tensor, modulation: Modulation) -> tuple[Tensor, ...]:
        """x through these layers, to which the modulation's first belong: (x, every layer's output)."""
        maps = [x]
        styles = modulation.styles[: len(layers)]
        scaled = self._scaled(x, styles[0])
        for layer, demodulation, following in zip(layers, modulation.demodulations, (*styles[1:], None)):
            x, scaled = layer.forward(scaled, demodulation, self.noise_of(layer), following)
            maps.append(x)
        return tuple(maps)

    def _scaled(self, x: Tensor, style: Tensor) -> Tensor:
        return channels_last((x.float() * style[:, :, None, None]).to(self.precision))

    @torch.no_grad()
    def render(self, trace: Trace, w_plus: Tensor) -> Tensor:
        """Continues from ``forward`` (same w_plus) to the picture [B, image_channels, H, W] float32."""
        image = self._rgb(trace, w_plus)
        if self.later:
            # Not ``_run``: no map is kept that the next layer does not need, and the largest are here.
            styles, demodulations, _ = self._modulation_of(self._later_matrices, w_plus, len(self.layers))
            scaled = self._scaled(trace.feature, styles[0])
            for index, (layer, following) in enumerate(zip(self.later, (*styles[1:], None))):
                x, scaled = layer.forward(scaled, demodulations[index], self.noise_of(layer), following)
                if index % 2:
                    image = self._plus_rgb(image, self.block + 1 + index // 2, x, w_plus)
                del x
        assert image is not None
        return image

    @torch.no_grad()
    def preview(self, trace: Trace, w_plus: Tensor) -> Tensor:
        """What the ToRGB layers of ``forward``'s blocks make (same w_plus): [B, image_channels, h, w] float32, h and w
        the feature's. Without any such layer it is ``render``."""
        image = self._rgb(trace, w_plus) if self.rgb[self.block] is not None else None
        return self.render(trace, w_plus) if image is None else image

    def _rgb(self, trace: Trace, w_plus: Tensor) -> Tensor | None:
        """The sum of the ToRGB layers of ``forward``'s blocks, in the resolution of the last; None without any."""
        image: Tensor | None = None
        for block in range(self.block + 1):
            image = self._plus_rgb(image, block, trace.maps[2 * block + 1], w_plus)
        return image

    def _plus_rgb(self, image: Tensor | None, block: int, x: Tensor, w_plus: Tensor) -> Tensor | None:
        """The image of the blocks before this one, upsampled, with what its ToRGB makes of its map x."""
        if image is not None:
            along = self._upsampling.get(image.shape[2])
            image = upsample(image, self.taps) if along is None else along @ image @ along.T
        rgb = self.rgb[block]
        if rgb is None:
            return image
        return rgb(x, w_plus[:, 2 * block + 1], image)

    @torch.no_grad()
    def backward(self, trace: Trace, grad_feature: Tensor) -> Tensor:
        """grad_feature [B, C, h, w], any float type → gradient of rows 0…2·block of w_plus, [B, 2·block + 1, w_dim]."""
        return self.backward_from(trace, grad_feature, StyleGradients.zeros(trace.modulation))

    def backward_from(self, trace: Trace, grad: Tensor, to_styles: StyleGradients) -> Tensor:
        """The same from the gradient of the trace's last map, onto what later layers add to the style gradients."""
        styles, demodulations, divisors = trace.modulation
        grad = channels_last(grad.to(self.precision))
        last = len(trace.maps) - 2
        for index in range(last, -1, -1):
            layer = self.layers[index]
            following = None if index == last else styles[index + 1]
            grad, grad_following, to_styles.demodulations[index] = layer.backward(
                grad, trace.maps[index + 1], demodulations[index], self.noise_of(layer), following
            )
            if following is not None:
                to_styles.styles[index + 1] += grad_following
        to_styles.styles[0] += (grad.float() * trace.maps[0].float()).sum(dim=(2, 3))
        return synthesis_ops.latent_gradient(
            to_styles.styles, to_styles.demodulations, (styles, demodulations, divisors), self._matrices
        )


class StyleGradients(NamedTuple):
    """What a backward pass has found so far of each layer: gradients of its style [B, C], as it is used, and of its
    demodulation [B, C']."""

    styles: list[Tensor]
    demodulations: list[Tensor]

    @classmethod
    def zeros(cls, modulation: Modulation) -> StyleGradients:
        return cls([torch.zeros_like(s) for s in modulation.styles], [torch.empty(0)] * len(modulation.styles))


def matrices_of(layers: Sequence[FrozenLayer]) -> StyleMatrices:
    return StyleMatrices(
        [layer.affine for layer in layers],
        [layer.affine_bias for layer in layers],
        [layer.energy for layer in layers],
    )


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def scaled_for(precision: torch.dtype, grad_feature: Tensor) -> tuple[Tensor, Tensor | None]:
    """(the gradient as a backward pass in this precision takes it, the number by which its results must be divided).

    A drag's gradients, means over a patch or a picture, lie below what float16 can hold: it gets them with their
    largest entry at 1, between its limits 6e-8 and 65504. Others have float32's range and take them as they are.
    """
    if precision != torch.float16:
        return grad_feature, None
    grad_feature = grad_feature.float()
    scale = 1 / grad_feature.abs().amax().clamp_min(1e-30)  # of zeros: finite; of NaN: NaN, as the gradient
    return grad_feature * scale, scale
