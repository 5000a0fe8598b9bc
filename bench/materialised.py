"""The drag ops as the published program computes them: the feature map stored at image size, then indexed.

What the ops suite calls the engine ``published``: `interpolate`, a Python loop over the points with ``nonzero``,
``grid_sample`` on the whole map, autograd back to the small feature. Batch 1, NCHW: the program knows no other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


def upsample(feature: Tensor, image_size: Size) -> Tensor:
    return F.interpolate(feature, size=image_size, mode="bilinear", align_corners=False)


def motion_supervision(
    feature: Tensor, handle_points: Tensor, target_points: Tensor, active: Tensor, r1: int, image_size: Size
) -> tuple[Tensor, Tensor]:
    """(loss [], gradient [1, C, h, w]). As for the op, but that every point counts whose target is farther than 1."""
    height, width = image_size
    feature = feature.detach().requires_grad_()
    stored = upsample(feature, image_size)
    rows = torch.linspace(0, height, height, device=feature.device)[:, None]
    columns = torch.linspace(0, width, width, device=feature.device)[None, :]
    loss = torch.zeros((), device=feature.device)
    for (x, y), target, taking_part in zip(handle_points[0].tolist(), target_points[0], active[0].tolist()):
        d = target - torch.tensor([x, y], device=feature.device)
        length = d.norm().item()
        if not taking_part or length <= 1:
            continue
        d = d / (length + 1e-7)
        i, j = (((columns - x) ** 2 + (rows - y) ** 2).sqrt() < r1).nonzero(as_tuple=True)
        grid = torch.stack([(j + d[0]) / (width - 1) * 2 - 1, (i + d[1]) / (height - 1) * 2 - 1], dim=-1)
        shifted = F.grid_sample(stored, grid[None, None].to(stored.dtype), align_corners=True)[0, :, 0]
        loss = loss + F.l1_loss(stored[0, :, i, j].detach(), shifted)
    (gradient,) = torch.autograd.grad(loss, feature)
    return loss.detach(), gradient


@torch.no_grad()
def point_tracking(
    feature: Tensor, reference_feature: Tensor, handle_points: Tensor, active: Tensor, r2: int, image_size: Size
) -> Tensor:
    """handle_points [1, N, 2]."""
    height, width = image_size
    stored = upsample(feature, image_size)
    moved = handle_points.clone()
    for n, (px, py) in enumerate(handle_points[0].tolist()):
        if not active[0, n]:
            continue
        x, y = round(px), round(py)
        top, left = max(y - r2, 0), max(x - r2, 0)
        patch = stored[0, :, top : min(y + r2 + 1, height), left : min(x + r2 + 1, width)]
        distance = torch.norm(patch - reference_feature[0, n].reshape(-1, 1, 1), dim=0)
        row, column = divmod(int(distance.argmin().item()), distance.shape[1])
        moved[0, n, 0], moved[0, n, 1] = left + column, top + row
    return moved


def mask_loss(feature: Tensor, feature0: Tensor, movable_mask: Tensor, image_size: Size) -> tuple[Tensor, Tensor]:
    """(loss [], gradient [1, C, h, w])."""
    feature = feature.detach().requires_grad_()
    fixed = (1 - movable_mask[:, None]).to(feature.dtype)
    loss = F.l1_loss(upsample(feature, image_size) * fixed, upsample(feature0, image_size) * fixed)
    (gradient,) = torch.autograd.grad(loss, feature)
    return loss.detach(), gradient


@torch.no_grad()
def sample_feature(feature: Tensor, points: Tensor, image_size: Size) -> Tensor:
    """[1, N, C]."""
    stored = upsample(feature, image_size)
    return torch.stack([stored[0, :, round(y), round(x)] for x, y in points[0].tolist()])[None]
