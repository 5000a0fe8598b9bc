"""The drag ops as PyTorch custom operators: schemas, fakes, autograd and the choice of a backend.

This is the only file that touches ``torch.ops`` and ``kernels/``. Each loss op computes its gradient in the same
pass; its backward is one multiplication. ``draggan_fast.kernels.reference`` documents what the ops compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import DragError
from .kernels import reference

OPS = ("motion_supervision", "point_tracking", "mask_loss", "sample_feature")


class Backend(NamedTuple):
    """Which code serves an op, and why."""

    name: str
    reason: str


def backends() -> dict[str, Backend]:
    """Op → backend. So far every op is served by the reference kernels."""
    return {op: Backend("reference", "plain PyTorch; no compiled kernel exists yet") for op in OPS}


def available_backends(op: str, device_type: str = "cpu") -> tuple[str, ...]:
    """The names of the backends that can serve an op on such a device here, the reference first."""
    if op not in OPS:
        raise DragError(f"There is no op {op!r}; the ops are {', '.join(OPS)}.")
    return ("reference",)


@contextlib.contextmanager
def forced_backend(name: str) -> Iterator[None]:
    """Every op is served by this backend inside the context (for tests and A/B measurements).

    Raises DragError if some op has no such backend here.
    """
    if name != "reference":
        raise DragError(f"There is no backend {name!r} here; there is reference.")
    yield


@torch.library.custom_op("draggan_fast::motion_supervision", mutates_args=())
def _motion_supervision(
    feature: Tensor,
    handle_points: Tensor,
    target_points: Tensor,
    active: Tensor,
    r1: int,
    image_size: Sequence[int],
    crop_origin: Tensor | None = None,
    whole_size: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    height, width = image_size
    whole = None if whole_size is None else (whole_size[0], whole_size[1])
    loss, grad = reference.motion_supervision(
        feature, handle_points, target_points, active, r1, (height, width), crop_origin, whole
    )
    return loss, torch.empty_like(feature).copy_(grad)


@torch.library.custom_op("draggan_fast::point_tracking", mutates_args=())
def _point_tracking(
    feature: Tensor,
    reference_feature: Tensor,
    handle_points: Tensor,
    active: Tensor,
    r2: int,
    image_size: Sequence[int],
) -> tuple[Tensor, Tensor]:
    height, width = image_size
    return reference.point_tracking(feature, reference_feature, handle_points, active, r2, (height, width))


@torch.library.custom_op("draggan_fast::mask_loss", mutates_args=())
def _mask_loss(
    feature: Tensor, feature0: Tensor, movable_mask: Tensor, image_size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    height, width = image_size
    loss, grad = reference.mask_loss(feature, feature0, movable_mask, (height, width))
    return loss, torch.empty_like(feature).copy_(grad)


@torch.library.custom_op("draggan_fast::sample_feature", mutates_args=())
def _sample_feature(feature: Tensor, points: Tensor, image_size: Sequence[int]) -> Tensor:
    height, width = image_size
    return reference.sample_feature(feature, points, (height, width))


@_motion_supervision.register_fake
def _(feature, handle_points, target_points, active, r1, image_size, crop_origin=None, whole_size=None):  # type: ignore[no-untyped-def]
    return feature.new_empty(feature.shape[0], dtype=torch.float32), torch.empty_like(feature)


@_point_tracking.register_fake
def _(feature, reference_feature, handle_points, active, r2, image_size):  # type: ignore[no-untyped-def]
    return handle_points.new_empty(handle_points.shape, dtype=torch.float32), handle_points.new_empty(
        handle_points.shape[:2], dtype=torch.float32
    )


@_mask_loss.register_fake
def _(feature, feature0, movable_mask, image_size):  # type: ignore[no-untyped-def]
    return feature.new_empty(feature.shape[0], dtype=torch.float32), torch.empty_like(feature)


@_sample_feature.register_fake
def _(feature, points, image_size):  # type: ignore[no-untyped-def]
    shape = (*points.shape[:2], feature.shape[1])
    return feature.new_empty(shape, dtype=reference.compute_dtype(feature))


def _save_gradient(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(output[1])
    ctx.inputs = len(inputs)
    ctx.mark_non_differentiable(output[1])


def _scale_gradient(ctx, grad_loss, _grad_of_grad):  # type: ignore[no-untyped-def]
    (grad_feature,) = ctx.saved_tensors
    scaled = grad_feature * grad_loss.to(grad_feature.dtype)[:, None, None, None]
    return (scaled, *[None] * (ctx.inputs - 1))


torch.library.register_autograd("draggan_fast::motion_supervision", _scale_gradient, setup_context=_save_gradient)
torch.library.register_autograd("draggan_fast::mask_loss", _scale_gradient, setup_context=_save_gradient)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DragError(message)


def _check_feature(feature: Tensor, image_size: tuple[int, int]) -> None:
    _require(feature.ndim == 4, f"feature must have the shape [B, C, h, w], not {list(feature.shape)}.")
    _require(feature.is_floating_point(), f"feature must be a float tensor, not {feature.dtype}.")
    _require(
        len(image_size) == 2 and min(image_size) >= 1,
        f"image_size must be two positive numbers (H, W), not {image_size}.",
    )


def _check_points(name: str, points: Tensor, like: Tensor, count: int | None = None) -> None:
    batch = like.shape[0]
    ok = points.ndim == 3 and points.shape[0] == batch and points.shape[2] == 2
    _require(
        ok and (count is None or points.shape[1] == count),
        f"{name} must have the shape [{batch}, {'N' if count is None else count}, 2], not {list(points.shape)}.",
    )
    _require(points.device == like.device, f"{name} is on {points.device}, the feature on {like.device}.")


def _check_active(active: Tensor, points: Tensor) -> None:
    shape = list(points.shape[:2])
    _require(
        active.dtype == torch.bool and list(active.shape) == shape,
        f"active must be a bool tensor of the shape {shape}, not {active.dtype} {list(active.shape)}.",
    )
    _require(active.device == points.device, f"active is on {active.device}, the points on {points.device}.")


def _check_radius(name: str, radius: int, least: int) -> None:
    _require(
        isinstance(radius, int) and radius >= least, f"{name} must be an integer ≥ {least} (pixels), not {radius!r}."
    )


def motion_supervision(
    feature: Tensor,
    handle_points: Tensor,
    target_points: Tensor,
    active: Tensor,
    r1: int,
    image_size: tuple[int, int],
    crop_origin: Tensor | None = None,
    whole_size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Motion-supervision loss [B] (differentiable) and its gradient [B, C, h, w]; see reference.motion_supervision.

    Raises DragError if a shape, dtype, device or the radius does not fit.
    """
    _check_feature(feature, image_size)
    _check_points("handle_points", handle_points, feature)
    _check_points("target_points", target_points, feature, handle_points.shape[1])
    _check_active(active, handle_points)
    _check_radius("r1", r1, 1)
    _require((crop_origin is None) == (whole_size is None), "crop_origin and whole_size go together.")
    return _motion_supervision(feature, handle_points, target_points, active, r1, image_size, crop_origin, whole_size)


def point_tracking(
    feature: Tensor,
    reference_feature: Tensor,
    handle_points: Tensor,
    active: Tensor,
    r2: int,
    image_size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """New handle_points [B, N, 2] and their feature distances [B, N]; see reference.point_tracking.

    Raises DragError if a shape, dtype, device or the radius does not fit.
    """
    _check_feature(feature, image_size)
    _check_points("handle_points", handle_points, feature)
    expected = [*handle_points.shape[:2], feature.shape[1]]
    _require(
        list(reference_feature.shape) == expected,
        f"reference_feature must have the shape {expected}, not {list(reference_feature.shape)}.",
    )
    _check_active(active, handle_points)
    _check_radius("r2", r2, 0)
    return _point_tracking(feature, reference_feature, handle_points, active, r2, image_size)


def mask_loss(
    feature: Tensor, feature0: Tensor, movable_mask: Tensor, image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Mask loss [B] (differentiable) and its gradient [B, C, h, w]; see reference.mask_loss.

    Raises DragError if a shape, dtype or device does not fit.
    """
    _check_feature(feature, image_size)
    _require(
        feature0.shape == feature.shape,
        f"feature0 must have the feature's shape {list(feature.shape)}, not {list(feature0.shape)}.",
    )
    expected = [feature.shape[0], *image_size]
    _require(
        list(movable_mask.shape) == expected,
        f"movable_mask must have the shape {expected}, not {list(movable_mask.shape)}.",
    )
    _require(
        feature0.device == movable_mask.device == feature.device,
        "feature, feature0 and movable_mask must be on the same device.",
    )
    return _mask_loss(feature, feature0, movable_mask, image_size)


def sample_feature(feature: Tensor, points: Tensor, image_size: tuple[int, int]) -> Tensor:
    """The upsampled feature at the points' pixels, [B, N, C]; see reference.sample_feature.

    Raises DragError if a shape, dtype or device does not fit.
    """
    _check_feature(feature, image_size)
    _check_points("points", points, feature)
    return _sample_feature(feature, points, image_size)
