"""Predicts the peak memory of a drag without making it: its pieces run on the meta device, which stores nothing.

What is counted exactly are the tensors alive at the same time (``counting.LiveMemory``). What is not a tensor is
allowed for: the interpreter with torch (measured in this process), and what kernels, the libraries' caches and the
allocator take for themselves (constants below, each with the measurement it comes from).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from draggan_fast import DragConfig, Generator, GeneratorConfig, ops
from draggan_fast.engine import Engine, FastEngine, ReferenceEngine
from draggan_fast.frozen import FrozenSynthesis

from .counting import LiveMemory
from .engines import BASELINE, FAST, REFERENCE

MASKS = ("none", "half")
STEPS = 2  # the second one has the weights' gradients of the first


@dataclass(frozen=True)
class Mode:
    """One way to drag. picture: the full picture for every step as well (the published program always makes it)."""

    engine: str
    mask: str
    picture: bool

    @property
    def name(self) -> str:
        return "step + picture" if self.picture else "step"


@dataclass(frozen=True)
class Task:
    """What is dragged: the network, its settings, how many points, and by which mode."""

    network: GeneratorConfig
    config: DragConfig
    points: int
    mode: Mode

    @property
    def image_size(self) -> tuple[int, int]:
        return self.network.resolution, self.network.resolution


@dataclass(frozen=True)
class Prediction:
    """Bytes at the peak: of live tensors (weights included), and of everything."""

    mode: Mode
    tensors: int
    total: int


# What an engine does with memory, on meta tensors: (task, generator) → an iterator that makes one step at a time.
Steps = Callable[[Task, Generator], Iterator[None]]


def reference(task: Task, model: Generator) -> Iterator[None]:
    """The reference engine's steps."""
    return steps_of(task, ReferenceEngine(model, task.config.feature_block, "const"))


def fast(task: Task, model: Generator) -> Iterator[None]:
    """The fast engine's steps in float32. In bfloat16 (AMX) a process was measured at 0.94…1.23 times what was
    predicted before float32 weights were transformed for Winograd's convolution, which bfloat16 ones are not: half the
    maps and packed weights, but the library's scratch memory on top."""
    synthesis = FrozenSynthesis(model, task.config.feature_block, torch.float32)
    return steps_of(task, FastEngine(synthesis, "fp32", task.image_size))


def steps_of(task: Task, engine: Engine) -> Iterator[None]:
    """Steps in the order of ``DragSession``."""
    config, size = task.config, task.image_size
    r1, r2 = config.pixels(config.r1, size[0]), config.pixels(config.r2, size[0])
    w0 = meta(1, task.network.num_ws, task.network.w_dim)
    parameter = w0[:, : 1 if config.space == "w" else config.layers].clone()
    mean, variance = torch.zeros_like(parameter), torch.zeros_like(parameter)
    points = meta(1, task.points, 2)
    movable_mask = meta(1, *size) if task.mode.mask == "half" else None
    feature0: Tensor | None = None
    whole: Any = None

    def w_plus() -> Tensor:
        return torch.cat([parameter.expand(-1, config.layers, -1), w0[:, config.layers :]], dim=1)

    references: Tensor | None = None
    while True:
        if movable_mask is not None:
            features = engine.whole(w_plus()) if whole is None else whole
        else:
            features = engine.around(w_plus(), points, r2 + r1 + 3, whole)
        if references is None:
            references = features.view.sample(points)
        features.view.track(references, points, r2)
        _, grad_feature = features.view.supervise(points, points, r1)
        if movable_mask is not None:
            if feature0 is None:
                feature0 = engine.whole(w0).view.feature
            _, grad_held = ops.mask_loss(features.view.feature, feature0, movable_mask, size)
            grad_feature = grad_feature + config.lambda_mask * grad_held
        whole = None
        gradient = engine.gradient(features, grad_feature).sum(dim=1, keepdim=True)
        # subtle: the names below hold the last references, as the session's fields do.
        del features, grad_feature
        mean, variance = mean.lerp(gradient, 0.1), variance * 0.999 + gradient.square() * 0.001
        parameter = parameter - mean / variance.sqrt()
        if task.mode.picture:
            whole = engine.whole(w_plus())
            shown(engine.picture(whole, w_plus()))
        yield


def published(task: Task, model: Generator) -> Iterator[None]:
    """The published program's steps, in the order of ``published.PublishedDrag``, which copies the network."""
    config, (height, width) = task.config, task.image_size
    generator = Generator(task.network)
    w0 = meta(1, task.network.num_ws, task.network.w_dim)
    parameter = w0.clone().requires_grad_()
    optimiser = torch.optim.Adam([parameter], lr=config.lr, foreach=False)
    start_feature: Tensor | None = None

    def step() -> None:
        nonlocal start_feature
        ws = torch.cat([parameter[:, : config.layers], w0[:, config.layers :]], dim=1)
        activations = generator.features(ws, generator.config.num_blocks - 1)
        image = generator.render(activations, ws)
        feature = F.interpolate(activations.outputs[config.feature_block], size=(height, width), mode="bilinear")
        if start_feature is None:
            start_feature = feature.detach().clone()
        losses = [published_supervision(feature, config.pixels(config.r1, height)) for _ in range(task.points)]
        loss = torch.stack(losses).sum()
        if task.mode.mask == "half":
            fixed = 1 - meta(height, width)
            loss = loss + config.lambda_mask * F.l1_loss(feature * fixed, start_feature * fixed)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        shown(image.detach())

    while True:
        step()  # subtle: a function of its own, so that its tensors die where those of the program do
        yield


def published_supervision(feature: Tensor, radius: int) -> Tensor:
    """A handle's loss with a patch of the usual size; where it lies does not matter for memory."""
    height, width = feature.shape[-2:]
    near = (meta(height, 1).square() + meta(1, width).square()).sqrt() < radius
    pixels = max(math.ceil(math.pi * radius * radius), 1)
    i = torch.zeros(pixels, dtype=torch.int64, device=near.device)
    shifted = F.grid_sample(feature, meta(1, 1, pixels, 2), align_corners=True)[0, :, 0]
    return F.l1_loss(feature[0, :, i, i].detach(), shifted)


ENGINES: dict[str, Steps] = {BASELINE: published, REFERENCE: reference, FAST: fast}


def modes(engine: str | None = None, mask: str | None = None) -> list[Mode]:
    """Every mode there is, or those of one engine or mask."""
    return [
        Mode(name, masked, picture)
        for name in ENGINES
        for masked in MASKS
        for picture in ((True,) if name == BASELINE else (False, True))
        if engine in (None, name) and mask in (None, masked)
    ]


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def shown(image: Tensor) -> Tensor:
    """The picture as it leaves the device, uint8 [H, W, C]."""
    return (image[0].float() * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0)


# ---- what is not a tensor -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Allowance:
    """fixed: bytes that the first step costs once.  heap_limit: blocks up to that size come from the allocator's heap,
    which keeps ``retained`` times what a step allocates and frees there as free but resident memory.  granule: what
    sizes are rounded up to."""

    fixed: int
    heap_limit: int
    retained: float
    granule: int


OPTIMISER = 70_000_000  # bytes that importing torch._dynamo costs: 58 MB and 81 MB, measured on two machines
FAST_RETAINED = 0.2  # of the fast engine, whose few sizes of maps fit into each other's places: measured 0…0.3
TRITON = 93_000_000  # what it imports of triton where that is installed: 100 MB and 86 MB, on the same two
ALLOWANCES = {
    # fixed: pages of code that are touched for the first time, oneDNN's compiled kernels and caches, stacks of threads.
    # Measured as what lies above the tensors at the peak when every block is returned to the system at once
    # (MALLOC_MMAP_THRESHOLD_=65536): 108 MB for toy-animals, 95…116 MB for random networks of 256…1024 pixels, of which
    # OPTIMISER were torch's compiler. Only the published program imports that (through torch.optim).
    # retained: glibc gives blocks above 32 MiB (their header included) back, and keeps all others in one heap, which
    # fragments. Measured without that variable: 0.5…1.2, in the middle 0.88, over the modes of bench/results/*_plan_*.
    "cpu": Allowance(fixed=50_000_000, heap_limit=(32 << 20) - 4096, retained=0.88, granule=64),
    # torch.cuda.max_memory_allocated counts tensors alone, in blocks of 512 bytes.
    "cuda": Allowance(fixed=0, heap_limit=0, retained=0.0, granule=512),
}


def predict(
    network: GeneratorConfig, config: DragConfig, points: int, mode: Mode, device_type: str, baseline: int
) -> Prediction:
    """Peak bytes of a drag in this mode. baseline: what the process holds before a network is there (0 on CUDA).

    Loading is not in it: it needs twice the weights at most, which is less than any step.
    """
    allowance = ALLOWANCES[device_type]
    # The compiled passes of a CPU keep transformed weights (packed_conv), which a GPU does not.
    passes = contextlib.nullcontext() if device_type == "cpu" else ops.forced_backend("reference")
    with passes, LiveMemory(allowance.granule, allowance.heap_limit) as memory, torch.device("meta"):
        model = Generator(network).freeze()
        steps = ENGINES[mode.engine](Task(network, config, points, mode), model)
        for _ in range(STEPS):
            memory.watch_swing()
            next(steps)
        retained = int(
            memory.swing * (min(allowance.retained, FAST_RETAINED) if mode.engine == FAST else allowance.retained)
        )
        del steps
    compiler = OPTIMISER + (TRITON if find_spec("triton") else 0) if mode.engine == BASELINE else 0
    optimiser = compiler if device_type == "cpu" else 0
    return Prediction(mode, memory.peak, baseline + allowance.fixed + optimiser + memory.peak + retained)
