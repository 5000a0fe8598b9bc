"""One step of a drag over buffers that never move: what ``DragSession._compute_step`` computes, without the host.

What a CUDA graph can hold. Every tensor has one shape whatever the data; nothing waits for the device; what the host
decides between two steps (done? finite?) is a flag on the device, and a step after the end changes nothing. graphs.py
captures and replays it; on a CPU the same function runs at once, which is how the tests hold it to the session.

Points are padded to a bucket with inactive ones, so that one captured step serves any number of them. With crops every
point of the bucket is a crop, also the inactive ones, which is why small buckets exist.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from . import ops
from .config import DragConfig
from .engine import FastEngine, FrozenFeatures
from .places import Region
from .regions import first_block, region_around, region_size
from .views import beyond

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8  # torch's Adam defaults, which the published program uses
BUCKETS = (1, 4, 16, 64)  # beyond the last one: its multiples
HEADER = 4  # entries of a record before the points: ran, done, finite, loss


@dataclass(frozen=True)
class StepPlan:
    """What cannot change in a captured step. Radii in pixels of the picture.

    rows: how many rows of w_plus are optimised, or with ``one_row`` move as one.  bucket: how many points it has room
    for.  first_on_crops: the block from which on it computes around the handles only; None = everything.
    """

    image_size: tuple[int, int]
    num_ws: int
    w_dim: int
    rows: int
    one_row: bool
    r1: int
    r2: int
    bucket: int
    masked: bool
    regularised: bool
    first_on_crops: int | None

    @property
    def reach(self) -> int:
        return reach_of(self.r1, self.r2)


def reach_of(r1: int, r2: int) -> int:
    """How far from its handle a step looks: tracking moves it by r2; from there supervision reads its patch, one pixel
    on, and one for rounding."""
    return r2 + r1 + 3


def bucket_of(points: int) -> int:
    """The least bucket with room for so many points."""
    largest = BUCKETS[-1]
    return next((bucket for bucket in BUCKETS if points <= bucket), -(-points // largest) * largest)


def plan_for(engine: FastEngine, num_ws: int, w_dim: int, config: DragConfig, points: int, masked: bool) -> StepPlan:
    """The plan of a session's next step."""
    height = engine.size[0]
    r1, r2, bucket = config.pixels(config.r1, height), config.pixels(config.r2, height), bucket_of(points)
    return StepPlan(
        image_size=engine.size,
        num_ws=num_ws,
        w_dim=w_dim,
        rows=config.layers,
        one_row=config.space == "w",
        r1=r1,
        r2=r2,
        bucket=bucket,
        masked=masked,
        regularised=config.reg > 0,
        first_on_crops=None if masked else first_on_crops(engine, reach_of(r1, r2), bucket),
    )


def first_on_crops(engine: FastEngine, reach: int, bucket: int) -> int | None:
    """Which block a step begins its crops at, by sizes alone."""
    size = region_size(reach, engine.resolution, engine.size[0])
    if size is None:
        return None
    anywhere = Region(torch.zeros(bucket, 2, dtype=torch.int64), size)
    return first_block(engine.synthesis, anywhere, engine.level_cost)


@dataclass
class StepBuffers:
    """Everything a step reads and writes, float32 on the engine's device unless another type is named.

    Changed by a step: parameter, adam_mean, adam_variance [1, rows or 1, w_dim]; adam_steps [] float64; handle_points
    [1, bucket, 2]; references [1, bucket, C], NaN rows are still to be taken; done, failed [] bool: the drag has ended,
    and how; record [HEADER + 3·bucket]: what the host reads.
    Set from outside: w0 [1, num_ws, w_dim]; target_points [1, bucket, 2]; active [1, bucket] bool; movable_mask
    [1, H, W] and feature0 [1, C, h, w], like what the drag ops get, or None without a mask; lr [] float64;
    lambda_mask, reg, stop_distance (pixels) [].
    """

    parameter: Tensor
    adam_mean: Tensor
    adam_variance: Tensor
    adam_steps: Tensor
    handle_points: Tensor
    references: Tensor
    done: Tensor
    failed: Tensor
    record: Tensor
    w0: Tensor
    target_points: Tensor
    active: Tensor
    movable_mask: Tensor | None
    feature0: Tensor | None
    lr: Tensor
    lambda_mask: Tensor
    reg: Tensor
    stop_distance: Tensor

    @classmethod
    def allocate(cls, engine: FastEngine, plan: StepPlan) -> StepBuffers:
        """Zeros; ``feature0`` has the type in which the drag ops get features."""
        synthesis, device, bucket = engine.synthesis, engine.device, plan.bucket
        channels = synthesis.layers[-1].bias.shape[0]

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        rows = 1 if plan.one_row else plan.rows
        seen = torch.float32 if synthesis.precision == torch.float16 else synthesis.precision
        cells = (1, channels, engine.resolution, engine.resolution)
        return cls(
            parameter=zeros(1, rows, plan.w_dim),
            adam_mean=zeros(1, rows, plan.w_dim),
            adam_variance=zeros(1, rows, plan.w_dim),
            adam_steps=zeros(dtype=torch.float64),
            handle_points=zeros(1, bucket, 2),
            references=zeros(1, bucket, channels),
            done=zeros(dtype=torch.bool),
            failed=zeros(dtype=torch.bool),
            record=zeros(HEADER + 3 * bucket),
            w0=zeros(1, plan.num_ws, plan.w_dim),
            target_points=zeros(1, bucket, 2),
            active=zeros(1, bucket, dtype=torch.bool),
            movable_mask=zeros(1, *plan.image_size) if plan.masked else None,
            feature0=zeros(*cells, dtype=seen).contiguous(memory_format=torch.channels_last) if plan.masked else None,
            lr=zeros(dtype=torch.float64),
            lambda_mask=zeros(),
            reg=zeros(),
            stop_distance=zeros(),
        )

    def nbytes(self) -> int:
        """What they take in memory."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@torch.no_grad()
def static_step(engine: FastEngine, plan: StepPlan, b: StepBuffers) -> None:
    """One step, top to bottom; its result is in the buffers. A step after the drag's end changes nothing."""
    running = ~(b.done | b.failed)
    w_plus = w_plus_of(plan, b.parameter, b.w0)
    features = features_of(engine, plan, w_plus, b.handle_points)
    view = features.view

    references = torch.where(b.references.isnan(), view.sample(b.handle_points), b.references)
    handles = view.track(references, b.handle_points, plan.r2, b.active)
    distances = (b.target_points - handles).norm(dim=-1)
    arrived = ((distances <= b.stop_distance) | ~b.active).all()
    found = (view.sample(handles).isfinite().all(dim=-1) | ~b.active).all()  # in features that are numbers

    aims = torch.where(b.stop_distance < 1, beyond(handles, b.target_points), b.target_points)
    loss, grad_feature = view.supervise(handles, aims, plan.r1, b.active)
    if b.movable_mask is not None and b.feature0 is not None:
        held, grad_held = ops.mask_loss(view.feature, b.feature0, b.movable_mask, plan.image_size)
        loss = loss + b.lambda_mask * held.sum()
        # In float32: in a product with a bfloat16 tensor λ itself would be rounded.
        grad_feature = grad_feature.float() + b.lambda_mask * grad_held.float()
    gradient = engine.gradient(features, grad_feature)[:, : plan.rows]
    gradient = torch.nn.functional.pad(gradient, (0, 0, 0, plan.rows - gradient.shape[1]))
    if plan.regularised:
        change = w_plus - b.w0
        loss = loss + b.reg * change.abs().mean()
        gradient = gradient + b.reg / change.numel() * change.sign()[:, : plan.rows]
    if plan.one_row:
        gradient = gradient.sum(dim=1, keepdim=True)

    steps = b.adam_steps + 1
    mean = b.adam_mean.lerp(gradient, 1 - BETA1)
    variance = b.adam_variance * BETA2 + gradient.square() * (1 - BETA2)
    scale = (variance.sqrt() / (1 - BETA2**steps).sqrt()).add_(ADAM_EPS)
    parameter = b.parameter - (b.lr / (1 - BETA1**steps)) * mean / scale

    finite = loss.isfinite() & parameter.isfinite().all() & (found | ~arrived)
    arrived &= found
    tracked = running & (arrived | finite)
    moved = running & ~arrived & finite
    for condition, buffer, value in (
        (tracked, b.handle_points, handles),
        (tracked, b.references, references),
        (moved, b.parameter, parameter),
        (moved, b.adam_mean, mean),
        (moved, b.adam_variance, variance),
        (moved, b.adam_steps, steps),
    ):
        torch.where(condition, value, buffer, out=buffer)
    b.failed |= running & ~tracked
    b.done |= running & arrived
    header = torch.stack([running.float(), arrived.float(), finite.float(), loss])
    torch.cat([header, handles.flatten(), distances.flatten()], out=b.record)


def w_plus_of(plan: StepPlan, parameter: Tensor, w0: Tensor) -> Tensor:
    """The optimised rows, then the start latent's: [1, num_ws, w_dim]."""
    if plan.one_row:  # equal rows stay equal to the bit, others keep their differences
        parameter = parameter + (w0[:, : plan.rows] - w0[:, :1])
    return torch.cat([parameter, w0[:, plan.rows :]], dim=1)


def features_of(engine: FastEngine, plan: StepPlan, w_plus: Tensor, handle_points: Tensor) -> FrozenFeatures:
    """Features where a step of this plan looks."""
    if plan.first_on_crops is None:
        return engine.whole(w_plus)
    region = region_around(handle_points[0], plan.reach, engine.resolution, engine.size[0])
    assert region is not None  # a plan without a region has no block on crops
    return engine.on_crops(w_plus, region, plan.first_on_crops, None)
