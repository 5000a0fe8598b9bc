"""The ×2 layer's transposed convolution by Winograd's minimal filtering, in plain PyTorch: what the fast one does.

A transposed 3×3 convolution of stride 2 is four small ones, one for each phase of its output (``modulated_conv``):
along an axis an even output is the sum of two products, an odd one a single product. Three even outputs take three
inputs' products at four points, F(3, 2), instead of six; the three odd ones beside them have nothing to save. So a tile
of 6×6 outputs takes (4 + 3)² = 49 products a pair of channels instead of (6 + 3)² = 81.

The points are 0, 1, −1 and infinity. All entries are 0, ±1 and ±½: the result is as exact as a direct convolution's.
The transpose, phases to input, is the same with the transposed weight: what even and odd rows and columns give to an
input is added up before it is brought back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .modulated_conv import Phases
from .winograd import from_panels, to_panels

TILE, EVEN = 3, 4  # even (odd) outputs of a tile along an axis; the inputs and the points of the even ones
SIDE = EVEN + TILE  # products of a tile along an axis
POINTS = EVEN + 1  # the fifth stands for the odd outputs, which share a weight
B = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1))  # Bᵀ: an even output's inputs at the points
G = ((0, 0, 1), (0.5, 0, 0.5), (-0.5, 0, 0.5), (1, 0, 0), (0, 1, 0))  # the kernel at the points, then the odd one's
A = ((1, 1, 1, 0), (0, 1, -1, 0), (0, 1, 1, 1))  # Aᵀ: the way back


def transform_weight(weight: Tensor) -> Tensor:
    """A kernel [C', C, 3, 3] at the points, computed in float64: panels [25, ⌈C'/16⌉, C, 16] (``winograd``).

    For the transpose: of ``weight.flip(2, 3).transpose(0, 1)``.
    """
    return to_panels(weight, torch.tensor(G, dtype=torch.float64))


def _matrices(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(what reads x [7, 4], what reads the phases [7, 7], the way back of the even ones [3, 4])."""
    b, a = (torch.tensor(rows, device=like.device, dtype=like.dtype) for rows in (B, A))
    odd = torch.eye(TILE, device=like.device, dtype=like.dtype)
    return torch.cat((b, F.pad(odd, (1, 0)))), torch.block_diag(b, odd), a


def _products(slots: Tensor, panels: Tensor, out_channels: int) -> Tensor:
    """slots [tiles, C, 7, 7] → [tiles, C', 7, 7]: each with the weight of its point."""
    point = torch.arange(SIDE).clamp(max=EVEN)
    weight = from_panels(panels, out_channels)[(point[:, None] * POINTS + point).flatten()]  # [49, C, C']
    products = slots.flatten(2).permute(2, 0, 1) @ weight
    return products.permute(1, 2, 0).unflatten(2, (SIDE, SIDE))


def _tiles(map_: Tensor, before: int, size: int, down: int, across: int) -> Tensor:
    """[B, C, h, w] → tiles of so many cells, every three [B · down · across, C, size, size], zeros around it."""
    h, w = map_.shape[2:]
    beyond = (before, TILE * (across - 1) + size - before - w, before, TILE * (down - 1) + size - before - h)
    tiles = F.pad(map_, beyond).unfold(2, size, TILE).unfold(3, size, TILE)
    return tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def _joined(cells: Tensor, down: int, across: int, height: int, width: int) -> Tensor:
    """The way back, of tiles of 3×3 cells: [B, C, height, width], channels-last."""
    whole = cells.unflatten(0, (-1, down, across)).permute(0, 3, 1, 4, 2, 5)
    map_ = whole.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]
    return map_.contiguous(memory_format=torch.channels_last)


def winograd_up(x: Tensor, panels: Tensor, out_channels: int) -> Phases:
    """x [B, C, h, w] → the four phases [B, C', h + 1 or h, w + 1 or w], channels-last."""
    (h, w), (read, _, back) = x.shape[2:], _matrices(x)
    down, across = h // TILE + 1, w // TILE + 1
    m = _products(read @ _tiles(x, 1, EVEN, down, across) @ read.T, panels, out_channels)
    rows = back @ m[:, :, :EVEN], m[:, :, EVEN:]  # even, odd
    columns = [(part[..., :EVEN] @ back.T, part[..., EVEN:]) for part in rows]
    first, second, third, fourth = (
        _joined(columns[i][j], down, across, h + 1 - i, w + 1 - j) for i in (0, 1) for j in (0, 1)
    )
    return first, second, third, fourth


def winograd_up_transpose(phases: Phases, panels: Tensor, out_channels: int) -> Tensor:
    """The phases [B, C, …] → [B, C', h, w], channels-last; panels: of the transposed weight."""
    (h, w), (_, read, back) = phases[3].shape[2:], _matrices(phases[3])
    down, across = -(-h // TILE), -(-w // TILE)
    even_even, even_odd, odd_even, odd_odd = phases
    # Of the odd phases a tile takes three cells, of the even ones one more; four are cut, and the last left out.
    parts = [
        _tiles(F.pad(part, (0, 1, 0, 1)), 0, EVEN, down, across) for part in (even_even, even_odd, odd_even, odd_odd)
    ]
    above = torch.cat((parts[0], parts[1][..., :TILE]), dim=3)
    below = torch.cat((parts[2], parts[3][..., :TILE]), dim=3)[:, :, :TILE]
    m = _products(read @ torch.cat((above, below), dim=2) @ read.T, panels, out_channels)
    rows = back @ m[:, :, :EVEN] + m[:, :, EVEN:]
    return _joined(rows[..., :EVEN] @ back.T + rows[..., EVEN:], down, across, h, w)
