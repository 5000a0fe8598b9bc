"""``draggan-fast eval drags``: short drags of single landmarks in random directions; how far did they really go?

One-point drags go through the landmarks in turn, five-point drags move eyes, nose and mouth corners alike; 8 to 24
pixels of 128. The requested and the real displacement are compared by the detector.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import numpy as np

from draggan_fast import DragConfig, DragError, Model
from draggan_fast.media import contact_sheet, draw_overlay

from .drag_runs import whole_pixels
from .eval_landmarks import FIVE
from .evaluation import Case, Column, Picture, Record, Row, Workbench, distances, off, ours
from .intervals import mean_interval, with_interval

SHORTEST, LONGEST = 8.0, 24.0  # pixels of 128
TRIES = 200
POINTS = ("1", "5")

COLUMNS = (
    Column("case", "name"),
    Column("points", "points"),
    Column("settings", "settings"),
    Column("engine", "engine"),
    Column("precision", "precision"),
    Column("drags", "pairs", "d"),
    Column("way gone", "way", ".3f", interval=True),
    Column("median", "way_median", ".3f"),
    Column("left", "left", ".2f", interval=True),
    Column("median", "left_median", ".2f"),
    Column("others moved", "others", ".2f"),
    Column("tracker left", "tracker_distance", ".2f"),
    Column("tracker says", "success_tracker", ".0%"),
    Column("steps", "steps", ".0f"),
)
LEGEND = """way gone: displacement of the dragged landmarks along the way, by the detector, as a share of what was
asked, with 95 % bootstrap intervals over drags. left: their mean distance to the targets in pixels. others moved: the
mean displacement of the landmarks that nobody dragged. tracker left, tracker says: the distance that the drag itself
believes in, and the share of drags it calls done."""


def cases(arguments: argparse.Namespace, model: Model) -> list[Case]:
    changes = changed_settings(arguments.set, model)
    if unknown := [points for points in arguments.points if points not in POINTS]:
        raise DragError(f"--points knows {', '.join(POINTS)}, not {unknown[0]!r}.")
    found = [case for points in arguments.points for case in ours(arguments, points, ("fast",))]
    return [replace(case, changes=changes) for case in found]


def changed_settings(text: str | None, model: Model) -> tuple[tuple[str, Any], ...]:
    """A JSON object of drag settings that differ from the model's own, as a case keeps it. Raises DragError."""
    if text is None:
        return ()
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise DragError(f"--set must be a JSON object of drag settings like '{{\"lr\": 0.02}}', not {text!r}.")
    DragConfig.from_json(model.drag_config().to_json() | given)
    return tuple(given.items())


def request_of(
    bench: Workbench, points: str, index: int, lengths: tuple[float, float] = (SHORTEST, LONGEST)
) -> tuple[Picture, np.ndarray, np.ndarray]:
    """(start picture, indices of the dragged landmarks, displacement [2] in pixels), seeded by the index.

    lengths: between these, in pixels of 128.  The landmark and its target keep clear of the border; where that
    fails, the next start picture is taken.
    """
    count = len(bench.detector.names)
    for seed in bench.seeds(index, TRIES):
        picture = bench.picture(seed)
        which = np.array([bench.detector.index(n) for n in FIVE] if points == "5" else [index % count])
        draw = np.random.default_rng([seed, index])
        for _ in range(TRIES):
            angle, length = draw.uniform(0, 2 * np.pi), draw.uniform(*lengths) * bench.side / 128
            way = length * np.array([np.cos(angle), np.sin(angle)])
            if bench.inside(picture.landmarks[which]).all() and bench.inside(picture.landmarks[which] + way).all():
                return picture, which, way
    raise DragError(f"Drag {index} finds no start picture: none shows the landmark far enough from the border.")


def measure(bench: Workbench, case: Case, index: int) -> Record:
    picture, which, way = request_of(bench, case.points, index)
    handles = picture.landmarks[which]
    run = bench.drag(case, index, picture, handles, handles + way)
    final = bench.detector([run.after])[0]
    moved = final - picture.landmarks
    return {
        "seed": picture.seed,
        "landmarks": [bench.detector.names[k] for k in which],
        "handle_points": handles,
        "target_points": handles + way,
        "way": moved[which] @ way / (way @ way),
        "left": distances(final[which], handles + way),
        "others": float(np.linalg.norm(np.delete(moved, which, axis=0), axis=1).mean()),
        "tracker_distance": distances(run.handle_points, whole_pixels(handles + way)),
        "success_tracker": run.done,
        "steps": run.steps,
        "seconds": run.seconds,
    }


def row(case: Case, records: list[Record]) -> Row:
    """Means and medians over drags; five points of a drag are averaged first, except by_landmark."""
    found: Row = {}
    for key in ("way", "left", "tracker_distance", "others", "success_tracker"):
        found |= with_interval(key, mean_interval([float(np.mean(r[key])) for r in records]))
    for key in ("way", "left"):
        found[f"{key}_median"] = float(np.median([np.mean(r[key]) for r in records]))
    by_landmark: dict[str, list[float]] = {}
    for record in records:
        for name, way in zip(record["landmarks"], record["way"]):
            by_landmark.setdefault(name, []).append(way)
    found["by_landmark"] = {name: round(float(np.mean(ways)), 3) for name, ways in sorted(by_landmark.items())}
    found["note"] = "way gone by landmark: " + ", ".join(f"{n} {w:.2f}" for n, w in found["by_landmark"].items())
    found |= {key: float(np.median([r[key] for r in records])) for key in ("steps", "seconds")}
    return found


def sheet(bench: Workbench, cases: list[Case], count: int) -> np.ndarray:
    """Before | after of the first drags; red is where the landmark is, blue where it should be."""
    scale = max(1.0, 320 / bench.side)
    tiles, labels = [], []
    for case in cases:
        for index in range(count):
            picture, which, way = request_of(bench, case.points, index)
            goal = picture.landmarks[which] + way
            run = bench.drag(case, index, picture, picture.landmarks[which], goal)
            at = bench.detector([run.after])[0][which]
            name = bench.detector.names[which[0]].replace("_", " ") if len(which) == 1 else "five points"
            tiles.append(draw_overlay(picture.pixels, picture.landmarks[which], goal, scale=scale))
            tiles.append(draw_overlay(run.after, at, goal, scale=scale))
            labels += [f"{name}: {off(picture.landmarks[which], goal)}", f"after {run.steps} steps: {off(at, goal)}"]
    return contact_sheet(tiles, 4, labels)
