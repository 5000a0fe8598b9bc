"""A 3×3 convolution by Winograd's minimal filtering, F(4×4, 3×3), in plain PyTorch: the specification of the fast one.

A tile of 4×4 outputs of a convolution takes 6×6 inputs and 144 multiplications a pair of channels. Winograd's way
takes 36: tile and kernel are polynomials, evaluated at 6 points along each axis (Bᵀ d B and G g Gᵀ), multiplied there,
and brought back (Aᵀ m A). Over channels the products at one point are a matrix product, 36 in all (Lavin and Gray,
"Fast Algorithms for Convolutional Neural Networks", CVPR 2016).

The points are 0, ±√½, ±√2 and infinity instead of the usual 0, ±1, ±2, ∞: the transforms' entries then lie near 1, and
in float32 the result is about as exact as a direct convolution's (256 channels, beside float64: 1.1e-6 and 0.8e-6;
with the usual points twice as much). That the choice of points decides the error is known (Barabasz et al., "Error
Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2020).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TILE, SIDE = 4, 6  # outputs of a tile along an axis; the inputs they take, which is the number of points
POINTS = SIDE * SIDE
PANEL = 16  # output channels that lie side by side in memory: a row of registers in the compiled products
AT_ONCE = 2  # panels whose kernels are transformed together: in float64 they take eight times their memory
NEAR, FAR = math.sqrt(0.5), math.sqrt(2.0)


def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """(Bᵀ [6, 6], G [6, 3], Aᵀ [4, 6]), float64: evaluation of a tile and of a kernel, and the way back.

    With M(x) = x·(x² − near²)·(x² − far²), a row of Bᵀ is M(x) divided by (x − point), that of infinity M itself; G
    evaluates at a point and divides by the product of its distances to the others; Aᵀ holds the points' powers.
    """
    points = (0.0, NEAR, -NEAR, FAR, -FAR)
    p, q = NEAR**2, FAR**2
    evaluation = [[p * q, 0, -(p + q), 0, 1, 0]]
    evaluation += [[0, -a * q, -q, a, 1, 0] for a in points[1:3]]
    evaluation += [[0, -a * p, -p, a, 1, 0] for a in points[3:]]
    evaluation += [[0, p * q, 0, -(p + q), 0, 1]]
    distances = [math.prod(a - b for b in points if b != a) for a in points]
    kernel = [[a**k / distance for k in range(3)] for a, distance in zip(points, distances)] + [[0, 0, 1]]
    back = [[a**k for a in points] + [float(k == TILE - 1)] for k in range(TILE)]
    b, g, a = (torch.tensor(rows, dtype=torch.float64) for rows in (evaluation, kernel, back))
    return b, g, a


def transform_weight(weight: Tensor) -> Tensor:
    """A kernel [C', C, 3, 3] at the points, computed in float64: panels [36, ⌈C'/16⌉, C, 16], see ``to_panels``."""
    return to_panels(weight, transforms()[1])


def to_panels(weight: Tensor, g: Tensor) -> Tensor:
    """g·w·gᵀ of a kernel [C', C, 3, 3], g [n, 3]: panels [n², ⌈C'/16⌉, C, 16] in the kernel's dtype.

    A panel holds 16 output channels, zeros beyond the last: what the compiled products read in one go.
    """
    g = g.to(weight.device)
    panels = weight.new_zeros(len(g) ** 2, -(-weight.shape[0] // PANEL), weight.shape[1], PANEL)
    for first in range(0, panels.shape[1], AT_ONCE):
        part = weight[first * PANEL : (first + AT_ONCE) * PANEL]
        at_points = g @ part.double() @ g.T  # [up to 32 of C', C, n, n]
        rows = F.pad(at_points.permute(2, 3, 1, 0).flatten(0, 1), (0, -len(part) % PANEL))
        panels[:, first : first + AT_ONCE] = rows.unflatten(2, (-1, PANEL)).transpose(1, 2)
    return panels


def from_panels(panels: Tensor, out_channels: int) -> Tensor:
    """[…, ⌈C'/16⌉, C, 16] → the matrices […, C, C']."""
    return panels.transpose(-3, -2).flatten(-2)[..., :out_channels]


def winograd_conv(x: Tensor, panels: Tensor, out_channels: int, padding: tuple[int, int]) -> Tensor:
    """The convolution of x [B, C, h, w] with the kernel behind ``panels`` (``transform_weight``), zeros around it.

    → [B, C', h + 2·rows − 2, w + 2·columns − 2], channels-last; padding: rows and columns, 0 to 2.
    """
    b, _, a = (t.to(device=x.device, dtype=x.dtype) for t in transforms())
    (rows, columns), (batch, _, h, w) = padding, x.shape
    height, width = h + 2 * rows - 2, w + 2 * columns - 2
    down, across = -(-height // TILE), -(-width // TILE)
    beyond = (columns, TILE * across + 2 - w - columns, rows, TILE * down + 2 - h - rows)
    tiles = F.pad(x, beyond).unfold(2, SIDE, TILE).unfold(3, SIDE, TILE)  # [B, C, down, across, 6, 6]
    at_points = (b @ tiles @ b.T).permute(4, 5, 0, 2, 3, 1).reshape(POINTS, -1, x.shape[1])
    products = (
        (at_points @ from_panels(panels, out_channels)).unflatten(0, (SIDE, SIDE)).permute(2, 3, 0, 1)
    )  # [tiles, C', 6, 6]
    cells = (a @ products @ a.T).unflatten(0, (batch, down, across)).permute(0, 3, 1, 4, 2, 5)
    y = cells.reshape(batch, out_channels, down * TILE, across * TILE)[:, :, :height, :width]
    return y.contiguous(memory_format=torch.channels_last)
