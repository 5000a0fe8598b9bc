"""``draggan-fast eval pairs``: paired reconstruction, after the paper's Table 2 (Pan et al. 2023, §4.2).

A second picture is made by perturbing the first one's latent; sparse correspondences between the two are dragged along,
and the result is compared with the second picture. As in the paper, 32 pixels of the dense optical flow are the input
(OpenCV's DIS here, checked forwards and backwards, where the paper has RAFT); beside it stand the detector's landmarks,
which know nothing of brightness. What no displacement tells (colours, markings) no drag can reconstruct: the row
"no edit" says where it starts.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch

from draggan_fast import Model
from draggan_fast.media import contact_sheet, draw_overlay

from .drag_runs import picture_of
from .evaluation import NO_EDIT, Case, Column, Picture, Record, Row, Workbench, distances, no_edit, ours
from .intervals import mean_interval, with_interval
from .optical_flow import dis_flow, sample_flow, why_absent
from .perceptual import lpips, why_no_lpips

PERTURBATION = 0.3  # w of the second picture = w + PERTURBATION·(w of another seed − w)
SPARSE = 32
CONSISTENT = 1.0  # pixels of 128: how far forwards and backwards may miss the start

COLUMNS = (
    Column("case", "name"),
    Column("input", "points"),
    Column("settings", "settings"),
    Column("engine", "engine"),
    Column("precision", "precision"),
    Column("pairs", "pairs", "d"),
    Column("MSE×1000", "mse", ".2f", interval=True),
    Column("LPIPS", "lpips", ".3f"),
    Column("landmarks", "landmark_distance", ".2f", interval=True),
    Column("steps", "steps", ".0f"),
    Column("s", "seconds", ".2f"),
)
LEGEND = """MSE×1000: mean squared difference to the second picture, pixel values from 0 to 1, times 1000. landmarks:
mean distance of all landmarks to the second picture's, in pixels, by the detector. Intervals: 95 %, over pairs."""


def cases(arguments: argparse.Namespace, model: Model) -> list[Case]:
    found = [no_edit("–")]
    flow = why_absent("dis")
    for points in (f"{SPARSE} flow", "landmarks"):
        absent = flow if "flow" in points else None
        found += [replace(c, absent=absent) for c in ours(arguments, points, ("fast",))]
    return found


def pair(bench: Workbench, index: int) -> tuple[Picture, Picture]:
    """The first picture and the one of the perturbed latent."""
    first, other = (bench.picture(seed) for seed in bench.seeds(index, 2))
    w_plus = torch.lerp(first.w0, other.w0, PERTURBATION)
    pixels = picture_of(bench.model, w_plus)
    return first, Picture(other.seed, w_plus, pixels, bench.detector([pixels])[0])


def flow_points(bench: Workbench, first: np.ndarray, second: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """(handles, targets), [≤ SPARSE, 2] each: random pixels whose flow comes back to where it started."""
    there, back = dis_flow(first, second), dis_flow(second, first)
    y, x = np.mgrid[: bench.side, : bench.side]
    pixels = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)
    arrived = pixels + sample_flow(there, pixels)
    missed = np.linalg.norm(arrived + sample_flow(back, arrived) - pixels, axis=1)
    kept = (missed <= CONSISTENT * bench.side / 128) & bench.inside(pixels) & bench.inside(arrived)
    chosen = bench.random(index).permutation(np.flatnonzero(kept))[:SPARSE]
    return pixels[chosen], arrived[chosen]


def sparse_points(bench: Workbench, case: Case, index: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = pair(bench, index)
    if "flow" in case.points:
        return flow_points(bench, first.pixels, second.pixels, index)
    usable = bench.inside(first.landmarks) & bench.inside(second.landmarks)
    return first.landmarks[usable], second.landmarks[usable]


def mse(first: np.ndarray, second: np.ndarray) -> float:
    """Times 1000, of pixel values from 0 to 1."""
    return float(np.square((first.astype(np.float64) - second) / 255).mean()) * 1000


def measure(bench: Workbench, case: Case, index: int) -> Record:
    first, second = pair(bench, index)
    record: Record = {"seeds": [first.seed, second.seed]}
    after, landmarks = first.pixels, first.landmarks
    if case.name != NO_EDIT:
        handles, targets = sparse_points(bench, case, index)
        run = bench.drag(case, index, first, handles, targets)
        after, landmarks = run.after, bench.detector([run.after])[0]
        record |= {
            "handle_points": handles,
            "target_points": targets,
            "success_tracker": run.done,
            "steps": run.steps,
            "seconds": run.seconds,
        }
    return record | {
        "mse": mse(after, second.pixels),
        "lpips": lpips(after, second.pixels),
        "landmark_distance": float(distances(landmarks, second.landmarks).mean()),
    }


def row(case: Case, records: list[Record]) -> Row:
    found: Row = {}
    for key in ("mse", "lpips", "landmark_distance"):
        values = [r[key] for r in records]
        found |= {key: None} if None in values else with_interval(key, mean_interval(values))
    if case.name != NO_EDIT:
        found |= {key: float(np.median([r[key] for r in records])) for key in ("steps", "seconds")}
    return found | {"note": why_no_lpips()}


def sheet(bench: Workbench, cases: list[Case], count: int) -> np.ndarray:
    """First picture with what is dragged | result | second picture, for each input."""
    scale = max(1.0, 320 / bench.side)
    tiles, labels = [], []
    for case in cases:
        for index in range(count if case.name != NO_EDIT else 0):
            first, second = pair(bench, index)
            handles, targets = sparse_points(bench, case, index)
            run = bench.drag(case, index, first, handles, targets)
            tiles += [
                draw_overlay(first.pixels, handles, targets, scale=scale, mark_size=0.6),
                draw_overlay(run.after, [], [], scale=scale),
                draw_overlay(second.pixels, [], [], scale=scale),
            ]
            labels += [
                f"first, {case.points}: MSE {mse(first.pixels, second.pixels):.1f}",
                f"after {run.steps} steps: MSE {mse(run.after, second.pixels):.1f}",
                "second",
            ]
    return contact_sheet(tiles, 6 if count > 1 else 3, labels)
