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
from typing import NamedTuple

import torch
from torch import Tensor

from .frozen import FrozenLayer, FrozenSynthesis, Modulation, StyleGradients, Trace, channels_last


class Region(NamedTuple):
    """origin [N, 2] int64, (x, y) of each crop's first cell; size: cells along both axes."""

    origin: Tensor
    size: int

    def grown(self, cells: int) -> Region:
        return Region(self.origin - cells, self.size + 2 * cells)

    def doubled(self) -> Region:
        """Where the ×2 layer's output of this region lies in the block above."""
        return Region(2 * self.origin, 2 * self.size)

    def below(self) -> Region:
        """What the ×2 layer needs of the block below to give this region grown by one."""
        return Region((self.origin - 3).div(2, rounding_mode="floor"), math.ceil((self.size + 7) / 2))

    def cells(self, resolution: int) -> Cells:
        """Where the region's cells lie in a map of this resolution."""
        places = self.origin[:, :, None] + torch.arange(self.size, device=self.origin.device)  # [N, 2, size]: x, y
        held = places.clamp(0, resolution - 1)
        across, down = held.unbind(1)
        inside_across, inside_down = (held == places).unbind(1)
        at = (down * resolution)[:, :, None] + across[:, None]
        return Cells(at, inside_down[:, :, None] & inside_across[:, None])


class Cells(NamedTuple):
    """at [N, size, size] int64: row-major place of each cell, held inside the map; inside [N, size, size] bool:
    whether it really lies there."""

    at: Tensor
    inside: Tensor

    def crop(self, map_: Tensor) -> Tensor:
        """[1, C, h, w] → [N, C, size, size], zeros outside the map."""
        rows = map_.permute(0, 2, 3, 1).flatten(0, 2)
        return (rows[self.at] * self.inside[..., None]).permute(0, 3, 1, 2)

    def crop_adjoint(self, crops: Tensor, like: Tensor) -> Tensor:
        """The transpose of ``crop``: overlapping crops add up. float32 [1, C, h, w]."""
        rows = (crops.float() * self.inside[:, None]).permute(0, 2, 3, 1).flatten(0, 2)
        total = rows.new_zeros(like.shape[2] * like.shape[3], like.shape[1])
        total.index_add_(0, self.at.flatten(), rows)
        return total.unflatten(0, (1, *like.shape[2:])).permute(0, 3, 1, 2)


class Window(NamedTuple):
    """A square inside each of a batch of crops: where its rows, columns and crops are, ready to index with."""

    batch: Tensor  # [N, 1, 1]
    rows: Tensor  # [N, size, 1]
    columns: Tensor  # [N, 1, size]

    @classmethod
    def at(cls, offset: Tensor, size: int) -> Window:
        """From the cell ``offset`` [N, 2] (x, y) of each crop on."""
        places = offset[:, :, None] + torch.arange(size, device=offset.device)
        batch = torch.arange(len(offset), device=offset.device)[:, None, None]
        return cls(batch, places[:, 1, :, None], places[:, 0, None, :])

    def inner(self, crops: Tensor) -> Tensor:
        """[N, C, s, s] → [N, C, size, size]: what lies in the window."""
        return crops.permute(0, 2, 3, 1)[self.batch, self.rows, self.columns].permute(0, 3, 1, 2)

    def inner_adjoint(self, crops: Tensor, size: int) -> Tensor:
        """The transpose of ``inner``: [N, C, s, s] into zeros [N, C, size, size]."""
        total = crops.new_zeros(crops.shape[0], size, size, crops.shape[1])
        total[self.batch, self.rows, self.columns] = crops.permute(0, 2, 3, 1)
        return total.permute(0, 3, 1, 2)


def noise_in(synthesis: FrozenSynthesis, layer: FrozenLayer, cells: Cells) -> Tensor | None:
    """The layer's noise there, [N, size, size]; what stands outside the picture does not matter."""
    noise = synthesis.noise_of(layer)
    return None if noise is None else noise.flatten()[cells.at]


class Place(NamedTuple):
    """Where a level's crops lie in the picture, looked up once for both directions."""

    noises: tuple[Tensor | None, Tensor | None]  # of the ×2 layer's output, of conv1's output
    window: Window  # what conv1 reads of the ×2 layer's output
    read_inside: Tensor  # [N, 1, K + 2, K + 2] bool: what of the window lies inside the picture
    out_inside: Tensor  # [N, 1, K, K] bool

    @classmethod
    def of(
        cls,
        synthesis: FrozenSynthesis,
        block: int,
        low_region: Region,
        region: Region,
        middle: Cells | None = None,
        out: Cells | None = None,
    ) -> Place:
        """middle, out: where the ×2 layer's output and the region lie, if that has been looked up already."""
        up, flat = synthesis.layers[2 * block - 1], synthesis.layers[2 * block]
        resolution, doubled, read = 4 << block, low_region.doubled(), region.grown(1)
        middle = doubled.cells(resolution) if middle is None else middle
        out = region.cells(resolution) if out is None else out
        return cls(
            (noise_in(synthesis, up, middle), noise_in(synthesis, flat, out)),
            Window.at(read.origin - doubled.origin, read.size),
            read.cells(resolution).inside[:, None],
            out.inside[:, None],
        )


class Level(NamedTuple):
    """One block on crops, as its backward pass needs it."""

    block: int
    low_region: Region  # of the block below
    low: Tensor  # its values, the ×2 layer's input, unscaled, [N, C, m, m]
    middle: Tensor  # the ×2 layer's output, unscaled, [N, C', 2m, 2m]; right where conv1 reads it
    out: Tensor  # [N, C, K, K]
    region: Region
    place: Place


class RegionTrace(NamedTuple):
    """A forward pass on crops: the blocks below as usual, then one level per block. entry: where the lowest level's
    input lies in their last map."""

    whole: Trace
    entry: Cells
    levels: tuple[Level, ...]

    @property
    def feature(self) -> Tensor:
        """[N, C, K, K]: the feature of each crop."""
        return self.levels[-1].out

    @property
    def region(self) -> Region:
        return self.levels[-1].region


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
def forward(synthesis: FrozenSynthesis, w_plus: Tensor, region: Region, first: int) -> RegionTrace:
    """w_plus [1, num_ws, w_dim] → the feature in the region; blocks from ``first`` ≥ 1 on are computed on crops."""
    modulation = synthesis.modulation(w_plus)
    whole = synthesis.run_first(2 * first - 1, modulation)
    regions = [region]
    for _ in range(first, synthesis.block):
        regions.append(regions[-1].below())
    entry = regions[-1].below().cells(whole.feature.shape[3])
    levels: list[Level] = []
    for block, target in zip(range(first, synthesis.block + 1), reversed(regions), strict=True):
        low = levels[-1].out if levels else entry.crop(whole.feature)
        levels.append(_level(synthesis, block, target.below(), low, target, modulation))
    return RegionTrace(whole, entry, tuple(levels))


def from_whole(synthesis: FrozenSynthesis, trace: Trace, region: Region, first: int) -> RegionTrace:
    """What ``forward`` gives, cut out of a forward pass that computed everything."""
    levels: list[Level] = []
    out_cells = region.cells(4 << synthesis.block)
    out = out_cells.crop(trace.maps[2 * synthesis.block + 1])
    for block in range(synthesis.block, first - 1, -1):
        low_region = region.below()
        middle_cells, low_cells = low_region.doubled().cells(4 << block), low_region.cells(4 << (block - 1))
        middle, low = middle_cells.crop(trace.maps[2 * block]), low_cells.crop(trace.maps[2 * block - 1])
        place = Place.of(synthesis, block, low_region, region, middle_cells, out_cells)
        levels.insert(0, Level(block, low_region, low, middle, out, region, place))
        region, out, out_cells = low_region, low, low_cells  # what a level reads is what the one below gives
    return RegionTrace(Trace(trace.maps[: 2 * first], trace.modulation), out_cells, tuple(levels))


def _level(
    synthesis: FrozenSynthesis,
    block: int,
    low_region: Region,
    low: Tensor,
    region: Region,
    modulation: Modulation,
) -> Level:
    styles, demodulations, _ = modulation.for_batch(len(region.origin))
    first, second = 2 * block - 1, 2 * block
    up, flat = synthesis.layers[first], synthesis.layers[second]
    place = Place.of(synthesis, block, low_region, region)
    middle, scaled_middle = up.forward(
        scaled(low, styles[first]), demodulations[first], place.noises[0], styles[second]
    )
    seen = place.window.inner(scaled_middle) * place.read_inside
    out = flat.forward_valid(seen, demodulations[second], place.noises[1])
    return Level(block, low_region, low, middle, out * place.out_inside, region, place)


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
    grad = trace.entry.crop_adjoint(grad, trace.whole.feature)
    return synthesis.backward_from(trace.whole, grad, to_styles)


def _level_backward(
    synthesis: FrozenSynthesis, level: Level, grad: Tensor, modulation: Modulation, to_styles: StyleGradients
) -> Tensor:
    """grad of ``level.out`` → grad of ``level.low``; what both layers give to ``to_styles`` is put there."""
    styles, demodulations, _ = modulation.for_batch(len(grad))
    first, second = 2 * level.block - 1, 2 * level.block
    up, flat = synthesis.layers[first], synthesis.layers[second]
    place = level.place
    grad, grad_demodulation = flat.backward_valid(
        channels_last(grad * place.out_inside), level.out, demodulations[second], place.noises[1]
    )
    to_styles.demodulations[second] = grad_demodulation.sum(dim=0, keepdim=True)
    grad = place.window.inner_adjoint(grad * place.read_inside, level.middle.shape[3])
    grad, grad_style, grad_demodulation = up.backward(
        channels_last(grad), level.middle, demodulations[first], place.noises[0], styles[second]
    )
    to_styles.styles[second] += grad_style.sum(dim=0, keepdim=True)
    to_styles.demodulations[first] = grad_demodulation.sum(dim=0, keepdim=True)
    to_styles.styles[first] += (grad.float() * level.low.float()).sum(dim=(0, 2, 3))
    return scaled(grad, styles[first])
