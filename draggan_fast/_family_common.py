"""What the conversions from other programs' files share: taking tensors out, describing the result.

The tensors that a conversion makes are *effective*: the gains that the programs apply at run time (equalised
learning rate, the mapping network's learning-rate multiplier, the 1 added to modulation biases) are
multiplied in, so that the generator has none. Demodulated convolutions of NVIDIA's PyTorch programs use their
weights without a gain; the other two programs scale them, which matters only against the 1e-8 in the
demodulation.

Sources: the files themselves, and "Analyzing and Improving the Image Quality of StyleGAN" (Karras et al.
2020), §2 and appendix B.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ._pickle_data import Refused, shown
from ._tensor_data import Array, NumpyArray
from .errors import DragError
from .generator import GeneratorConfig

MAPPING_LR = 0.01  # of the mapping layers, where a file does not say it: every program's default
MAX_BLOCKS = 9  # 1024 pixels
EXPORT_AGAIN = "export the generator again with the program that trained it"
ONLY_UNMODIFIED = "only unmodified StyleGAN2 generators can be loaded"


@dataclass(frozen=True)
class Checkpoint:
    """A generator as its file describes it.

    tensors: canonical name → effective weights, float32, contiguous, on the CPU.
    family: "nvidia-pytorch", "nvidia-tensorflow", "rosinality" or "draggan-fast", whichever the file was.
    metadata: what the file says besides, such as recommended settings {"drag": {...}}, licence and source.
    """

    config: GeneratorConfig
    tensors: dict[str, Tensor]
    family: str
    metadata: dict[str, Any] = field(default_factory=dict)


class Source:
    """The tensors of a file by their names there; each is taken as float32, and none may be left over."""

    def __init__(self, values: dict[str, Any], file_size: int) -> None:
        self._values = values
        self._bytes_left = file_size  # tensors may share a storage, but not so that they outgrow the file
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def take(self, name: str, *dimensions: int) -> Tensor:
        """The tensor of that name, which must have one of the given numbers of dimensions."""
        if name not in self._values:
            raise Refused(f"the tensor {shown(name)} is missing; {EXPORT_AGAIN}")
        value = self._values[name]
        if isinstance(value, NumpyArray):
            value = value.array
        if (number := as_number(value)) is not None:
            tensor = torch.tensor(number)
        elif isinstance(value, Array):
            self._bytes_left -= value.nbytes
            if self._bytes_left < 0:
                raise Refused("its tensors claim more bytes than the file has; download it again")
            tensor = value.to_tensor().to(torch.float32)
        else:
            raise Refused(f"{shown(name)} is not a tensor; {EXPORT_AGAIN}")
        if tensor.ndim not in dimensions:
            raise Refused(
                f"the tensor {shown(name)} has the shape {list(tensor.shape)}, but {dimensions[0]} "
                "dimensions are "
                f"expected; {EXPORT_AGAIN}"
            )
        self._taken.add(name)
        return tensor

    def count(self, pattern: str, first: int = 0) -> int:
        """How many of pattern.format(first), pattern.format(first + 1)… there are in a row."""
        n = 0
        while pattern.format(first + n) in self._values:
            n += 1
        return n

    def finish(self, ignored: Iterable[str] = ()) -> None:
        """Refuses a file in which something was not used: it is a part of the network that we do not know."""
        surplus = sorted(set(self._values) - self._taken - set(ignored))
        if surplus:
            raise Refused(f"it has a tensor {shown(surplus[0])} that StyleGAN2 does not have; {ONLY_UNMODIFIED}")


def as_number(value: Any) -> float | None:
    """``value`` as a float if it is a number of ordinary size, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        return None
    return float(value)


def unsupported(option: str, value: Any) -> Refused:
    what = shown(value) if value is None or isinstance(value, (str, int, float)) else "(something else)"
    return Refused(f"its option {shown(option)} = {what} makes it another kind of network; {ONLY_UNMODIFIED}")


def discriminator_only() -> Refused:
    return Refused("it holds only a discriminator; give the file with the generator (G_ema)")


def count_blocks(present: Sequence[bool]) -> int:
    """Number of resolutions in a row, 4×4 first. Raises Refused if there are none or too many."""
    count = list(present).index(False)
    if not 1 <= count <= MAX_BLOCKS:
        raise Refused(f"it has {count} resolutions, but a StyleGAN2 generator has 1 to {MAX_BLOCKS}; {EXPORT_AGAIN}")
    return count


def check_start(const: Tensor, blocks: int) -> None:
    """const [..., h, w]: refuses the networks whose pictures are not square."""
    height, width = const.shape[-2:]
    if (height, width) != (4, 4):
        kind = "a non-square" if height != width else "an unusual"
        scale = 1 << (blocks - 1)
        raise Refused(
            f"it is {kind} network (it makes pictures {height * scale} pixels high and {width * scale} "
            "wide); "
            "only square StyleGAN2 networks that start from 4×4 can be loaded for now"
        )


def filter_taps(kernel: Tensor, total: float) -> tuple[float, ...]:
    """The FIR as a file stores it, [n, n] (or [n] if applied separably) with the sum ``total``, as taps
    [n]."""
    kernel = kernel.double() / total
    taps = kernel if kernel.ndim == 1 else kernel.sum(dim=0)
    square = taps if kernel.ndim == 1 else torch.outer(taps, taps)
    if kernel.shape != square.shape or not torch.allclose(square, kernel, atol=1e-5) or abs(taps.sum() - 1) > 1e-4:
        raise unsupported("resample_filter", "an unusual filter")
    whole = taps / taps.abs()[taps != 0].min()
    if torch.allclose(whole, whole.round(), atol=1e-4):
        taps = whole.round()  # the numbers that people write: 1, 3, 3, 1
    return tuple(taps.tolist())


def one_value(name: str, values: Sequence[Any]) -> Any:
    """The value that all layers have in common."""
    if any(v != values[0] for v in values):
        raise Refused(f"its layers differ in {name}; {ONLY_UNMODIFIED}")
    return values[0]


def describe(tensors: dict[str, Tensor], conv_clamp: Any, resample_filter: Sequence[Any]) -> GeneratorConfig:
    """The configuration that canonical tensors imply: every width is read off the weights."""
    blocks = sum(name.endswith("conv1.weight") for name in tensors)
    last = blocks - 1
    with_rgb = {b for b in range(blocks) if f"synthesis.blocks.{b}.to_rgb.weight" in tensors}
    if last not in with_rgb:
        raise Refused(f"its last resolution has no ToRGB layer; {EXPORT_AGAIN}")
    if any(name.endswith("skip.weight") for name in tensors):
        architecture = "resnet"
    else:
        architecture = "skip" if len(with_rgb) > 1 or blocks == 1 else "orig"
    embed = tensors.get("mapping.embed.weight")
    embed_dim, c_dim = embed.shape if embed is not None else (0, 0)
    w_dim = tensors["mapping.w_avg"].numel()
    layers = sum(name.startswith("mapping.layers.") and name.endswith(".weight") for name in tensors)
    z_dim = tensors["mapping.layers.0.weight"].shape[1] - embed_dim if layers else w_dim
    try:
        return GeneratorConfig(
            resolution=4 << last,
            z_dim=z_dim,
            w_dim=w_dim,
            c_dim=c_dim,
            embed_dim=embed_dim,
            mapping_widths=tuple(tensors[f"mapping.layers.{i}.weight"].shape[0] for i in range(layers)),
            channels=tuple(tensors[f"synthesis.blocks.{b}.conv1.weight"].shape[0] for b in range(blocks)),
            image_channels=tensors[f"synthesis.blocks.{last}.to_rgb.weight"].shape[0],
            architecture=architecture,
            conv_clamp=None if conv_clamp is None else float(conv_clamp),
            use_noise="synthesis.blocks.0.conv1.noise_strength" in tensors,
            resample_filter=tuple(map(float, resample_filter)),
        )
    except DragError as error:
        raise Refused(
            f"it does not describe a StyleGAN2 generator ({str(error).rstrip('.')}); {EXPORT_AGAIN}"
        ) from None
