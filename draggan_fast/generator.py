"""StyleGAN2 (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN"), for dragging.

The network is cut in two at a feature block: ``features(ws, block)`` computes what that block needs and nothing
else, ``render(activations, ws)`` continues to the picture. Weights are *effective*: every run-time gain of the
published training code (equalised learning rate, mapping multiplier) is folded in when a checkpoint is loaded.

Modulated convolutions use the activation-scaled formulation: the input is scaled by the style, the convolution
has constant weights, the output is scaled by the demodulation factor rsqrt(sum (W*s)^2 + 1e-8). It is the same
function as scaling the weights per sample, but works on the whole batch at once with weights that never change.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import DragError

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

ARCHITECTURES = ("skip", "orig", "resnet")
NOISE_MODES = ("const", "random", "none")
LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2.0)  # keeps the variance of a leaky-ReLU layer's output at that of its input
MAX_RESOLUTION = 1024


@dataclass(frozen=True)
class GeneratorConfig:
    """Everything that, with the tensors, defines a StyleGAN2 generator.

    resolution: height = width of the picture, a power of two 4…1024.  z_dim, w_dim: latent widths.
    c_dim: width of the class label, 0 = unconditional.  mapping_widths: output width of each mapping layer, the
    last is w_dim; empty only if z_dim = w_dim and c_dim = 0.  channels: output channels of each block, 4×4 first.
    embed_dim: width of the embedded label (0 if unconditional).  architecture: "skip", "orig" or "resnet".
    conv_clamp: activations are clamped to ±conv_clamp, None = not.  resample_filter: the FIR of the ×2 layers.
    """

    resolution: int
    z_dim: int
    w_dim: int
    channels: tuple[int, ...]
    mapping_widths: tuple[int, ...]
    c_dim: int = 0
    embed_dim: int = 0
    image_channels: int = 3
    architecture: str = "skip"
    conv_clamp: float | None = None
    use_noise: bool = True
    resample_filter: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)

    def __post_init__(self) -> None:
        def require(condition: bool, message: str) -> None:
            if not condition:
                raise DragError(f"Generator configuration: {message}.")

        def is_count(value: Any, least: int = 1, most: int = 1 << 16) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

        require(
            is_count(self.resolution, 4, MAX_RESOLUTION) and self.resolution & (self.resolution - 1) == 0,
            f"resolution must be a power of two from 4 to {MAX_RESOLUTION}, not {self.resolution!r}",
        )
        for name in ("z_dim", "w_dim", "image_channels"):
            require(is_count(getattr(self, name)), f"{name} must be a positive integer, not {getattr(self, name)!r}")
        for name in ("c_dim", "embed_dim"):
            require(is_count(getattr(self, name), 0), f"{name} must be 0 or more, not {getattr(self, name)!r}")
        require((self.c_dim == 0) == (self.embed_dim == 0), "c_dim and embed_dim must be zero together")
        for name in ("channels", "mapping_widths"):
            widths = getattr(self, name)
            require(
                isinstance(widths, tuple) and all(is_count(v) for v in widths), f"{name} must hold positive integers"
            )
        require(
            len(self.channels) == self.num_blocks,
            f"a {self.resolution}-pixel network has {self.num_blocks} blocks, not {len(self.channels)}",
        )
        mapped = self.mapping_widths[-1] if self.mapping_widths else self.z_dim + self.embed_dim
        require(mapped == self.w_dim, f"the mapping network ends in width {mapped}, but w_dim is {self.w_dim}")
        require(self.architecture in ARCHITECTURES, f"architecture must be one of {', '.join(ARCHITECTURES)}")
        require(isinstance(self.use_noise, bool), f"use_noise must be true or false, not {self.use_noise!r}")
        clamp = self.conv_clamp
        require(
            clamp is None or (isinstance(clamp, (int, float)) and math.isfinite(clamp) and clamp > 0),
            f"conv_clamp must be None or a positive number, not {clamp!r}",
        )
        taps = self.resample_filter
        require(
            isinstance(taps, tuple)
            and 2 <= len(taps) <= 16
            and all(isinstance(t, (int, float)) and math.isfinite(t) for t in taps)
            and abs(sum(taps)) > 1e-6,
            "resample_filter must be 2 to 16 numbers that do not sum to zero",
        )
        # One form for equal values: 256 and 256.0 must give one content hash.
        object.__setattr__(self, "resample_filter", tuple(float(t) for t in taps))
        object.__setattr__(self, "conv_clamp", None if clamp is None else float(clamp))

    @property
    def num_blocks(self) -> int:
        return int(self.resolution).bit_length() - 2

    @property
    def num_ws(self) -> int:
        """Rows of w_plus: one per convolution, and one for the last ToRGB."""
        return 2 * self.num_blocks

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Any) -> GeneratorConfig:
        """The inverse of ``to_json``; raises DragError on anything that is not such a configuration."""
        if not isinstance(data, dict):
            raise DragError("Generator configuration: expected a JSON object.")
        known = {f.name for f in fields(cls)}
        surplus = sorted(str(k) for k in set(data) - known)
        if surplus:
            raise DragError(f"Generator configuration: unknown entries {', '.join(surplus)}.")
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            return cls(**values)
        except TypeError as error:
            raise DragError(f"Generator configuration: incomplete ({error}).") from None

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name → shape of every tensor of this network, without building it (meta device)."""
        with torch.device("meta"):
            return {name: tuple(t.shape) for name, t in Generator(self).state_dict().items()}


def normalize_second_moment(x: Tensor) -> Tensor:
    """x [B, D] scaled to mean square 1 over D."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def fir_kernel(taps: tuple[float, ...], channels: int, like: Tensor) -> Tensor:
    """Depthwise FIR [channels, 1, n, n] that sums to 4: a ×2 upsampling leaves three of four inputs zero."""
    f = torch.tensor(taps, dtype=torch.float64, device=like.device)
    f = f / f.sum() * 2.0
    return torch.outer(f, f).to(like.dtype).expand(channels, 1, len(taps), len(taps))


def upsample(image: Tensor, taps: tuple[float, ...]) -> Tensor:
    """[B, C, h, w] → [B, C, 2h, 2w]: zeros between the pixels, then the FIR (StyleGAN2's RGB upsampling)."""
    height, width = image.shape[-2:]
    n = len(taps)
    full = F.conv_transpose2d(image, fir_kernel(taps, image.shape[1], image), stride=2, groups=image.shape[1])
    skip = n - 1 - (n + 1) // 2
    return full[..., skip : skip + 2 * height, skip : skip + 2 * width]


def upsampling_conv(x: Tensor, weight: Tensor, taps: tuple[float, ...]) -> Tensor:
    """[B, C, h, w] → [B, C', 2h, 2w]: stride-2 transposed 3×3 convolution, then the FIR."""
    x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    before, after = (len(taps) + 1) // 2 - 1, (len(taps) - 2) // 2
    if before == after:
        padding = before
    else:
        x, padding = F.pad(x, (before, after, before, after)), 0
    # conv2d correlates, the FIR is a convolution: flip (it matters only for filters that are not symmetric).
    return F.conv2d(x, fir_kernel(taps[::-1], x.shape[1], x), padding=padding, groups=x.shape[1])


def random_weight(*shape: int, fan_in: int) -> nn.Parameter:
    """A new weight of variance 1/fan_in. subtle: on the meta device, where nothing is drawn, even ``randn`` would make
    torch import sympy, which takes longer than loading most networks."""
    weight = torch.empty(shape)
    return nn.Parameter(weight if weight.is_meta else weight.normal_().div_(math.sqrt(fan_in)))


class Affine(nn.Module):
    """The learned map w → style of one layer; biases start at 1 so that a new network does not scale at all."""

    def __init__(self, w_dim: int, out: int) -> None:
        super().__init__()
        self.weight = random_weight(out, w_dim, fan_in=w_dim)
        self.bias = nn.Parameter(torch.ones(out))

    def forward(self, w: Tensor) -> Tensor:
        return F.linear(w, self.weight, self.bias)


class StyledConv(nn.Module):
    """Modulated 3×3 convolution (×2 if ``up``), noise, bias, leaky ReLU, clamp: one StyleGAN2 layer.

    x [B, C, h, w], w [B, w_dim] → [B, C', r, r], r = h or 2h.
    """

    noise_const: Tensor
    weight_energy: Tensor | None

    def __init__(self, config: GeneratorConfig, block: int, c_in: int, c_out: int, up: bool) -> None:
        super().__init__()
        self.resolution = 4 << block
        self.up = up
        self.clamp = config.conv_clamp
        self.taps = config.resample_filter
        self.use_noise = config.use_noise
        self.weight = random_weight(c_out, c_in, 3, 3, fan_in=c_in * 9)
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.affine = Affine(config.w_dim, c_in)
        if config.use_noise:
            noise = random_weight(self.resolution, self.resolution, fan_in=1).detach()
            self.register_buffer("noise_const", noise)
            self.noise_strength = nn.Parameter(torch.zeros([]))
        # Σ W² over the kernel [C', C]: constant once the weights are frozen (see Generator.freeze).
        self.register_buffer("weight_energy", None, persistent=False)

    def forward(self, x: Tensor, w: Tensor, noise: str = "const", gain: float = 1.0) -> Tensor:
        style = self.affine(w)
        energy = self.weight_energy if self.weight_energy is not None else self.weight.square().sum(dim=(2, 3))
        demodulation = torch.rsqrt(F.linear(style.square(), energy) + 1e-8)
        x = x * style[:, :, None, None]
        x = upsampling_conv(x, self.weight, self.taps) if self.up else F.conv2d(x, self.weight, padding=1)
        x = x * demodulation[:, :, None, None]
        if self.use_noise and noise == "const":
            x = x + self.noise_const * self.noise_strength
        elif self.use_noise and noise == "random":
            r = self.resolution
            x = x + torch.randn(x.shape[0], 1, r, r, device=x.device, dtype=x.dtype) * self.noise_strength
        x = F.leaky_relu(x + self.bias[:, None, None], LRELU_SLOPE) * (LRELU_GAIN * gain)
        return x if self.clamp is None else x.clamp(-self.clamp * gain, self.clamp * gain)


class ToRGB(nn.Module):
    """Modulated 1×1 convolution without demodulation: x [B, C, r, r], w [B, w_dim] → [B, image_channels, r, r]."""

    def __init__(self, config: GeneratorConfig, c_in: int) -> None:
        super().__init__()
        self.clamp = config.conv_clamp
        self.weight = random_weight(config.image_channels, c_in, 1, 1, fan_in=c_in)
        self.bias = nn.Parameter(torch.zeros(config.image_channels))
        self.affine = Affine(config.w_dim, c_in)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = F.conv2d(x * self.affine(w)[:, :, None, None], self.weight) + self.bias[:, None, None]
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ResidualSkip(nn.Module):
    """The resnet architecture's shortcut: 1×1 convolution, then ×2 upsampling."""

    def __init__(self, config: GeneratorConfig, c_in: int, c_out: int) -> None:
        super().__init__()
        self.taps = config.resample_filter
        self.weight = random_weight(c_out, c_in, 1, 1, fan_in=c_in)

    def forward(self, x: Tensor) -> Tensor:
        return upsample(F.conv2d(x, self.weight), self.taps)


class SynthesisBlock(nn.Module):
    """One resolution: (×2 conv0,) conv1, and ToRGB where the architecture has one.

    Rows of w_plus: conv0 takes 2·block − 1, conv1 takes 2·block, ToRGB takes 2·block + 1.
    """

    def __init__(self, config: GeneratorConfig, block: int) -> None:
        super().__init__()
        self.block = block
        c_out = config.channels[block]
        c_in = config.channels[block - 1] if block else c_out
        self.conv0 = StyledConv(config, block, c_in, c_out, up=True) if block else None
        self.conv1 = StyledConv(config, block, c_out, c_out, up=False)
        self.skip = ResidualSkip(config, c_in, c_out) if block and config.architecture == "resnet" else None
        has_rgb = config.architecture == "skip" or block == config.num_blocks - 1
        self.to_rgb = ToRGB(config, c_out) if has_rgb else None

    def forward(self, x: Tensor, ws: Tensor, noise: str) -> Tensor:
        if self.conv0 is None:
            return self.conv1(x, ws[:, 0], noise)
        h = self.conv0(x, ws[:, 2 * self.block - 1], noise)
        if self.skip is None:
            return self.conv1(h, ws[:, 2 * self.block], noise)
        half = math.sqrt(0.5)  # the sum of shortcut and branch keeps its variance
        return self.skip(x) * half + self.conv1(h, ws[:, 2 * self.block], noise, gain=half)


class MappingLayer(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.weight = random_weight(c_out, c_in, fan_in=c_in)
        self.bias = nn.Parameter(torch.zeros(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Mapping(nn.Module):
    """z [B, z_dim] (and a label c [B, c_dim]) → w_plus [B, num_ws, w_dim]."""

    w_avg: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = MappingLayer(config.c_dim, config.embed_dim) if config.c_dim else None
        widths = (config.z_dim + config.embed_dim, *config.mapping_widths)
        self.layers = nn.ModuleList(MappingLayer(a, b) for a, b in itertools.pairwise(widths))
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def w(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """z [B, z_dim] → w [B, w_dim], without truncation."""
        config = self.config
        if z.ndim != 2 or z.shape[1] != config.z_dim:
            raise DragError(f"z must have the shape [B, {config.z_dim}], not {list(z.shape)}.")
        x = normalize_second_moment(z)
        if self.embed is not None:
            if c is None or c.shape != (z.shape[0], config.c_dim):
                got = "none" if c is None else str(list(c.shape))
                expected = [z.shape[0], config.c_dim]
                raise DragError(
                    f"This network is class-conditional: give a label c of the shape {expected}, got {got}."
                )
            x = torch.cat([x, normalize_second_moment(self.embed(c.to(x.dtype)))], dim=1)
        elif c is not None and c.numel():
            raise DragError("This network is unconditional: give no label c.")
        for layer in self.layers:
            x = F.leaky_relu(layer(x), LRELU_SLOPE) * LRELU_GAIN
        return x

    def forward(self, z: Tensor, c: Tensor | None = None, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Truncation trick: rows below ``cutoff`` (None = all) are pulled toward w_avg by ``psi`` (1 = not at all)."""
        ws = self.w(z, c)[:, None, :].repeat(1, self.config.num_ws, 1)
        if psi != 1.0:
            rows = self.config.num_ws if cutoff is None else cutoff
            ws[:, :rows] = self.w_avg.lerp(ws[:, :rows], psi)
        return ws


class Activations(NamedTuple):
    """Where ``features`` stopped: the outputs of blocks 0…block, which ``render`` needs for their ToRGB layers."""

    outputs: tuple[Tensor, ...]
    noise: str

    @property
    def x(self) -> Tensor:
        """The feature [B, C, r, r] of the last computed block, before ToRGB."""
        return self.outputs[-1]

    @property
    def block(self) -> int:
        return len(self.outputs) - 1


class Synthesis(nn.Module):
    """w_plus [B, num_ws, w_dim] → picture [B, image_channels, H, W], about −1…1."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.const = random_weight(config.channels[0], 4, 4, fan_in=1)
        blocks = nn.ModuleList(SynthesisBlock(config, b) for b in range(config.num_blocks))
        self.blocks = cast("Sequence[SynthesisBlock]", blocks)

    def forward(self, ws: Tensor, noise: str = "const") -> Tensor:
        return self.render(self.features(ws, self.config.num_blocks - 1, noise), ws)

    def features(self, ws: Tensor, block: int, noise: str = "const") -> Activations:
        self._check(ws, noise)
        if not 0 <= block < self.config.num_blocks:
            last = self.config.num_blocks - 1
            raise DragError(f"feature block {block} does not exist: this network has blocks 0 to {last}.")
        x = self.const.unsqueeze(0).expand(ws.shape[0], -1, -1, -1)
        outputs = []
        for layer in self.blocks[: block + 1]:
            x = layer(x, ws, noise)
            outputs.append(x)
        return Activations(tuple(outputs), noise)

    def render(self, activations: Activations, ws: Tensor) -> Tensor:
        self._check(ws, activations.noise)
        return self._rgb(activations, ws, len(self.blocks))

    def preview(self, activations: Activations, ws: Tensor) -> Tensor:
        self._check(ws, activations.noise)
        has_rgb = self.blocks[activations.block].to_rgb is not None
        return self._rgb(activations, ws, activations.block + 1 if has_rgb else len(self.blocks))

    def _rgb(self, activations: Activations, ws: Tensor, count: int) -> Tensor:
        """What the ToRGB layers of the first ``count`` blocks make; blocks that are not computed yet are."""
        image: Tensor | None = None
        x = activations.x
        for index, layer in enumerate(self.blocks[:count]):
            x = activations.outputs[index] if index <= activations.block else layer(x, ws, activations.noise)
            if image is not None:
                image = upsample(image, self.config.resample_filter)
            if layer.to_rgb is not None:
                rgb = layer.to_rgb(x, ws[:, 2 * index + 1])
                image = rgb if image is None else image + rgb
        assert image is not None  # the last of these blocks has a ToRGB
        return image

    def _check(self, ws: Tensor, noise: str) -> None:
        expected = (self.config.num_ws, self.config.w_dim)
        if ws.ndim != 3 or tuple(ws.shape[1:]) != expected:
            raise DragError(f"w_plus must have the shape [B, {expected[0]}, {expected[1]}], not {list(ws.shape)}.")
        if noise not in NOISE_MODES:
            raise DragError(f"noise must be one of {', '.join(NOISE_MODES)}, not {noise!r}.")


class Generator(nn.Module):
    """A StyleGAN2 generator: ``mapping(z)`` → w_plus, ``synthesis(w_plus)`` → picture, or its two halves.

    A new Generator has random weights (ready for training); ``from_checkpoint`` gives one with loaded weights.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(config)
        self.synthesis = Synthesis(config)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Generator:
        """The network of a loaded checkpoint, float32, frozen, in evaluation mode."""
        with torch.device("meta"):
            generator = cls(checkpoint.config)
        generator.load_state_dict(checkpoint.tensors, strict=True, assign=True)
        return generator.eval().freeze()

    def freeze(self) -> Generator:
        """No weight gets a gradient any more, and what depends on weights alone is computed once."""
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, StyledConv):
                module.weight_energy = module.weight.square().sum(dim=(2, 3))
        return self

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        psi: float = 1.0,
        cutoff: int | None = None,
        noise: str = "const",
    ) -> Tensor:
        return self.synthesis(self.mapping(z, c, psi, cutoff), noise)

    def features(self, ws: Tensor, block: int, noise: str = "const") -> Activations:
        """Runs blocks 0…block only, no ToRGB; of ws [B, num_ws, w_dim] only rows 0…2·block matter.

        ``.x`` of the result is the feature [B, C, 4·2^block, 4·2^block] that DragGAN tracks (paper §3.2).
        """
        return self.synthesis.features(ws, block, noise)

    def render(self, activations: Activations, ws: Tensor) -> Tensor:
        """Continues from ``features`` (same ws, same noise mode) to the picture [B, image_channels, H, W].

        With constant or no noise the result is bit for bit that of ``synthesis(ws)`` on the CPU in float32.
        """
        return self.synthesis.render(activations, ws)

    def preview(self, activations: Activations, ws: Tensor) -> Tensor:
        """What the ToRGB layers up to where ``features`` stopped make: [B, image_channels, h, w] of the feature's size;
        the picture itself if the network has none there."""
        return self.synthesis.preview(activations, ws)
