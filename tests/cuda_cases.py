"""Inputs for the CUDA kernels and how good a result must be; for the emulator and for a real GPU."""

from __future__ import annotations

import torch
from draggan_fast.kernels import reference

CASES = {  # feature h×w, image H×W, C, radius
    "usual": ((16, 16), (64, 64), 35, 5),
    "not square, not a multiple": ((10, 7), (50, 70), 1, 12),
    "narrower than the feature": ((8, 12), (64, 10), 4, 6),
    "smaller than the feature": ((32, 32), (20, 24), 40, 4),
    "as large as the feature": ((9, 9), (9, 9), 63, 2),
    "one cell": ((1, 1), (9, 9), 3, 3),
    "one pixel": ((3, 5), (1, 1), 2, 1),
    "far wider cells than pixels, rows longer than a block": ((70, 3), (5, 150), 8, 40),
    "more quads, and more pixels, than a block holds": ((1, 40), (300, 600), 2, 3),
    "quads wider than a warp holds": ((2, 2), (9, 200), 33, 3),
}
USUAL = CASES["usual"]
LAYOUTS = ("channels_last", "contiguous", "sliced")


def laid_out(tensor, layout):
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = torch.full((*tensor.shape[:3], 2 * tensor.shape[3]), float("nan"), dtype=tensor.dtype)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    return tensor.contiguous()


class Case:
    """Random inputs of a shape of CASES; the points lie anywhere, on the borders and in the corners among them.

    ``motion``, ``mask``, ``tracking`` and ``sampling`` call an op with them: of the reference, the emulator or the
    package. Where ``exact``, the features are float64.
    """

    TENSORS = ("feature", "feature0", "handles", "targets", "active", "movable", "wanted", "around")

    def __init__(self, shape, layout="channels_last", dtype=torch.float32, batch=2, points=6):
        (h, w), self.size, channels, self.radius = shape
        generator = torch.Generator().manual_seed(channels)
        self.feature = laid_out(torch.randn(batch, channels, h, w, generator=generator).to(dtype), layout)
        change = torch.randn(batch, channels, h, w, generator=generator)
        change[:, :, : h // 2] = change[:, :, : h // 2].abs() + 0.1  # quads that share a sign, and quads that do not
        change[:, :, :, : w // 4] = 0
        self.feature0 = laid_out((self.feature.float() - change).to(dtype), layout)

        def places():
            height, width = self.size
            xs = torch.randint(0, width, (batch, points), generator=generator)
            ys = torch.randint(0, height, (batch, points), generator=generator)
            corners = torch.tensor([[0, 0], [width - 1, height - 1], [0, height // 2]])[:points]
            xy = torch.stack([xs, ys], dim=-1)
            xy[:, : len(corners)] = corners
            return xy.float()

        self.handles = places()
        self.targets = places().flip(1) + 0.25
        self.active = torch.rand(batch, points, generator=generator) > 0.2
        self.movable = (torch.rand(batch, *self.size, generator=generator) > 0.5).float()
        self.movable[:, :, self.size[1] // 2 :] = 1
        self.wanted = reference.sample_feature(self.feature, self.targets.floor(), self.size)
        self.around = self.handles + torch.tensor([-0.5, 1.5])  # halves round to even; some lie outside

    def to(self, device):
        for name in self.TENSORS:
            tensor = getattr(self, name)
            moved = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            setattr(self, name, moved.copy_(tensor))
        return self

    def _features(self, exact):
        return (self.feature.double(), self.feature0.double()) if exact else (self.feature, self.feature0)

    def motion(self, ops, exact=False):
        feature, _ = self._features(exact)
        return ops.motion_supervision(feature, self.handles, self.targets, self.active, self.radius, self.size)

    def mask(self, ops, exact=False):
        return ops.mask_loss(*self._features(exact), self.movable, self.size)

    def tracking(self, ops, exact=False):
        feature, _ = self._features(exact)
        return ops.point_tracking(feature, self.wanted, self.handles, self.active, self.radius, self.size)

    def sampling(self, ops, exact=False):
        feature, _ = self._features(exact)
        return ops.sample_feature(feature, self.around, self.size)


def error(found, exact):
    scale = float(exact.double().norm())
    return float((found.double() - exact.double()).norm()) / (scale if scale > 0 else 1)


def assert_as_good_as_torch(found, plain, exact, dtype=torch.float32):
    """The error against float64 is at most twice that of plain PyTorch in the same dtype.

    A loss is one number or two, which PyTorch may hit exactly by luck: two units of rounding are always allowed.
    """
    assert not found.isnan().any()
    assert error(found, exact) <= 2 * max(error(plain, exact), torch.finfo(dtype).eps)


def assert_matches_reference(case, ops, dtype=torch.float32):
    """Every op of ``ops`` on the case against the reference in float64."""
    for op in (case.motion, case.mask):
        (loss, grad), (plain_loss, plain_grad), (exact_loss, exact_grad) = op(ops), op(reference), op(reference, True)
        assert grad.dtype == dtype
        assert_as_good_as_torch(loss, plain_loss, exact_loss)
        assert_as_good_as_torch(grad, plain_grad, exact_grad, dtype)
    (moved, distance), (_, plain), (exact_moved, exact) = (
        case.tracking(ops), case.tracking(reference), case.tracking(reference, True),
    )  # fmt: skip
    assert torch.equal(moved, exact_moved)
    assert_as_good_as_torch(distance, plain, exact)
    assert_as_good_as_torch(case.sampling(ops), case.sampling(reference), case.sampling(reference, True))
