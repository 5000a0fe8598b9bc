"""What the evaluations share: the cases that are compared, and the pictures that all of them start from.

A *case* is one row of the table (settings, engine, what is changed). An *index* is one seeded drag or pair; the same
index starts from the same pictures in every case, so that cases differ in nothing else. A *record* is what one drag
measured, plain values. ``eval_runs`` makes the drags and keeps the records, each ``eval_*`` module is one study.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from torch import Tensor

from draggan_fast import DragConfig, DragError, Model, load
from draggan_fast.loading import pick_device

from .drag_runs import FEATURES, DragRun, picture_of, run_drag, settings_config
from .engines import BASELINE, ENGINES, engine_named, start_latent
from .landmarks import LandmarkDetector, load_detector

Record = dict[str, Any]
Row = dict[str, Any]
PSI = 0.7  # truncation of every start picture, the usual one
SHOWN = 4  # sheets show this many of the first drags of a case
NO_EDIT = "no edit"  # the name of the case without a drag
BORDER = 2.0  # pixels of 128: a landmark nearer to the border is not dragged, its place is not known well enough


@dataclass(frozen=True)
class Case:
    """One row: name and group of the comparison, settings with what is changed in them, engine, points, tracker.

    absent: why it cannot be measured here, in a sentence; such a case makes no drags and a row without numbers.
    """

    name: str
    points: str = "1"
    settings: str = "fast"
    engine: str = "reference"
    precision: str = "fp32"
    tracker: str = FEATURES
    changes: tuple[tuple[str, Any], ...] = ()
    mask: str = "none"
    absent: str | None = None

    @property
    def key(self) -> str:
        """What tells it from other cases, in records too."""
        changes = json.dumps(dict(self.changes))
        return " | ".join(
            (self.name, self.points, self.settings, self.engine, self.precision, self.tracker, changes, self.mask)
        )


def no_edit(points: str) -> Case:
    """The row of the start pictures: where every drag begins."""
    return Case(NO_EDIT, points, settings="–", engine="–", precision="–")


def ours(arguments: argparse.Namespace, points: str, settings: Sequence[str]) -> list[Case]:
    """Settings × engine × precision for this number of points."""
    engines = chosen_engines(arguments)
    return [Case("ours", points, name, engine, precision) for name in settings for engine, precision in engines]


def chosen_engines(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """(engine, precision) as asked for; by default all but ``published``, which makes the reference's drags, slower."""
    if arguments.engine == ("all",):
        names = list(ENGINES)
    else:
        names = list(arguments.engine or [name for name in ENGINES if name != BASELINE])
    found = []
    for name in names:
        known = engine_named(name).served(pick_device(arguments.device))
        asked = {("auto",): known[:1], ("all",): known}.get(arguments.precision, arguments.precision)
        for precision in asked:
            if precision not in known:
                raise DragError(f"The engine {name} computes in {', '.join(known)}, not in {precision!r}.")
            found.append((name, precision))
    return found


@dataclass(frozen=True)
class Options:
    """What decides the numbers of a drag, beside its case and its index."""

    study: str
    model: str
    device: str
    seed: int
    max_steps: int


class Picture(NamedTuple):
    """A start picture: its seed, latent [num_ws, w_dim], uint8 [H, W, 3], and landmarks [K, 2] by the detector."""

    seed: int
    w0: Tensor
    pixels: np.ndarray
    landmarks: np.ndarray


@dataclass
class Workbench:
    """A process's model and detector, and the pictures that all cases of an index start from."""

    options: Options
    model: Model = field(init=False)
    detector: LandmarkDetector = field(init=False)
    _kept: dict[tuple[str, int], DragRun] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.model = load(self.options.model, self.options.device)
        self.detector = load_detector()
        if not self.model.name.startswith("toy-animals"):
            raise DragError(
                f"eval knows the landmarks of toy-animals only, not of {self.model.name}: use --model toy-animals."
            )
        self.picture: Callable[[int], Picture] = lru_cache(maxsize=16)(self._picture)

    def _picture(self, seed: int) -> Picture:
        w0 = start_latent(self.model, seed, PSI)
        pixels = picture_of(self.model, w0)
        return Picture(seed, w0, pixels, self.detector([pixels])[0])

    @property
    def side(self) -> int:
        return self.model.image_size[0]

    def random(self, index: int) -> np.random.Generator:
        """Random numbers that belong to this index, whichever case asks."""
        return np.random.default_rng([self.options.seed, index])

    def seeds(self, index: int, count: int) -> list[int]:
        """Seeds of the start pictures of this index."""
        return np.random.default_rng([self.options.seed, index, 1]).integers(0, 2**32, count).tolist()

    def inside(self, points: np.ndarray) -> np.ndarray:
        """[..., 2] (x, y) → bool [...]: which keep clear of the border."""
        edge = BORDER * self.side / 128
        return np.asarray(((points >= edge) & (points <= self.side - 1 - edge)).all(axis=-1))

    def config(self, case: Case) -> DragConfig:
        return settings_config(self.model, case.settings, **{"max_steps": self.options.max_steps, **dict(case.changes)})

    def drag(
        self,
        case: Case,
        index: int,
        picture: Picture,
        handles: np.ndarray,
        targets: np.ndarray,
        mask: Tensor | None = None,
    ) -> DragRun:
        """The drag of this case and index; the first few are kept, so that a sheet need not make them again."""
        found = self._kept.get((case.key, index))
        if found is None:
            found = run_drag(
                self.model, picture.w0, handles, targets, self.config(case), engine=case.engine,
                precision=case.precision, tracker=case.tracker, movable_mask=mask,
            )  # fmt: skip
            if index < SHOWN:
                self._kept[case.key, index] = found
        return found


class Column(NamedTuple):
    """A column of a table: heading, the row's key, how it is written, and whether its confidence interval is too."""

    heading: str
    key: str
    form: str = "s"
    interval: bool = False


class Study(Protocol):
    """What a module eval_*.py offers: ``measure`` makes one drag, the rest lays out what all of them told."""

    COLUMNS: Sequence[Column]
    LEGEND: str

    def cases(self, arguments: argparse.Namespace, model: Model) -> list[Case]: ...

    def measure(self, bench: Workbench, case: Case, index: int) -> Record: ...

    def row(self, case: Case, records: list[Record]) -> Row: ...

    def sheet(self, bench: Workbench, cases: list[Case], count: int) -> np.ndarray: ...


def study_module(name: str) -> Study:
    """The module eval_NAME, imported when its study is asked for."""
    return cast(Study, import_module(f"{__package__}.eval_{name}"))


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, 2] and [N, 2] → [N], in pixels."""
    return np.asarray(np.linalg.norm(a - b, axis=-1))


def off(at: np.ndarray, goal: np.ndarray) -> str:
    """A caption: how far the landmarks are from their goals in the mean."""
    return f"{distances(at, goal).mean():.1f} px off"
