"""The drag ops as PyTorch custom operators: schemas, fakes, autograd and the choice of a backend.

With ``synthesis_ops`` (and ``packed_conv``, for oneDNN's convolutions) the only file that touches ``torch.ops`` and
``kernels/``. Each loss op computes its gradient in the same
pass; its backward is one multiplication. ``draggan_fast.kernels.reference`` documents what the ops compute.

Backends: ``reference`` (plain PyTorch, any device and dtype), ``cpp`` (the compiled library, CPU), ``cuda`` (its CUDA
part) and ``triton`` (CUDA; on a CPU only under its interpreter, TRITON_INTERPRET=1). By default a CPU tensor is served
by cpp, a CUDA tensor by the order of ``kernels/configs.py``, and whatever is missing is passed over; float64 is always
served by the reference, the others compute in float32. ``forced_backend`` or the environment variable
``DRAGGAN_FAST_BACKEND`` (read at every call) force one: then what it cannot serve is an error.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import DragError
from .kernels import configs, reference

OPS = ("motion_supervision", "point_tracking", "mask_loss", "sample_feature")
BACKENDS = ("reference", "cpp", "cuda", "triton")
ENVIRONMENT = "DRAGGAN_FAST_BACKEND"
CPU_ORDER = ("cpp", "reference")
MAX_AXIS = 32767  # cells or pixels along an axis: the compiled kernels count in 32 bits (csrc/bilinear.h)
MAX_RADIUS = 1 << 24

_forced: ContextVar[str | None] = ContextVar("forced_backend", default=None)


class Backend(NamedTuple):
    """Which code serves an op, and why."""

    name: str
    reason: str


@functools.cache
def compiled_parts() -> dict[str, Any]:
    """What the compiled library holds: its build_info(), or {} (and under "error" why) where it cannot be imported."""
    try:
        library = importlib.import_module("draggan_fast._C")
    except ImportError as error:
        return {"error": str(error)}
    return library.build_info()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def what_is_missing(name: str, device_type: str) -> str | None:
    """Why a backend cannot serve such a device here, and how to get it; None if it can."""
    parts = compiled_parts()
    if name == "reference":
        return None
    if name == "cpp":
        if device_type != "cpu":
            return f"it serves CPU tensors, not {device_type}"
        if not parts.get("cpu"):
            return (
                f"the compiled library is absent ({parts.get('error')}); install with a C++ compiler, with torch "
                "present and with pip's --no-build-isolation"
            )
        return None
    if name == "cuda":
        if device_type != "cuda":
            return f"it serves CUDA tensors, not {device_type}"
        if not parts.get("cuda"):
            return (
                "the compiled library has no CUDA part; install where torch is a CUDA build and its CUDA toolkit is "
                "found, with pip's --no-build-isolation"
            )
        return None
    if not _has_triton():
        return "the package triton is not installed; torch's CUDA builds bring it along"
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "on a CPU it runs only under Triton's interpreter; set TRITON_INTERPRET=1 before Python starts"
    if device_type not in ("cpu", "cuda"):
        return f"it serves CUDA tensors, not {device_type}"
    return None


def _check_backend(name: str) -> None:
    if name not in BACKENDS:
        raise DragError(f"There is no backend {name!r}; the backends are {', '.join(BACKENDS)}.")


def wished_backend() -> str | None:
    """The forced backend, by context or environment; None = choose. Raises DragError if there is no such name."""
    name = _forced.get() or os.environ.get(ENVIRONMENT) or None
    if name is not None:
        _check_backend(name)
    return name


def _order(op: str, device_type: str) -> tuple[str, ...]:
    if device_type == "cpu":
        return CPU_ORDER
    return configs.CUDA_ORDER[op].backends if device_type == "cuda" else ("reference",)


def _chosen_backend(op: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend that serves this call. Raises DragError if a forced one cannot."""
    wished = wished_backend()
    if wished is None:
        if dtype == torch.float64:
            return "reference"
        return next(name for name in _order(op, device_type) if what_is_missing(name, device_type) is None)
    missing = what_is_missing(wished, device_type)
    if missing is not None:
        raise DragError(f"The backend {wished!r} was asked for but cannot serve {op}: {missing}.")
    if dtype == torch.float64 and wished != "reference":
        raise DragError(f"The backend {wished!r} computes in float32; float64 features need the backend 'reference'.")
    return wished


def _kernel(op: str, feature: Tensor) -> Callable[..., Any]:
    """The code that serves this call, with the arguments of ``reference.<op>``."""
    name = _chosen_backend(op, feature.device.type, feature.dtype)
    if name == "reference":
        return getattr(reference, op)
    if name == "triton":
        return getattr(importlib.import_module(f"draggan_fast.kernels.{op}"), op)
    return getattr(torch.ops.draggan_fast_native, op)


def _kernel_on_crops(feature: Tensor) -> Callable[..., Any]:
    """The same for motion_supervision on crops: in the compiled library an op of its own."""
    name = _chosen_backend("motion_supervision", feature.device.type, feature.dtype)
    if name in ("cpp", "cuda"):
        return torch.ops.draggan_fast_native.motion_supervision_on_crops
    return _kernel("motion_supervision", feature)


def backends(device_type: str = "cpu") -> dict[str, Backend]:
    """Op → the backend that serves float32 features on such a device here, and why.

    Raises DragError if DRAGGAN_FAST_BACKEND or ``forced_backend`` names one that cannot.
    """
    return {
        op: Backend(name := _chosen_backend(op, device_type, torch.float32), _reason(op, name, device_type))
        for op in OPS
    }


def _reason(op: str, name: str, device_type: str) -> str:
    if wished_backend() is not None:
        return f"forced by {'forced_backend' if _forced.get() else ENVIRONMENT}"
    passed_over = [f"{other}: {what_is_missing(other, device_type)}" for other in _order(op, device_type)]
    passed_over = passed_over[: _order(op, device_type).index(name)]
    if device_type == "cuda":
        return "; ".join([f"the order is {configs.CUDA_ORDER[op].measured}", *passed_over])
    if name == "cpp":
        return f"compiled, vector instructions {compiled_parts()['level']}; float64 goes to the reference"
    return "; ".join(["plain PyTorch", *passed_over])


def available_backends(op: str, device_type: str = "cpu") -> tuple[str, ...]:
    """The names of the backends that can serve an op on such a device here, the reference first.

    They serve float32, bfloat16 and float16 features; the reference also float64.
    """
    if op not in OPS:
        raise DragError(f"There is no op {op!r}; the ops are {', '.join(OPS)}.")
    return tuple(name for name in BACKENDS if what_is_missing(name, device_type) is None)


@contextlib.contextmanager
def forced_backend(name: str) -> Iterator[None]:
    """Every op is served by this backend inside the context (for tests and A/B measurements).

    It counts for the thread (or task) that enters it. Raises DragError if no device here has such a backend; a call
    inside that it cannot serve (another device, float64) raises DragError too.
    """
    _check_backend(name)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    reasons = {device: what_is_missing(name, device) for device in devices}
    if None not in reasons.values():
        because = "; ".join(f"{device}: {reason}" for device, reason in reasons.items())
        raise DragError(f"There is no backend {name!r} here ({because}).")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def _like(grad: Tensor, feature: Tensor) -> Tensor:
    """The gradient with the strides that the fake promises (those of ``torch.empty_like``)."""
    if grad.stride() == feature.stride():
        return grad
    promised = torch.empty_like(feature, device="meta").stride()
    return grad if grad.stride() == promised else torch.empty_like(feature).copy_(grad)


def _at_once(feature: Tensor) -> bool:
    """Whether a call can go to its kernel at once: nobody differentiates, compiles or fakes it.

    A custom operator costs 40 µs a call, and its first call makes torch import its compiler (seconds, 150 MB), which a
    drag never needs.
    """
    return (
        feature.device.type != "meta"
        and type(feature) is Tensor
        and not (feature.requires_grad and torch.is_grad_enabled())
        and not torch.compiler.is_compiling()
    )


def _run_motion_supervision(
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
    arguments = (feature, handle_points, target_points, active, r1, (height, width))
    if crop_origin is None or whole_size is None:
        loss, grad = _kernel("motion_supervision", feature)(*arguments)
    else:
        loss, grad = _kernel_on_crops(feature)(*arguments, crop_origin, (whole_size[0], whole_size[1]))
    return loss, _like(grad, feature)


_motion_supervision = torch.library.custom_op(
    "draggan_fast::motion_supervision", _run_motion_supervision, mutates_args=()
)


def _run_point_tracking(
    feature: Tensor,
    reference_feature: Tensor,
    handle_points: Tensor,
    active: Tensor,
    r2: int,
    image_size: Sequence[int],
) -> tuple[Tensor, Tensor]:
    height, width = image_size
    kernel = _kernel("point_tracking", feature)
    return kernel(feature, reference_feature, handle_points, active, r2, (height, width))


_point_tracking = torch.library.custom_op("draggan_fast::point_tracking", _run_point_tracking, mutates_args=())


def _run_mask_loss(
    feature: Tensor, feature0: Tensor, movable_mask: Tensor, image_size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    height, width = image_size
    loss, grad = _kernel("mask_loss", feature)(feature, feature0, movable_mask, (height, width))
    return loss, _like(grad, feature)


_mask_loss = torch.library.custom_op("draggan_fast::mask_loss", _run_mask_loss, mutates_args=())


def _run_sample_feature(feature: Tensor, points: Tensor, image_size: Sequence[int]) -> Tensor:
    height, width = image_size
    return _kernel("sample_feature", feature)(feature, points, (height, width))


_sample_feature = torch.library.custom_op("draggan_fast::sample_feature", _run_sample_feature, mutates_args=())


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
        min(feature.shape[1:]) >= 1 and max(feature.shape[2:]) <= MAX_AXIS,
        f"feature must have from 1 to {MAX_AXIS} cells along each axis, but its shape is {list(feature.shape)}.",
    )
    _check_size("image_size", image_size)


def _check_size(name: str, size: tuple[int, int]) -> None:
    whole = isinstance(size, Sequence) and all(isinstance(n, int) and not isinstance(n, bool) for n in size)
    _require(
        whole and len(size) == 2 and min(size) >= 1 and max(size) <= MAX_AXIS,
        f"{name} must be two whole numbers (H, W) from 1 to {MAX_AXIS}, not {size!r}.",
    )


def _check_device(name: str, tensor: Tensor, feature: Tensor) -> None:
    _require(tensor.device == feature.device, f"{name} is on {tensor.device}, the feature on {feature.device}.")


def _check_points(name: str, points: Tensor, feature: Tensor, count: int | None = None) -> None:
    batch = feature.shape[0]
    ok = points.ndim == 3 and points.shape[0] == batch and points.shape[2] == 2
    _require(
        ok and (count is None or points.shape[1] == count),
        f"{name} must have the shape [{batch}, {'N' if count is None else count}, 2], not {list(points.shape)}.",
    )
    _require(points.is_floating_point(), f"{name} must be a float tensor, not {points.dtype}.")
    _check_device(name, points, feature)


def _check_active(active: Tensor, points: Tensor) -> None:
    shape = list(points.shape[:2])
    _require(
        active.dtype == torch.bool and list(active.shape) == shape,
        f"active must be a bool tensor of the shape {shape}, not {active.dtype} {list(active.shape)}.",
    )
    _check_device("active", active, points)


def _check_radius(name: str, radius: int, least: int) -> None:
    _require(
        isinstance(radius, int) and not isinstance(radius, bool) and least <= radius <= MAX_RADIUS,
        f"{name} must be an integer from {least} to {MAX_RADIUS} (pixels), not {radius!r}.",
    )


def _check_crops(
    feature: Tensor, image_size: tuple[int, int], origin: Tensor | None, whole_size: tuple[int, int] | None
) -> None:
    if origin is None and whole_size is None:
        return
    if origin is None or whole_size is None:
        raise DragError("crop_origin and whole_size go together.")
    _check_size("whole_size", whole_size)
    _require(
        all(whole >= crop for whole, crop in zip(whole_size, image_size, strict=True)),
        f"whole_size must be at least image_size, {image_size}, not {whole_size}.",
    )
    expected = [feature.shape[0], 2]
    _require(
        origin.dtype == torch.int64 and list(origin.shape) == expected,
        f"crop_origin must be an int64 tensor of the shape {expected}, not {origin.dtype} {list(origin.shape)}.",
    )
    _require(origin.device == feature.device, f"crop_origin is on {origin.device}, the feature on {feature.device}.")
    if origin.device.type == "cpu":  # elsewhere looking at the values would wait for the device
        first, room = origin.numpy(), (whole_size[1] - image_size[1], whole_size[0] - image_size[0])
        _require(
            bool(((first >= 0) & (first <= room)).all()),
            f"crop_origin must leave every crop inside the whole image, from (0, 0) to {room}.",
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
    _check_crops(feature, image_size, crop_origin, whole_size)
    run = _run_motion_supervision if _at_once(feature) else _motion_supervision
    return run(feature, handle_points, target_points, active, r1, image_size, crop_origin, whole_size)


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
    _require(
        reference_feature.is_floating_point(),
        f"reference_feature must be a float tensor, not {reference_feature.dtype}.",
    )
    _check_device("reference_feature", reference_feature, feature)
    _check_active(active, handle_points)
    _check_radius("r2", r2, 0)
    run = _run_point_tracking if _at_once(feature) else _point_tracking
    return run(feature, reference_feature, handle_points, active, r2, image_size)


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
    _require(
        feature0.dtype == feature.dtype,
        f"feature0 must have the feature's dtype, {feature.dtype}, not {feature0.dtype}.",
    )
    expected = [feature.shape[0], *image_size]
    _require(
        list(movable_mask.shape) == expected,
        f"movable_mask must have the shape {expected}, not {list(movable_mask.shape)}.",
    )
    _check_device("feature0", feature0, feature)
    _check_device("movable_mask", movable_mask, feature)
    run = _run_mask_loss if _at_once(feature) else _mask_loss
    return run(feature, feature0, movable_mask, image_size)


def sample_feature(feature: Tensor, points: Tensor, image_size: tuple[int, int]) -> Tensor:
    """The upsampled feature at the points' pixels, [B, N, C]; see reference.sample_feature.

    Raises DragError if a shape, dtype or device does not fit.
    """
    _check_feature(feature, image_size)
    _check_points("points", points, feature)
    run = _run_sample_feature if _at_once(feature) else _sample_feature
    return run(feature, points, image_size)
