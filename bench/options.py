"""What ``draggan-fast bench`` was asked for, checked before anything is measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from draggan_fast import DragError, Model, load
from draggan_fast.command_common import set_threads
from draggan_fast.engine import best_precision
from draggan_fast.loading import pick_device
from draggan_fast.models import DEFAULT_MODEL, resolve

from .engines import BASELINE, ENGINES, engine_named
from .workloads import DTYPES, MASKS, default_points, random_model

SUITES = ("floor", "ops", "step", "frame", "memory", "scaling", "startup")
ENGINE_SUITES = frozenset(SUITES) - {"floor", "ops"}
RESOLUTIONS, POINTS = (256, 512, 1024), (1, 5, 16)
RANDOM = "random-"  # a model's name is this and a resolution: random weights of config-f width


@dataclass(frozen=True)
class Options:
    """A checked request. ``points`` and ``masks`` are those of the suite ``step``; others take the first of each.

    every_case: the full product of points and masks; otherwise the masks go with the first number of points only, and
    further numbers of points with the smallest random network and the named model.
    precisions: None = float32 and what the device is fast in.
    seconds: what one case may take, though never fewer than three repeats.
    """

    suites: tuple[str, ...]
    models: tuple[str, ...]
    resolutions: tuple[int, ...]
    points: tuple[int, ...]
    masks: tuple[str, ...]
    every_case: bool
    engines: tuple[str, ...]
    precisions: tuple[str, ...] | None
    device: torch.device
    threads: int
    quick: bool = False
    seconds: float = 10.0

    def cases(self, model: Model) -> list[tuple[int, str]]:
        """(points, mask) of the step suite on this network."""
        pairs = [(n, mask) for mask in self.masks for n in self.points]
        if self.every_case:
            return pairs
        slow = model.name.startswith(RANDOM) and model.config.resolution > self.resolutions[0]
        return [p for p in pairs if p[0] == self.points[0] or (p[1] == self.masks[0] and not slow)]

    def contenders(self) -> list[tuple[str, str]]:
        """(engine, precision), the baseline first: every ratio needs it."""
        pairs = [(BASELINE, ENGINES[BASELINE].precisions[0])]
        # Unless it is asked for, not in what this device only emulates: bf16 without AMX takes ten times as long.
        wanted = self.precisions or ("fp32", best_precision(self.device)[0])
        for engine in self.engines:
            if engine != BASELINE:
                pairs += [(engine, p) for p in ENGINES[engine].served(self.device) if p in wanted]
        return pairs

    def few_models(self) -> tuple[str, ...]:
        """Quick: the last model only, which is the embedded one unless another was named."""
        return self.models[-1:] if self.quick else self.models

    def say(self, text: str) -> None:
        """Progress, on stderr."""
        print(f"bench: {text}", file=sys.stderr, flush=True)


def loaded(names: Iterable[str], device: torch.device) -> Iterator[Model]:
    """One after the other: the network of the last one is given up first."""
    for name in names:
        yield model_named(name, device)


def model_named(name: str, device: torch.device) -> Model:
    """A model's name or file, or "random-256". Raises DragError if there is none."""
    if name.startswith(RANDOM) and name.removeprefix(RANDOM).isdigit():
        return random_model(int(name.removeprefix(RANDOM)), device)
    return load(name, device)


def checked(arguments: argparse.Namespace) -> Options:
    """The request behind the command line's arguments; sets torch's threads. Raises DragError, one clear sentence."""
    for kind, known, given in (
        ("suite", SUITES, arguments.suites),
        ("mask", MASKS, arguments.mask or ()),
        ("precision", (*DTYPES,), arguments.precision or ()),
    ):
        for name in given:
            if name not in known:
                raise DragError(f"There is no {kind} {name!r}; there is {', '.join(known)}.")
    for name in arguments.engine or ():
        engine_named(name)
    device = pick_device(arguments.device)
    set_threads(arguments.threads)
    suites = tuple(name for name in SUITES if name in arguments.suites) or SUITES
    quick = arguments.quick
    resolutions = arguments.resolution or (RESOLUTIONS[:1] if quick else RESOLUTIONS)
    few = POINTS[:1] if quick else (POINTS if arguments.suites else POINTS[:: len(POINTS) - 1])
    points = arguments.points or few
    options = Options(
        suites=suites,
        models=chosen_models(arguments.model, arguments.resolution, resolutions),
        resolutions=tuple(sorted(set(resolutions))),
        points=tuple(sorted(set(points))),
        masks=tuple(m for m in MASKS if m in (arguments.mask or MASKS)),
        # Everything at once is bounded by a quarter of an hour; who names a suite, points or masks gets the whole grid.
        every_case=bool(arguments.suites or arguments.points or arguments.mask),
        engines=tuple(arguments.engine or ENGINES),
        precisions=arguments.precision,
        device=device,
        threads=torch.get_num_threads(),
        quick=quick,
        seconds=1.0 if quick else 10.0 if arguments.suites else 5.0,
    )
    check_fit(options, arguments.model)
    return options


def chosen_models(
    model: str | None, resolution: tuple[int, ...] | None, resolutions: tuple[int, ...]
) -> tuple[str, ...]:
    if model is not None and resolution is not None:
        raise DragError("--resolution chooses random networks; leave it out with --model, which has its own.")
    if model is not None:
        return (model,)
    return (*(f"{RANDOM}{r}" for r in sorted(set(resolutions))), DEFAULT_MODEL)


def check_fit(options: Options, model: str | None) -> None:
    """What would only be noticed after minutes: points without room, a precision without engine, a missing model."""
    for resolution in options.resolutions if model is None else ():
        for n in options.points:
            default_points(resolution, n)
    for name in options.models:
        if name.startswith(RANDOM):
            size = name.removeprefix(RANDOM)
            if not size.isdigit() or not 8 <= int(size) <= 1024 or int(size) & (int(size) - 1):
                raise DragError(f"A resolution to measure must be a power of two from 8 to 1024, not {size}.")
        else:
            resolve(name)
    wanted = set(options.suites) & ENGINE_SUITES
    if options.precisions is not None and wanted:
        for precision in options.precisions:
            if not any(precision in ENGINES[name].served(options.device) for name in options.engines):
                raise DragError(f"None of the engines {', '.join(options.engines)} computes in {precision} here.")
