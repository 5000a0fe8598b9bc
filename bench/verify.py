"""No speed-up is printed for what computes something else: every op backend and engine is checked before it is timed.

An op backend is held to ``kernels/reference.py`` in float64, an engine to the reference engine on the embedded model
(and that one to the published program's step). The full proof is the test suite's; this is the part of it that can
run anywhere in a second, on the very device that is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from draggan_fast import Model, load, ops

from .engines import BASELINE, REFERENCE, Drag, start_drag, start_latent
from .workloads import DTYPES, half_mask

STEPS = 5
# How far an engine may stray from the reference engine in those steps: handles in pixels, losses relatively, latents
# in step sizes (lr) of Adam. In float32 they are the bounds that the recorded drags hold (tests/test_golden_drags.py).
# In low precision Adam turns a small gradient's sign over here and there, which costs step sizes; whether such drags
# arrive is for ``draggan-fast eval`` to say.
TOLERANCES = {"fp32": (0.0, 3e-4, 0.02), "bf16": (1.0, 0.15, 4.0), "fp16": (1.0, 0.05, 4.0)}
# (batch, channels, h, w, image height, width): odd, not square, images that are no multiple, one below the feature's
SHAPES = ((2, 5, 7, 9, 33, 41), (1, 33, 16, 16, 128, 128), (1, 3, 9, 8, 7, 8))
RESULTS = {
    "motion_supervision": ("loss", "grad_feature", "gradient by autograd"),
    "point_tracking": ("handles", "distances"),
    "mask_loss": ("loss", "grad_feature", "gradient by autograd"),
    "sample_feature": ("features",),
}
FACTOR = 2.0  # times the error of plain PyTorch in the same dtype (DESIGN §7)


@dataclass(frozen=True)
class Verdict:
    """reason: what was wrong, in one clause; None if nothing was."""

    reason: str | None = None

    @property
    def ok(self) -> bool:
        return self.reason is None


_verdicts: dict[tuple[str, ...], Verdict] = {}


def once(key: tuple[str, ...], check: Callable[[], str | None]) -> Verdict:
    """The verdict of a check that is made at most once a run. Whatever it raises is a reason too: a kernel that
    fails to launch must cost its own row, not the record."""
    if key not in _verdicts:
        try:
            _verdicts[key] = Verdict(check())
        except Exception as error:
            _verdicts[key] = Verdict(f"it failed with {type(error).__name__}: {error}")
    return _verdicts[key]


# --- ops ---------------------------------------------------------------------------------------------------------


def verify_op(op: str, backend: str, device: torch.device, precision: str = "fp32") -> Verdict:
    """Values and gradients of a backend, in this precision, against the reference in float64."""
    return once(("op", op, backend, str(device), precision), lambda: op_fault(op, backend, device, DTYPES[precision]))


def op_fault(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    for shape in SHAPES:
        arguments = op_arguments(op, shape, device, dtype)
        with ops.forced_backend(REFERENCE):
            exact = run_op(op, arguments, torch.float64)
            plain = run_op(op, arguments, dtype)
        with ops.forced_backend(backend):
            found = run_op(op, arguments, dtype)
        for name, e, p, f in zip(RESULTS[op], exact, plain, found, strict=True):
            if f.shape != e.shape or f.dtype != p.dtype:
                return f"{op} on a feature {list(shape[:4])}: its {name} is {f.dtype} {list(f.shape)}"
            rounding = 4 * torch.finfo(f.dtype).eps * largest(e)
            allowed = max(FACTOR * largest(p.double() - e.double()), rounding)
            error = largest(f.double() - e.double())
            if not error <= allowed:  # NaN too
                return f"{op} on a feature {list(shape[:4])}: its {name} is off by {error:.2g} (allowed {allowed:.2g})"
    return None


def largest(values: Tensor) -> float:
    """The largest |value|; NaN if there is one."""
    return float(values.double().abs().max()) if values.numel() else 0.0


def op_arguments(op: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    """What an op takes, in float64 but of values that ``dtype`` holds exactly: the backend answers for its arithmetic,
    not for the rounding of its input. Handles on borders and corners, overlapping, one of them inactive, one nearer
    than a pixel to its target."""
    batch, channels, h, w, height, width = shape
    generator = torch.Generator().manual_seed(1)
    feature, other = (torch.randn(batch, channels, h, w, generator=generator, dtype=torch.float64) for _ in range(2))
    corners = [
        (0, 0),
        (width - 1, height - 1),
        (width // 2, height // 2),
        (width // 2 + 1, height // 2),
        (1, height - 2),
    ]
    handles = torch.tensor(corners, dtype=torch.float32).expand(batch, -1, -1)
    offsets = torch.tensor([(3.3, 1.7), (-2, -5), (4, -3), (0.5, 0.5), (5, 0)])
    active = torch.tensor([True, True, True, True, False]).expand(batch, -1)
    references = torch.randn(batch, len(corners), channels, generator=generator, dtype=torch.float64)
    movable = (torch.rand(batch, height, width, generator=generator) > 0.5).float()
    rest: dict[str, tuple[Any, ...]] = {
        "motion_supervision": (handles, handles + offsets, active, 3, (height, width)),
        "point_tracking": (references, handles, active, 4, (height, width)),
        "mask_loss": (other, movable, (height, width)),
        "sample_feature": (handles, (height, width)),
    }
    return tuple(
        a.to(dtype).to(device, torch.float64)
        if isinstance(a, Tensor) and a.dtype == torch.float64
        else a.to(device)
        if isinstance(a, Tensor)
        else a
        for a in (feature, *rest[op])
    )


def run_op(op: str, arguments: tuple[Any, ...], dtype: torch.dtype) -> list[Tensor]:
    """The op's results, then, of the losses, the gradient that autograd gives."""
    feature, *rest = (a.to(dtype) if isinstance(a, Tensor) and a.dtype == torch.float64 else a for a in arguments)
    feature = feature.contiguous(memory_format=torch.channels_last)
    if op in ("point_tracking", "sample_feature"):
        found = getattr(ops, op)(feature, *rest)
        return [found] if isinstance(found, Tensor) else list(found)
    feature.requires_grad_()
    loss, gradient = getattr(ops, op)(feature, *rest)
    (derived,) = torch.autograd.grad(loss.sum(), feature)
    return [loss.detach(), gradient, derived]


# --- engines -----------------------------------------------------------------------------------------------------


def verify_engine(engine: str, precision: str, device: torch.device) -> Verdict:
    """Two short drags of the embedded model, one of them with a mask, against the reference engine.

    The reference engine itself stands or falls with the baseline: neither shares code with the other's algorithm.
    """
    if engine == REFERENCE and precision == "fp32":
        engine = BASELINE
    if engine != BASELINE and not verify_engine(BASELINE, "fp32", device).ok:
        return Verdict("the baseline and the reference disagree, so there is nothing to be faster than")
    return once(("engine", engine, precision, str(device)), lambda: engine_fault(engine, precision, device))


def engine_fault(engine: str, precision: str, device: torch.device) -> str | None:
    if precision not in TOLERANCES:
        return f"nothing says yet how far {precision} may stray"
    pixels, loss_bound, steps = TOLERANCES[precision]
    model = load(device=device)
    latent_bound = steps * model.drag_config().lr
    # The specification's convolutions are float32, not TF32; what is *timed* keeps PyTorch's defaults.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for mask in (None, half_mask(model.config.resolution)):
            drag = short_drag(engine, precision, model, mask)
            expected = short_drag(REFERENCE, "fp32", model, mask)
            for index in range(STEPS):
                drag.step()
                expected.step()
                if np.abs(drag.handle_points - expected.handle_points).max() > pixels:
                    return f"its handles are not those of the reference at step {index}"
                loss, right = (np.nan if d.loss is None else d.loss for d in (drag, expected))
                if not abs(loss - right) <= loss_bound * abs(right):  # NaN too
                    return f"its loss at step {index} is {loss:.6g}, that of the reference {right:.6g}"
                difference = largest(drag.w_plus.cpu() - expected.w_plus.cpu())
                if not difference <= latent_bound:
                    return f"its latent is off by {difference:.2g} from the reference's at step {index}"
    return None


def short_drag(engine: str, precision: str, model: Model, mask: Tensor | None) -> Drag:
    """Two handles; one has arrived already and takes no part."""
    size = model.config.resolution
    near, middle, far = size // 3, size // 2, size * 3 // 4
    handles, targets = [(middle, middle), (near, near)], [(far, middle), (near, near)]
    w0 = start_latent(model, seed=29)
    return start_drag(engine, model, w0, handles, targets, model.drag_config(), mask, precision)
