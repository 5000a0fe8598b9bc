"""What is measured: networks of the published width, and drags whose every step does all of its work."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from draggan_fast import DragConfig, DragError, Generator, GeneratorConfig, Model

from .engines import Drag, start_drag, start_latent

CONFIG_F = (512, 512, 512, 512, 512, 256, 128, 64, 32)  # channels of the published 1024² networks, 4×4 first
MAPPING_F = (512,) * 8
MAX_POINTS = 64
MASKS = ("none", "half")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # a row's ``precision``
CRAWL = 1e-6  # a step size with which no handle ever arrives, so that the last step costs what the first did

Points = list[tuple[int, int]]


def random_model(resolution: int, device: torch.device | str = "cpu") -> Model:
    """A frozen float32 network of config-f width with random weights: the right cost, not a picture.

    resolution: a power of two from 8 to 1024.  Raises DragError for others. The same weights at every call; the
    caller's random state is left alone.
    """
    if not 8 <= resolution <= 1024 or resolution & (resolution - 1):
        raise DragError(f"A resolution to measure must be a power of two from 8 to 1024, not {resolution}.")
    blocks = resolution.bit_length() - 2
    config = GeneratorConfig(
        resolution=resolution, z_dim=512, w_dim=512, channels=CONFIG_F[:blocks], mapping_widths=MAPPING_F
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(config).eval().freeze().to(device)
    name = f"random-{resolution}"
    return Model(name, name, generator, "", "random", {}, torch.device(device), "fp32")


def default_points(resolution: int, n: int) -> tuple[Points, Points]:
    """(handles, targets): n ≤ 64 handles on a square lattice, each with its target an eighth of the picture away.

    (x, y) in whole pixels, all inside the picture, no two handles on one pixel; the directions fan out, so that the
    shifted samples fall between pixels. Raises DragError if the picture has no room for n.
    """
    side = math.isqrt(n - 1) + 1 if n >= 1 else 0
    if not 1 <= n <= MAX_POINTS or side > resolution // 2:
        raise DragError(f"There can be 1 to {MAX_POINTS} points, as far as the picture has room for them, not {n}.")
    length = resolution / 8
    handles, targets = [], []
    for index in range(n):
        row, column = divmod(index, side)
        x = round(resolution * (0.2 + 0.6 * (column + 0.5) / side))
        y = round(resolution * (0.2 + 0.6 * (row + 0.5) / side))
        angle = 0.4 + 2 * math.pi * index / n
        handles.append((x, y))
        targets.append((round(x + length * math.cos(angle)), round(y + length * math.sin(angle))))
    return handles, targets


def half_mask(resolution: int) -> Tensor:
    """movable_mask [H, W] float32: the left half of the picture may change, the right half must stay."""
    mask = torch.zeros(resolution, resolution)
    mask[:, : resolution // 2] = 1
    return mask


def mask_named(name: str, resolution: int) -> Tensor | None:
    """The movable_mask of a row's ``mask``: "none" or "half"."""
    return half_mask(resolution) if name == "half" else None


def crawling_config(model: Model, **changes: Any) -> DragConfig:
    """The model's own drag settings with a step size that never arrives."""
    return model.drag_config(lr=CRAWL, **changes)


def crawling_drag(model: Model, engine: str, precision: str, points: int = 1, mask: str = "none") -> Drag:
    """What a row names: a drag by this engine of so many points, under this mask, that goes on for ever."""
    handles, targets = default_points(model.config.resolution, points)
    movable = mask_named(mask, model.config.resolution)
    return start_drag(engine, model, start_latent(model), handles, targets, crawling_config(model), movable, precision)


def step_gflop(config: GeneratorConfig, feature_block: int) -> float:
    """10^9 operations that a step's truncated synthesis and its backward need in the convolutions, counted whole.

    A multiply-add is two; the backward is that to the input only, as much again. For config-f up to block 5 it is
    2·2·30.6 G. A step that computes only around its handles needs fewer.
    """
    total = 0
    for block in range(feature_block + 1):
        size, c_out = 4 << block, config.channels[block]
        total += size * size * c_out * c_out
        if block:
            total += (size // 2) ** 2 * config.channels[block - 1] * c_out  # ×2: nine taps at each *input* pixel
    return 2 * 2 * 9 * total / 1e9
