"""``draggan-fast eval mask``: does the rest of the picture stay? One-point drags with and without ``movable_mask``.

The movable region is a disc around the way from handle to target; everything else is to be held.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch

from draggan_fast import Model
from draggan_fast.media import contact_sheet, draw_overlay

from .eval_drags import request_of
from .evaluation import Case, Column, Record, Row, Workbench, ours
from .intervals import mean_interval, with_interval

LENGTHS = (6.0, 12.0)  # pixels of 128: a way that a part of a face can go while the rest of it stays
MARGIN = 20.0  # pixels of 128 that the disc reaches beyond handle and target

COLUMNS = (
    Column("case", "name"),
    Column("settings", "settings"),
    Column("engine", "engine"),
    Column("precision", "precision"),
    Column("drags", "pairs", "d"),
    Column("fixed pixels", "change_fixed", ".2f", interval=True),
    Column("movable pixels", "change_movable", ".2f", interval=True),
    Column("way gone", "way", ".3f", interval=True),
    Column("tracker says", "success_tracker", ".0%"),
    Column("steps", "steps", ".0f"),
)
LEGEND = """fixed pixels, movable pixels: mean change of a pixel's value (0…255) outside and inside the movable disc,
with 95 % bootstrap intervals over drags. way gone: displacement of the landmark, by the detector, as a share of what
was asked."""


def cases(arguments: argparse.Namespace, model: Model) -> list[Case]:
    plain = ours(arguments, "1", ("fast",))
    return [replace(c, name=f"{m} mask", mask=m) for m in ("without", "with") for c in plain]


def movable_disc(side: int, handle: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[side, side] bool: the disc around the way from handle to target, both (x, y)."""
    centre, reach = (handle + target) / 2, np.linalg.norm(target - handle) / 2 + MARGIN * side / 128
    y, x = np.mgrid[:side, :side]
    found: np.ndarray = np.hypot(x - centre[0], y - centre[1]) <= reach
    return found


def measure(bench: Workbench, case: Case, index: int) -> Record:
    picture, which, way = request_of(bench, "1", index, LENGTHS)
    handles = picture.landmarks[which]
    movable = movable_disc(bench.side, handles[0], handles[0] + way)
    mask = torch.from_numpy(movable).float() if case.mask == "with" else None
    run = bench.drag(case, index, picture, handles, handles + way, mask)
    change = np.abs(run.after.astype(np.float64) - run.before).mean(axis=2)
    moved = (bench.detector([run.after])[0] - picture.landmarks)[which[0]]
    return {
        "seed": picture.seed,
        "landmarks": [bench.detector.names[which[0]]],
        "handle_points": handles,
        "target_points": handles + way,
        "change_fixed": float(change[~movable].mean()),
        "change_movable": float(change[movable].mean()),
        "movable_share": float(movable.mean()),
        "way": float(moved @ way / (way @ way)),
        "success_tracker": run.done,
        "steps": run.steps,
        "seconds": run.seconds,
    }


def row(case: Case, records: list[Record]) -> Row:
    found: Row = {}
    for key in ("change_fixed", "change_movable", "movable_share", "way", "success_tracker"):
        found |= with_interval(key, mean_interval([float(r[key]) for r in records]))
    return found | {key: float(np.median([r[key] for r in records])) for key in ("steps", "seconds")}


def sheet(bench: Workbench, cases: list[Case], count: int) -> np.ndarray:
    """Before with the mask | after, for each case, of the first drags."""
    scale = max(1.0, 320 / bench.side)
    tiles, labels = [], []
    for index in range(count):
        picture, which, way = request_of(bench, "1", index, LENGTHS)
        handles = picture.landmarks[which]
        movable = movable_disc(bench.side, handles[0], handles[0] + way)
        tiles.append(draw_overlay(picture.pixels, handles, handles + way, movable, scale=scale))
        labels.append(bench.detector.names[which[0]].replace("_", " "))
        for case in cases:
            mask = torch.from_numpy(movable).float() if case.mask == "with" else None
            run = bench.drag(case, index, picture, handles, handles + way, mask)
            at = bench.detector([run.after])[0][which]
            tiles.append(draw_overlay(run.after, at, handles + way, scale=scale))
            labels.append(case.name)
    return contact_sheet(tiles, 1 + len(cases), labels)
