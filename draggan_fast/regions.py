"""Region of interest: the last blocks of the truncated synthesis only where a drag looks at them.

Without a mask loss a step reads a few cells around each handle. So the blocks where nearly all of the work is are
computed on square crops of one size, one per handle, as a batch; the blocks below are computed whole. It is exact: a
crop carries the halo that its convolutions reach into, zeros where it hangs over the picture's border (what a padded
convolution sees there), and its own part of the noise. Nothing outside is approximated, it is simply not computed.

Geometry, from the feature block down. A region is (origin [N, 2] in cells, (x, y), and a size that all crops share).
To give conv1's outputs at (o, K), its inputs are needed at (o − 1, K + 2). The ×2 layer, run on a crop (a, m) of the
block below, is right at its outputs 2a + 2 … 2a + 2m − 3, so that a = ⌊(o − 3)/2⌋ and m = ⌈(K + 7)/2⌉ serve whatever
the parity of o. The next block below must then give (a, m). That is the reach of an FIR of up to 4 taps; networks with
longer ones (there are no public ones) are computed whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .frozen import FrozenSynthesis, Modulation, StyleGradients, Trace, channels_last
from .places import Place, Region, places


class Level(NamedTuple):
    """One block on crops, as its backward pass needs it."""

    place: Place
    low: Tensor  # the ×2 layer's input, unscaled, [N, C, m, m]
    middle: Tensor  # the ×2 layer's output, unscaled, [N, C', 2m, 2m]; right where conv1 reads it
    out: Tensor  # [N, C, K, K]


class RegionTrace(NamedTuple):
    """A forward pass on crops: the blocks below as usual, then one level per block."""

    whole: Trace
    levels: tuple[Level, ...]

    @property
    def feature(self) -> Tensor:
        """[N, C, K, K]: the feature of each crop."""
        return self.levels[-1].out

    @property
    def region(self) -> Region:
        return self.levels[-1].place.region


def region_around(points: Tensor, reach: int, resolution: int, image_size: int) -> Region | None:
    """The cells that pixels within ``reach`` of the points [N, 2] depend on; None if that is the whole map.

    The crops lie wholly inside the map: a border of theirs is either the picture's own or out of reach.
    """
    scale = resolution / image_size
    size = region_size(reach, resolution, image_size)
    if size is None:
        return None
    first = ((points.round() - reach + 0.5) * scale - 0.5).floor().long()
    return Region(first.clamp(0, resolution - size), size)


def region_size(reach: int, resolution: int, image_size: int) -> int | None:
    """Cells along an axis of ``region_around``'s crops, wherever the points are; None if that is the whole map."""
    size = math.ceil(2 * reach * resolution / image_size) + 2
    return size if size < resolution else None


MAX_TAPS = 4  # of the FIR, for which the halo is made
OVERHEAD = 1.5  # how much dearer a multiply-add is on crops, about: small maps, gathering


def first_block(synthesis: FrozenSynthesis, region: Region, level_cost: float = 0.0) -> int | None:
    """From which block on crops are the least work; None if the whole maps are, or the FIR reaches beyond the halo.

    level_cost: what each block on crops costs whatever its size, in multiply-adds of a forward pass.
    """
    if len(synthesis.taps) > MAX_TAPS:
        return None
    whole = [layer.multiply_adds for layer in synthesis.layers]
    cheapest, first = float(sum(whole)), None
    crops, here = 0.0, region
    for block in range(synthesis.block, 0, -1):
        low, middle = here.below(), here.grown(1)
        up, flat = synthesis.layers[2 * block - 1], synthesis.layers[2 * block]
        cells = low.size**2 * up.weights + middle.size**2 * flat.weights
        crops += OVERHEAD * len(region.origin) * cells + level_cost
        total = sum(whole[: 2 * block - 1]) + crops
        if total < cheapest:
            cheapest, first = total, block
        here = low
    return first


@torch.no_grad()
def forward(
    synthesis: FrozenSynthesis, w_plus: Tensor, region: Region, first: int, known: Sequence[Place] | None = None
) -> RegionTrace:
    """w_plus [1, num_ws, w_dim] → the feature in the region; blocks from ``first`` ≥ 1 on are computed on crops.

    known: ``places(synthesis, region, first)``, if somebody has them.
    """
    modulation = synthesis.modulation(w_plus)
    whole = synthesis.run_first(2 * first - 1, modulation)
    levels: list[Level] = []
    for place in places(synthesis, region, first) if known is None else known:
        low = levels[-1].out if levels else place.low.crop(whole.feature)
        levels.append(_level(synthesis, place, low, modulation))
    return RegionTrace(whole, tuple(levels))


def from_whole(
    synthesis: FrozenSynthesis, trace: Trace, region: Region, first: int, known: Sequence[Place] | None = None
) -> RegionTrace:
    """What ``forward`` gives, cut out of a forward pass that computed everything."""
    levels: list[Level] = []
    for place in places(synthesis, region, first) if known is None else known:
        inputs = trace.maps[2 * place.block - 1 :]
        low = levels[-1].out if levels else place.low.crop(inputs[0])  # what a level reads is what the one below gives
        levels.append(Level(place, low, place.middle.crop(inputs[1]), place.out.crop(inputs[2])))
    return RegionTrace(Trace(trace.maps[: 2 * first], trace.modulation), tuple(levels))


def _level(synthesis: FrozenSynthesis, place: Place, low: Tensor, modulation: Modulation) -> Level:
    styles, demodulations, _ = modulation.for_batch(len(place.region.origin))
    first, second = 2 * place.block - 1, 2 * place.block
    up, flat = synthesis.layers[first], synthesis.layers[second]
    middle, scaled_middle = up.forward(
        scaled(low, styles[first]), demodulations[first], place.noises[0], styles[second]
    )
    seen = inside(place.window.inner(scaled_middle), place.read_inside)
    out = flat.forward_valid(seen, demodulations[second], place.noises[1])
    return Level(place, low, middle, inside(out, place.out_inside))


def inside(crops: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros where a crop hangs over the picture's border; None = nowhere."""
    return crops if mask is None else crops * mask


def scaled(x: Tensor, style: Tensor) -> Tensor:
    return channels_last((x.float() * style[:, :, None, None]).to(x.dtype))


@torch.no_grad()
def backward(synthesis: FrozenSynthesis, trace: RegionTrace, grad_feature: Tensor) -> Tensor:
    """grad_feature [N, C, K, K] of the crops → gradient of rows 0…2·block of w_plus, [1, 2·block + 1, w_dim]."""
    modulation = trace.whole.modulation
    to_styles = StyleGradients.zeros(modulation)
    grad = channels_last(grad_feature.to(synthesis.precision))
    for level in reversed(trace.levels):
        grad = _level_backward(synthesis, level, grad, modulation, to_styles)
    grad = trace.levels[0].place.low.crop_adjoint(grad, trace.whole.feature)
    return synthesis.backward_from(trace.whole, grad, to_styles)


def _level_backward(
    synthesis: FrozenSynthesis, level: Level, grad: Tensor, modulation: Modulation, to_styles: StyleGradients
) -> Tensor:
    """grad of ``level.out`` → grad of ``level.low``; what both layers give to ``to_styles`` is put there."""
    place = level.place
    styles, demodulations, _ = modulation.for_batch(len(grad))
    first, second = 2 * place.block - 1, 2 * place.block
    up, flat = synthesis.layers[first], synthesis.layers[second]
    grad, grad_demodulation = flat.backward_valid(
        channels_last(inside(grad, place.out_inside)), level.out, demodulations[second], place.noises[1]
    )
    to_styles.demodulations[second] = over_crops(grad_demodulation)
    grad = place.window.inner_adjoint(inside(grad, place.read_inside), level.middle.shape[3])
    grad, grad_style, grad_demodulation = up.backward(
        channels_last(grad), level.middle, demodulations[first], place.noises[0], styles[second]
    )
    to_styles.styles[second] += over_crops(grad_style)
    to_styles.demodulations[first] = over_crops(grad_demodulation)
    to_styles.styles[first] += (grad.float() * level.low.float()).sum(dim=(0, 2, 3))
    return scaled(grad, styles[first])


def over_crops(values: Tensor) -> Tensor:
    """[N, C] → [1, C]: what all of them give."""
    return values if len(values) == 1 else values.sum(dim=0, keepdim=True)
