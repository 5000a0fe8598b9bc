"""What callers give, checked: points, class labels, whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from .errors import DragError

Points = Sequence[Sequence[float]] | np.ndarray | Tensor


def as_points(points: Points, name: str, image_size: tuple[int, int]) -> Tensor:
    """(x, y) pairs → [1, N, 2] float32, snapped to the nearest pixel; raises DragError unless all lie inside."""
    if isinstance(points, Tensor):
        points = points.detach().cpu().double().numpy()
    try:
        array = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise DragError(f"{name} must be (x, y) pairs of numbers.") from None
    if array.size == 0:
        raise DragError(f"{name}: give at least one point.")
    if array.ndim != 2 or array.shape[1] != 2:
        raise DragError(f"{name} must be (x, y) pairs, an array of the shape [N, 2], not {list(array.shape)}.")
    if not np.isfinite(array).all():
        raise DragError(f"{name} must be finite numbers; one is NaN or infinite.")
    snapped = np.floor(array + 0.5) + 0.0  # no negative zeros
    height, width = image_size
    for (x, y), (px, py) in zip(array.tolist(), snapped.tolist(), strict=True):
        if not (0 <= px < width and 0 <= py < height):
            raise DragError(
                f"{name}: ({x:g}, {y:g}) lies outside the picture (x from 0 to {width - 1}, y from 0 to {height - 1})."
            )
    return torch.from_numpy(snapped).float().unsqueeze(0)


def is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def class_label(label: int | None, c_dim: int, device: torch.device) -> Tensor | None:
    """A class index → one-hot [1, c_dim]; None for an unconditional model. Raises DragError if it does not fit."""
    if c_dim == 0:
        if label is not None:
            raise DragError("This model has no classes: give no label.")
        return None
    if not is_whole(label) or not 0 <= label < c_dim:
        raise DragError(f"This model has classes: give a label from 0 to {c_dim - 1}, not {label!r}.")
    return torch.nn.functional.one_hot(torch.tensor([label], device=device), c_dim).float()
