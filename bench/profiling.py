"""Measures where the time of a drag step goes: the numbers behind ``draggan-fast profile``."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from draggan_fast import DragError, DragSession, Model
from draggan_fast.engine import FastEngine
from draggan_fast.generator import ResidualSkip, StyledConv, ToRGB

from . import counting, parts
from .engines import FAST, REFERENCE
from .rows import Row, row
from .suites.floor import Ceilings
from .timing import alternate, summary
from .workloads import crawling_config, default_points, mask_named

WARM_UP = 2
DISSECTED_ENGINES = (REFERENCE, FAST)  # those of ``engines.ENGINES`` whose step ``parts`` knows how to cut
WEBP = {"format": "WEBP", "quality": 90, "method": 0}  # what a front-end can afford for every frame
PER_STEP, PER_FRAME, ONCE = "step", "frame", "once"  # how often a part runs


@dataclass(frozen=True)
class Part:
    """One line of the table. ms: the median; p20_ms, p80_ms beside it; often: PER_STEP, PER_FRAME or ONCE.

    gflop: arithmetic done (matrix and pointwise).  gbytes: traffic that no code can avoid: inputs read once, outputs
    written once, weights read once.  share: the least time the machine's ceilings allow / ms, None where nothing is
    counted.
    """

    name: str
    often: str
    ms: float
    p20_ms: float
    p80_ms: float
    gflop: float
    gbytes: float
    share: float | None


@dataclass(frozen=True)
class Profile:
    """parts: those of the step in their order, then mapping, render and encode.  plain_ms: the median of steps made
    in turn with the dissected ones, without any hook."""

    model: str
    resolution: int
    points: int
    mask: str
    engine: str
    precision: str
    device: str
    threads: int
    steps: int
    plain_ms: float
    parts: tuple[Part, ...]
    ceilings: Ceilings

    def of(self, often: str) -> list[Part]:
        return [part for part in self.parts if part.often == often]

    @property
    def step_ms(self) -> float:
        """The sum of the step's parts, "rest" included."""
        return sum(part.ms for part in self.of(PER_STEP))

    def rows(self) -> list[Row]:
        """The record: one row per part, and one named "step" for the step without hooks."""
        common = {
            "engine": self.engine,
            "model": self.model,
            "resolution": self.resolution,
            "points": self.points,
            "mask": self.mask,
            "precision": self.precision,
            "batch": 1,
            "threads": self.threads,
            "repeats": self.steps,
        }
        found = [
            row(
                "profile",
                part.name,
                **common,
                p20_ms=part.p20_ms,
                p50_ms=part.ms,
                p80_ms=part.p80_ms,
                gflop=part.gflop,
                gbytes=part.gbytes,
                gflops_per_s=part.gflop / part.ms * 1e3 if part.gflop and part.ms else None,
                gb_per_s=part.gbytes / part.ms * 1e3 if part.gbytes and part.ms else None,
                share_of_floor=part.share,
                note=f"per {part.often}" if part.often != ONCE else "once per picture",
            )
            for part in self.parts
        ]
        return [*found, row("profile", "step", **common, p50_ms=self.plain_ms, note="without hooks")]


class Subject:
    """What is profiled: three equal sessions, one left alone, one dissected, one to draw pictures of."""

    def __init__(self, model: Model, points: int, mask: str, engine: str = REFERENCE) -> None:
        self.engine = engine
        self.model, self.points, self.mask = model, points, mask
        self.timeline = parts.Timeline(model.device)
        self.plain, self.watched, self.viewer = (self._session() for _ in range(3))
        label = torch.zeros(1, model.config.c_dim, device=model.device)
        label[:, :1] = 1
        self._z = torch.zeros(1, model.config.z_dim, device=model.device).normal_()
        self._label = label if model.config.c_dim else None
        self.frame = self.viewer.render()

    def _session(self) -> DragSession:
        config = crawling_config(self.model, engine=self.engine)
        session = DragSession(self.model, seed=0, label=0 if self.model.config.c_dim else None, config=config)
        size = self.model.config.resolution
        session.may_capture = False  # a captured step cannot be cut; ``bench step`` times it whole
        session.set_points(*default_points(size, self.points))
        session.set_mask(mask_named(self.mask, size))
        session.step()  # takes the references and the mask's feature, once per drag
        if session.done:
            raise DragError(
                f"{self.model.name} has {size}×{size} pixels: too few to drag a point by more than it may miss."
            )
        return session

    def dissected_step(self) -> None:
        with parts.dissected(self.watched, self.timeline), self.timeline.step():
            self.watched.step()

    def map_latent(self) -> Tensor:
        with torch.no_grad():
            return self.model.generator.mapping(self._z, self._label, 0.7)

    def render(self) -> np.ndarray:
        """The picture from features that are there already, as after a step's synthesis."""
        return self.viewer.render()

    def encode(self) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.frame).save(buffer, **WEBP)  # type: ignore[arg-type]
        return buffer.getvalue()

    def others(self) -> dict[str, tuple[str, Callable[[], Any]]]:
        """What is not part of a step: name → (how often, what to run)."""
        return {
            parts.MAPPING: (ONCE, self.map_latent),
            parts.RENDER: (PER_FRAME, self.render),
            parts.ENCODE: (PER_FRAME, self.encode),
        }


def profile(model: Model, points: int, mask: str, steps: int, ceilings: Ceilings, engine: str = REFERENCE) -> Profile:
    """Measures ``steps`` dissected steps and as many plain ones in turn. mask: "none" or "half".

    Raises DragError for an engine whose step nobody knows how to cut, or points the picture has no room for.
    """
    if engine not in DISSECTED_ENGINES:
        raise DragError(f"profile can cut the step of {', '.join(DISSECTED_ENGINES)}, not of {engine!r}.")
    subject = Subject(model, points, mask, engine)
    others = subject.others()
    times = alternate(
        [subject.plain.step, subject.dissected_step, *(run for _, run in others.values())], steps, WARM_UP, model.device
    )
    counted = subject.timeline.steps[WARM_UP:]
    names = parts.step_parts(model, masked=subject.plain.movable_mask is not None)
    milliseconds = {name: [step.get(name, 0.0) for step in counted] for name in names}
    milliseconds |= dict(zip(others, times[2:], strict=True))
    often = {name: how for name, (how, _) in others.items()}
    flop, traffic = operations(subject), least_traffic(subject)

    def part(name: str) -> Part:
        noted = summary(milliseconds[name])
        ms, work, moved = noted["p50_ms"], flop[name].total if name in flop else 0, traffic.get(name, 0)
        least = ceilings.least_seconds(work, moved, subject.plain.precision) if moved else None
        share = least * 1e3 / ms if least is not None and ms else None
        return Part(
            name, often.get(name, PER_STEP), ms, noted["p20_ms"], noted["p80_ms"], work / 1e9, moved / 1e9, share
        )

    return Profile(
        model=model.name,
        resolution=model.config.resolution,
        points=points,
        mask=mask,
        engine=engine,
        precision=subject.plain.precision,
        device=str(model.device),
        threads=torch.get_num_threads(),
        steps=steps,
        plain_ms=summary(times[0])["p50_ms"],
        parts=tuple(part(name) for name in milliseconds),
        ceilings=ceilings,
    )


def operations(subject: Subject) -> dict[str, counting.Flop]:
    """Arithmetic of each part, counted in one more run of everything."""
    counter = counting.Operations()

    def follow(name: str | None) -> None:
        counter.part = name or parts.REST

    subject.timeline.watchers.append(follow)
    try:
        with counter:
            subject.dissected_step()
            for name, (_, run) in subject.others().items():
                follow(name)
                run()
    finally:
        subject.timeline.watchers.remove(follow)
    subject.timeline.steps.pop()  # counting takes time; that step is no measurement
    return dict(counter.by_part)


def least_traffic(subject: Subject) -> dict[str, int]:
    """Bytes that each part must read or write, whatever its code; see ``counting``."""
    session, model = subject.plain, subject.model
    config, size, last = session.config, session.image_size, session.config.feature_block
    moved: defaultdict[str, int] = defaultdict(int)
    with layer_ends(model) as seen:
        activations = model.generator.features(session.w_plus[None], last)
        model.generator.render(activations, session.w_plus[None])
    for block, layer, x, y in seen:
        forward, backward = counting.layer_bytes(layer, x, y)
        if isinstance(layer, ToRGB) or block > last:
            moved[parts.RENDER] += forward
        else:
            moved[parts.forward_part(block)] += forward
            moved[parts.backward_part(block)] += backward
    feature, count = activations.x, subject.points
    whole = counting.nbytes(feature)
    latent = counting.nbytes(session.w_plus[: config.layers if config.space == "w_plus" else 1])
    mapping = model.generator.mapping
    radius1, radius2 = (config.pixels(r, size[0]) for r in (config.r1, config.r2))
    references = count * feature.shape[1] * feature.element_size()
    moved[parts.TRACKING] = counting.window_bytes(radius2, count, feature, size) + references
    moved[parts.SUPERVISION] = counting.window_bytes(radius1 + 1, count, feature, size) + whole  # its gradient map
    if session.movable_mask is not None:
        moved[parts.MASK] = 3 * whole + 4 * size[0] * size[1]  # two features, the gradient map, the float32 mask
    moved[parts.ADAM] = 7 * latent  # reads w, its gradient, mean and variance; writes all but the gradient
    moved[parts.MAPPING] = counting.weight_bytes(mapping) + counting.nbytes(session.w_plus)
    moved[parts.RENDER] += subject.frame.nbytes
    moved[parts.ENCODE] = subject.frame.nbytes + len(subject.encode())
    if isinstance(session._engine, FastEngine):
        frozen_traffic(session._engine, moved)
    return dict(moved)


def frozen_traffic(engine: FastEngine, moved: dict[str, int]) -> None:
    """The fast engine's blocks: only the weights, in its precision. Where it computes on crops the maps are small;
    where it computes everything the arithmetic bounds the time anyway."""
    size = engine.synthesis.precision.itemsize
    for block in range(engine.synthesis.block + 1):
        layers = engine.synthesis.layers[max(2 * block - 1, 0) : 2 * block + 1]
        weights = size * sum(layer.weights for layer in layers)
        moved[parts.forward_part(block)] = moved[parts.backward_part(block)] = weights


@contextlib.contextmanager
def layer_ends(model: Model) -> Iterator[list[tuple[int, nn.Module, Tensor, Tensor]]]:
    """(block, layer, its input, its output) of every layer of the synthesis that runs inside, as meta tensors."""
    seen: list[tuple[int, nn.Module, Tensor, Tensor]] = []

    def note(block: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            seen.append((block, layer, inputs[0].detach().to("meta"), output.detach().to("meta")))

        return hook

    handles = [
        layer.register_forward_hook(note(index))
        for index, block in enumerate(model.generator.synthesis.blocks)
        for layer in block.modules()
        if isinstance(layer, (StyledConv, ToRGB, ResidualSkip))
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
