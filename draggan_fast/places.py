"""Where the crops of ``regions`` lie: cells, windows and masks at each level."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .frozen import FrozenLayer, FrozenSynthesis

KEPT = 8  # places of a session


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

    def cells(self, resolution: int, fixed: bool = False) -> Cells:
        """Where the region's cells lie in a map of this resolution. fixed: see ``places``."""
        places = self.origin[:, :, None] + torch.arange(self.size, device=self.origin.device)  # [N, 2, size]: x, y
        held = places.clamp(0, resolution - 1)
        across, down = held.unbind(1)
        inside_across, inside_down = (held == places).unbind(1)
        at = (down * resolution)[:, :, None] + across[:, None]
        inside = inside_down[:, :, None] & inside_across[:, None]
        return Cells(at, inside, corners_of(self.origin) if fixed and bool(inside.all()) else None)


class Cells(NamedTuple):
    """at [N, size, size] int64: row-major place of each cell, held inside the map; inside [N, size, size] bool:
    whether it really lies there. corners: (x, y) of each crop's first cell, if all lie inside and that is known here:
    slices are cut faster than cells are gathered."""

    at: Tensor
    inside: Tensor
    corners: list[tuple[int, int]] | None

    @property
    def mask(self) -> Tensor | None:
        """[N, 1, size, size] bool; None = all lie inside."""
        return self.inside[:, None] if self.corners is None else None

    def crop(self, map_: Tensor) -> Tensor:
        """[1, C, h, w] → [N, C, size, size], zeros outside the map."""
        rows = map_.permute(0, 2, 3, 1)
        if self.corners is not None:
            size = self.at.shape[1]
            return torch.stack([rows[0, y : y + size, x : x + size] for x, y in self.corners]).permute(0, 3, 1, 2)
        return (rows.flatten(0, 2)[self.at] * self.inside[..., None]).permute(0, 3, 1, 2)

    def crop_adjoint(self, crops: Tensor, like: Tensor) -> Tensor:
        """The transpose of ``crop``: overlapping crops add up. float32 [1, C, h, w]."""
        cells = crops.float().permute(0, 2, 3, 1)
        total = cells.new_zeros(*like.shape[2:], like.shape[1])
        if self.corners is None:
            rows = (cells * self.inside[..., None]).flatten(0, 2)
            total.flatten(0, 1).index_add_(0, self.at.flatten(), rows)
        else:
            size = self.at.shape[1]
            for part, (x, y) in zip(cells, self.corners, strict=True):
                total[y : y + size, x : x + size] += part
        return total[None].permute(0, 3, 1, 2)


class Window(NamedTuple):
    """A square inside each of a batch of crops: where its rows, columns and crops are, ready to index with.

    corners: (x, y) of each one's first cell, if that is known here.
    """

    batch: Tensor  # [N, 1, 1]
    rows: Tensor  # [N, size, 1]
    columns: Tensor  # [N, 1, size]
    corners: list[tuple[int, int]] | None

    @classmethod
    def at(cls, offset: Tensor, size: int, fixed: bool = False) -> Window:
        """From the cell ``offset`` [N, 2] (x, y) of each crop on. fixed: see ``places``."""
        places = offset[:, :, None] + torch.arange(size, device=offset.device)
        batch = torch.arange(len(offset), device=offset.device)[:, None, None]
        corners = corners_of(offset) if fixed else None
        return cls(batch, places[:, 1, :, None], places[:, 0, None, :], corners)

    def inner(self, crops: Tensor) -> Tensor:
        """[N, C, s, s] → [N, C, size, size]: what lies in the window."""
        return crops.permute(0, 2, 3, 1)[self.batch, self.rows, self.columns].permute(0, 3, 1, 2)

    def inner_adjoint(self, crops: Tensor, size: int) -> Tensor:
        """The transpose of ``inner``: [N, C, s, s] into zeros [N, C, size, size]."""
        cells = crops.permute(0, 2, 3, 1)
        total = crops.new_zeros(crops.shape[0], size, size, crops.shape[1])
        if self.corners is None:
            total[self.batch, self.rows, self.columns] = cells
        else:
            side = cells.shape[1]
            for index, (x, y) in enumerate(self.corners):
                total[index, y : y + side, x : x + side] = cells[index]
        return total.permute(0, 3, 1, 2)


def corners_of(origin: Tensor) -> list[tuple[int, int]]:
    return [(x, y) for x, y in origin.tolist()]


class Place(NamedTuple):
    """Where a block's crops lie: looked up once for both directions, and for as long as the handles stay there."""

    block: int
    low_region: Region  # in the block below: the ×2 layer's input
    region: Region  # its output
    low: Cells
    middle: Cells  # of the ×2 layer's output
    out: Cells
    noises: tuple[Tensor | None, Tensor | None]  # of the ×2 layer's output, of conv1's output: [N, size, size]
    window: Window  # what conv1 reads of the ×2 layer's output
    read_inside: Tensor | None  # [N, 1, K + 2, K + 2] bool: what of the window lies inside the picture; None = all
    out_inside: Tensor | None  # [N, 1, K, K] bool


def places(synthesis: FrozenSynthesis, region: Region, first: int, fixed: bool = False) -> tuple[Place, ...]:
    """Of the blocks from ``first`` to the feature's, in this order, for a region of the feature.

    fixed: for exactly this origin, whose numbers are looked at. Otherwise nothing depends on them but through tensors:
    a captured step has its origin in a buffer, where it changes.
    """
    found: list[Place] = []
    out = region.cells(4 << synthesis.block, fixed)
    for block in range(synthesis.block, first - 1, -1):
        up, flat = synthesis.layers[2 * block - 1], synthesis.layers[2 * block]
        resolution, low_region, read = 4 << block, region.below(), region.grown(1)
        doubled = low_region.doubled()
        low, middle = low_region.cells(resolution // 2, fixed), doubled.cells(resolution, fixed)
        noises = noise_in(synthesis, up, middle), noise_in(synthesis, flat, out)
        window = Window.at(read.origin - doubled.origin, read.size, fixed)
        read_inside = read.cells(resolution, fixed).mask
        found.append(Place(block, low_region, region, low, middle, out, noises, window, read_inside, out.mask))
        region, out = low_region, low
    return tuple(reversed(found))


def noise_in(synthesis: FrozenSynthesis, layer: FrozenLayer, cells: Cells) -> Tensor | None:
    """The layer's noise there, [N, size, size]; what stands outside the picture does not matter."""
    noise = synthesis.noise_of(layer)
    return None if noise is None else noise.flatten()[cells.at]


class Places:
    """``places`` of where the handles have been lately: a handle stays in its cell for several steps, and on small maps
    looking places up takes as long as a convolution. On a CPU: elsewhere looking at an origin is waiting for it."""

    def __init__(self, synthesis: FrozenSynthesis) -> None:
        self._synthesis = synthesis
        self._known: OrderedDict[tuple[Any, ...], tuple[Place, ...]] = OrderedDict()

    def of(self, region: Region, first: int) -> tuple[Place, ...] | None:
        """None: they must be looked up where they are needed."""
        if region.origin.device.type != "cpu":
            return None
        key = (tuple(region.origin.flatten().tolist()), region.size, first)
        if key not in self._known:
            self._known[key] = places(self._synthesis, region, first, fixed=True)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]
