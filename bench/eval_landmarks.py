"""``draggan-fast eval landmarks``: the protocol of the paper's Table 1 (Pan et al. 2023, §4.2).

Two random pictures; landmarks of the first are the handles, the second picture's the targets; drag until done or out
of steps; measure the mean distance between the landmarks of the result and the targets. Landmarks are the detector's,
in all three pictures; the drag's own tracker is shown beside it and never judges.

A landmark that the detector sees within ``evaluation.BORDER`` of the border in either picture is left out of that pair:
a target has to lie in the picture. None is ever hidden: the renderer turns heads by 33° at most, and the others are
defined on the head's outline.
"""

from __future__ import annotations

import argparse

import numpy as np

from draggan_fast import DragError, Model
from draggan_fast.config import SPACES
from draggan_fast.media import contact_sheet, draw_overlay

from .drag_runs import SETTINGS, whole_pixels
from .evaluation import NO_EDIT, Case, Column, Picture, Record, Row, Workbench, distances, no_edit, off, ours
from .intervals import mean_interval, ratio_interval, with_interval
from .optical_flow import FOLLOWERS, why_absent

POINTS = ("1", "5", "all")
FIVE = ("eye_left", "eye_right", "nose", "mouth_left", "mouth_right")
NEAR = 3.0  # pixels of 128: a distance that means the same for all settings, whose stop distances differ

COLUMNS = (
    Column("case", "name"),
    Column("points", "points"),
    Column("settings", "settings"),
    Column("engine", "engine"),
    Column("precision", "precision"),
    Column("pairs", "pairs", "d"),
    Column("distance", "after", ".2f", interval=True),
    Column("of all 21", "after_all", ".2f", interval=True),
    Column("way gone", "way", ".0%", interval=True),
    Column("≤3 px", "near", ".0%"),
    Column("success", "success", ".0%"),
    Column("tracker says", "success_tracker", ".0%"),
    Column("steps", "steps", ".0f"),
    Column("s", "seconds", ".2f"),
)
LEGEND = """distance: mean over pairs of the dragged landmarks' distance to their targets in pixels, by the detector,
with 95 % bootstrap intervals. of all 21: the same over all landmarks. way gone: share of the way to the targets.
≤3 px: share of the dragged landmarks that end so near (pixels of 128). success: pairs whose dragged landmarks all end
within the stop distance (1 at least), by the detector; tracker says: by the drag itself. steps, s: medians."""


def cases(arguments: argparse.Namespace, model: Model) -> list[Case]:
    """No edit, then settings × engine × precision for each number of points, then what ``--ablations`` asks for."""
    for given, known, option in (
        (arguments.points, POINTS, "--points"),
        (arguments.settings or SETTINGS, SETTINGS, "--settings"),
    ):
        if unknown := [name for name in given if name not in known]:
            raise DragError(f"{option} knows {', '.join(known)}, not {unknown[0]!r}.")
    settings = arguments.settings or (("fast",) if arguments.quick else SETTINGS)
    found = []
    for points in arguments.points:
        found.append(no_edit(points))
        found += ours(arguments, points, settings)
    return found + (ablations(model) if arguments.ablations else [])


def ablations(model: Model) -> list[Case]:
    """The paper's, with one point as there: the model's own settings, then one thing changed in each."""
    last, height, base = model.config.num_blocks - 1, model.image_size[0], model.drag_config()
    r1 = base.pixels(base.r1, height)
    found = [Case(f"base: block {base.feature_block}, r1 {r1} px, {base.space}, features")]
    for block in sorted({3, 4, 5, 6} - {base.feature_block}):
        absent = None if block <= last else f"{model.name} has the blocks 0 to {last}."
        found.append(Case(f"feature block {block}", changes=(("feature_block", block),), absent=absent))
    # At 128 pixels r1 1…5 of the paper's 512 would all round to one pixel: swept in pixels of this picture instead.
    found += [Case(f"r1 {r} px", changes=(("r1", r * 512 / height),)) for r in (1, 2, 3, 4, 5) if r != r1]
    found += [Case(f"latent space {space}", changes=(("space", space),)) for space in SPACES if space != base.space]
    return found + [Case(f"tracking: {name}", tracker=name, absent=why_absent(name)) for name in FOLLOWERS]


def pair(bench: Workbench, index: int) -> tuple[Picture, Picture]:
    """The picture that is dragged and the one whose landmarks are the targets."""
    first, second = (bench.picture(seed) for seed in bench.seeds(index, 2))
    return first, second


def dragged(bench: Workbench, points: str, index: int) -> np.ndarray:
    """Indices of the landmarks that are dragged in this pair: a seeded random one, the five, or all usable ones."""
    first, second = pair(bench, index)
    usable = np.flatnonzero(bench.inside(first.landmarks) & bench.inside(second.landmarks))
    if points == "5":
        return np.array([k for k in map(bench.detector.index, FIVE) if k in usable])
    return usable if points == "all" else bench.random(index).permutation(usable)[:1]


def measure(bench: Workbench, case: Case, index: int) -> Record:
    """One pair dragged; distances are in pixels, of the dragged landmarks one by one and in the mean over all 21."""
    first, second = pair(bench, index)
    which = dragged(bench, case.points, index)
    handles, targets = first.landmarks[which], second.landmarks[which]
    record: Record = {
        "seeds": [first.seed, second.seed],
        "landmarks": [bench.detector.names[k] for k in which],
        "handle_points": handles,
        "target_points": targets,
        "near": bench.side * NEAR / 128,
    }
    final = first.landmarks
    if case.name != NO_EDIT:
        run = bench.drag(case, index, first, handles, targets)
        final = bench.detector([run.after])[0]
        stop = max(bench.config(case).stop_pixels(bench.side, len(which)), 1.0)  # the detector is no more exact
        record |= {
            "stop_distance": stop,
            "success": bool((distances(final[which], whole_pixels(targets)) <= stop).all()),
            "tracker_distance": distances(run.handle_points, whole_pixels(targets)),
            "success_tracker": run.done,
            "steps": run.steps,
            "seconds": run.seconds,
        }
    return record | judged(first.landmarks, final, second.landmarks, which)


def judged(start: np.ndarray, final: np.ndarray, goal: np.ndarray, which: np.ndarray) -> Record:
    """What the landmarks [K, 2] of the start, of the result and of the goal tell; ``which`` of them were dragged.

    asked: pixels from start to goal, summed over the dragged ones.  gone: how far they went in that direction.
    """
    way = goal[which] - start[which]
    length = np.linalg.norm(way, axis=1)
    along = ((final[which] - start[which]) * way).sum(axis=1) / np.maximum(length, 1e-6)
    return {
        "before": distances(start[which], goal[which]),
        "after": distances(final[which], goal[which]),
        "before_all": float(distances(start, goal).mean()),
        "after_all": float(distances(final, goal).mean()),
        "asked": float(length.sum()),
        "gone": float(along.sum()),
    }


def row(case: Case, records: list[Record]) -> Row:
    """Means over pairs (each pair counts once), with intervals."""
    found: Row = {}
    for key in ("before", "after", "before_all", "after_all"):
        found |= with_interval(key, mean_interval([float(np.mean(r[key])) for r in records]))
    found |= with_interval("way", ratio_interval([r["gone"] for r in records], [r["asked"] for r in records]))
    near = [float(np.mean(np.array(r["after"]) <= r["near"])) for r in records]
    found |= with_interval("near", mean_interval(near))
    if case.name != NO_EDIT:
        for key in ("success", "success_tracker"):
            found |= with_interval(key, mean_interval([float(r[key]) for r in records]))
        found["tracker_distance"] = float(np.mean([np.mean(r["tracker_distance"]) for r in records]))
        found["stop_distance"] = max(r["stop_distance"] for r in records)
        found |= {key: float(np.median([r[key] for r in records])) for key in ("steps", "seconds")}
    return found


def sheet(bench: Workbench, cases: list[Case], count: int) -> np.ndarray:
    """Before | after | target for the first pairs: red is where a landmark is, blue where it should be."""
    scale = max(1.0, 320 / bench.side)
    tiles, labels = [], []
    # The model's own settings if they were evaluated, and one engine: what its pictures show, others' show too.
    ours_only = [c for c in cases if c.name == "ours"]
    settings = "fast" if any(c.settings == "fast" for c in ours_only) else ours_only[0].settings
    shown = {c.points: c for c in reversed(ours_only) if c.settings == settings}
    named = {"1": "1 point", "5": "5 points", "all": "all points"}.__getitem__
    for points in sorted(shown):
        case = shown[points]
        for index in range(count):
            first, second = pair(bench, index)
            which = dragged(bench, case.points, index)
            goal = second.landmarks[which]
            run = bench.drag(case, index, first, first.landmarks[which], goal)
            final = bench.detector([run.after])[0]
            size = 0.7 if len(which) > 5 else 1.0
            for pixels, at, text in (
                (first.pixels, first.landmarks[which], f"{named(case.points)}: {off(first.landmarks[which], goal)}"),
                (run.after, final[which], f"after {run.steps} steps: {off(final[which], goal)}"),
                (second.pixels, goal, "target picture"),
            ):
                tiles.append(draw_overlay(pixels, at, goal, scale=scale, mark_size=size))
                labels.append(text)
    return contact_sheet(tiles, 6 if count > 1 else 3, labels)
