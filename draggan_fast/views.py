"""What the drag ops read: a feature map of the whole picture, or crops of it around the handles, behind one face.

On crops every handle is a batch entry of its own with its points counted from its crop's corner; the ops compute the
same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops


@dataclass(frozen=True)
class FeatureView:
    """feature: [1, C, h, w], or [N, C, K, K] with origin [N, 2] int64: the pixel (x, y) of each crop's corner.

    image_size: (H, W) of the picture; crop_size: (H, W) that a crop spans, or None. Points are [1, N, 2] in pixels of
    the picture throughout.
    """

    feature: Tensor
    image_size: tuple[int, int]
    origin: Tensor | None = None
    crop_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.image_size if self.crop_size is None else self.crop_size

    def inward(self, points: Tensor) -> Tensor:
        return points if self.origin is None else (points[0] - self.origin.to(points.dtype))[:, None]

    def sample(self, points: Tensor) -> Tensor:
        """The feature at the points: [1, N, C] float32."""
        return ops.sample_feature(self.feature, self.inward(points), self.size).reshape(1, points.shape[1], -1)

    def taking_part(self, inward: Tensor, active: Tensor | None) -> Tensor:
        """active [1, N] bool, None = all points, as the ops take it beside ``inward`` points."""
        if active is None:
            return torch.ones(inward.shape[:2], dtype=torch.bool, device=inward.device)
        return active if self.origin is None else active.transpose(0, 1)

    def track(self, references: Tensor, handle_points: Tensor, r2: int, active: Tensor | None = None) -> Tensor:
        """Where the handles with these references [1, N, C] are now: [1, N, 2] float32; inactive ones stay."""
        if self.origin is not None:
            references = references.transpose(0, 1)
        inward = self.inward(handle_points)
        active = self.taking_part(inward, active)
        found, _ = ops.point_tracking(self.feature, references, inward, active, r2, self.size)
        return found if self.origin is None else found.transpose(0, 1) + self.origin.to(found.dtype)

    def supervise(
        self, handle_points: Tensor, target_points: Tensor, r1: int, active: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The motion-supervision loss of the active points, a float32 scalar, and its gradient, like feature."""
        inward = self.inward(handle_points)
        loss, grad = ops.motion_supervision(
            self.feature,
            inward,
            self.inward(target_points),
            self.taking_part(inward, active),
            r1,
            self.size,
            self.origin,
            None if self.origin is None else self.image_size,
        )
        return loss.sum(), grad


def beyond(handles: Tensor, targets: Tensor) -> Tensor:
    """Handles and targets [..., 2] → the targets, one pixel farther from the handles.

    Motion supervision only takes the direction from them, and leaves a handle within a pixel alone: with these it moves
    all but those that are exactly there.
    """
    return targets + torch.nn.functional.normalize(targets - handles, dim=-1)
