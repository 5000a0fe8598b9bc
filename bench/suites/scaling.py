"""Cost curves: how a step grows with points, batch, threads and resolution, each with its fitted exponent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from draggan_fast import Model, ops

from .. import workloads
from ..against import compared_row, timed_row
from ..engines import ENGINES, start_latent
from ..options import RANDOM, Options, model_named
from ..rows import Row
from ..timing import Variant, alternate_within
from ..verify import verify_engine

POINTS, BATCHES = (1, 4, 16, 64), (1, 2, 4, 8)
QUICK_POINTS, QUICK_BATCHES = (1, 16), (1, 4)
FEW_POINTS, FEW_BATCHES = (1, 8, 64), (1, 8)  # when all suites share a quarter of an hour


def rows(options: Options) -> Iterator[Row]:
    """The curves ``points``, ``batch``, ``threads`` (on the smallest network asked for) and ``resolution``.

    Every row of a curve carries its ``exponent``: time ~ size^exponent, fitted over the whole curve; where the curve
    bends, the p50s say so. ``batch`` is of plain PyTorch without a session: one truncated synthesis of B latents, the
    ops and autograd.
    """
    small = smallest(options)
    model = model_named(small, options.device)
    options.say(f"scaling: points on {small}")
    sizes = fitting(model, QUICK_POINTS if options.quick else POINTS if options.every_case else FEW_POINTS)
    yield from curve(options, "points", sizes, partial(steps_of, options, model), lambda n: {"points": n}, model)
    options.say(f"scaling: batch on {small}")
    batches = QUICK_BATCHES if options.quick else BATCHES if options.every_case else FEW_BATCHES
    yield from curve(options, "batch", batches, partial(batched, model), lambda b: {"batch": b}, model)
    if options.device.type == "cpu" and options.threads > 1:
        yield from threads_curve(options, model)
    # All suites together have these cases in ``step`` already.
    networks = [name for name in options.models if name.startswith(RANDOM)] if options.every_case else []
    if len(networks) > 1 and not options.quick:
        yield from resolution_curve(options, networks)


def smallest(options: Options) -> str:
    """The random network of the least resolution; the named model if there is none, or little time."""
    networks = [] if options.quick else [name for name in options.models if name.startswith(RANDOM)]
    return min(networks, key=lambda name: int(name.removeprefix(RANDOM)), default=options.models[-1])


def fitting(model: Model, points: Sequence[int]) -> tuple[int, ...]:
    """Those numbers of points that the picture has room for."""
    return tuple(n for n in points if n <= (model.config.resolution // 2) ** 2)


Contender = tuple[str, str]  # engine, precision


def steps_of(options: Options, model: Model, points: int) -> dict[Contender, Variant]:
    """The step of each contender, with that many points."""
    return {who: workloads.crawling_drag(model, *who, points).step for who in options.contenders()}


def curve(
    options: Options,
    name: str,
    sizes: Sequence[int],
    variants: Callable[[int], dict[Contender, Variant]],
    identity: Callable[[int], dict[str, Any]],
    model: Model | None = None,
) -> Iterator[Row]:
    """Measures the variants at each size, in turns among each other, and fits each variant's curve."""
    times: dict[Contender, list[list[float]]] = {}
    for size in sizes:
        runs = variants(size)
        for who, taken in zip(runs, alternate_within(list(runs.values()), options.seconds / 2, options.device)):
            times.setdefault(who, []).append(taken)
    first = next(iter(times.values()))
    for (engine, precision), own in times.items():
        exponent = fitted_exponent(sizes, [float(np.median(taken)) for taken in own])
        for size, taken, baseline in zip(sizes, own, first):
            shared = {
                "engine": engine,
                "model": model.name if model else None,
                "resolution": model.config.resolution if model else None,
                "points": 1,
                "mask": "none",
                "precision": precision,
                "threads": options.threads,
                "exponent": exponent,
            } | identity(size)
            if engine in ENGINES:
                verdict = verify_engine(engine, precision, options.device)
                yield compared_row("scaling", name, taken, baseline, verdict, **shared)
            else:
                yield timed_row("scaling", name, taken, **shared)


def fitted_exponent(sizes: Sequence[int], milliseconds: Sequence[float]) -> float | None:
    """The slope of log time over log size by least squares; None of a single size."""
    if len(set(sizes)) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(milliseconds), 1)[0])


def batched(model: Model, batch: int) -> dict[Contender, Variant]:
    """A step of ``batch`` pictures at once, one point each: features, tracking, supervision, backward to the latents.

    No session drags several pictures yet, and the published program cannot: these rows have no engine to be beside.
    """
    config, size = workloads.crawling_config(model), model.image_size
    latents = torch.stack([start_latent(model, seed) for seed in range(batch)]).requires_grad_()
    points = workloads.default_points(model.config.resolution, 1)
    handles, targets = (torch.tensor([p] * batch, dtype=torch.float32, device=model.device) for p in points)
    active = torch.ones(batch, 1, dtype=torch.bool, device=model.device)
    r1, r2 = config.pixels(config.r1, size[0]), config.pixels(config.r2, size[0])
    with torch.no_grad():
        references = ops.sample_feature(model.generator.features(latents, config.feature_block).x, handles, size)

    def step() -> torch.Tensor:
        feature = model.generator.features(latents, config.feature_block).x
        moved, _ = ops.point_tracking(feature.detach(), references, handles, active, r2, size)
        loss, _ = ops.motion_supervision(feature, moved, targets, active, r1, size)
        (gradient,) = torch.autograd.grad(loss.sum(), latents)
        return gradient

    return {("batched", "fp32"): step}


def threads_curve(options: Options, model: Model) -> Iterator[Row]:
    """1, 2, 4 … up to the threads of this run."""
    counts = sorted({*(2**k for k in range(options.threads.bit_length())), options.threads})
    options.say(f"scaling: {', '.join(map(str, counts))} threads on {model.name}")

    def with_threads(count: int) -> dict[Contender, Variant]:
        def limited(run: Variant) -> Variant:
            def step() -> None:
                torch.set_num_threads(count)
                run()

            return step

        return {who: limited(run) for who, run in steps_of(options, model, 1).items()}

    try:
        yield from curve(options, "threads", counts, with_threads, lambda count: {"threads": count}, model)
    finally:
        torch.set_num_threads(options.threads)


def resolution_curve(options: Options, networks: Sequence[str]) -> Iterator[Row]:
    """Random networks only: a named model of another width lies on no curve with them."""
    options.say(f"scaling: resolution, {', '.join(networks)}")
    sizes = [int(name.removeprefix(RANDOM)) for name in networks]

    def at(resolution: int) -> dict[Contender, Variant]:
        return steps_of(options, model_named(f"{RANDOM}{resolution}", options.device), 1)

    yield from curve(options, "resolution", sizes, at, lambda r: {"resolution": r, "model": f"{RANDOM}{r}"})
