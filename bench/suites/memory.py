"""Peak memory of each mode, in a process of its own, so that no mode pays for another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from draggan_fast import DragError

from ..engines import BASELINE
from ..options import Options
from ..probe import probe
from ..rows import Row, row
from ..verify import verify_engine

STEPS = 2  # the second one has the weights' gradients of the first, where an engine keeps such things


def rows(options: Options) -> Iterator[Row]:
    """Per model, mask, engine and precision a row ``step``, and ``step + picture`` for engines whose step draws none.

    Every mode needs some seconds for its process: with all suites together only the first mask, quick: only the last
    model too.

    peak_mb: of the process from the moment the network is loaded (network and interpreter included), or of the GPU's
    memory; baseline_mb: of the process after the import.
    """
    for name in options.few_models():
        for mask in options.masks if options.every_case and not options.quick else options.masks[:1]:
            for engine, precision in options.contenders():
                for picture in (False,) if engine == BASELINE else (False, True):
                    yield mode_row(options, name, mask, engine, precision, picture)


def mode_row(options: Options, model: str, mask: str, engine: str, precision: str, picture: bool) -> Row:
    name = "step + picture" if picture or engine == BASELINE else "step"
    options.say(f"memory: {model}, {engine}, {precision}, {name}, mask {mask}")
    shared = {
        "engine": engine,
        "model": Path(model).name,  # a record names no folders
        "points": 1,
        "mask": mask,
        "precision": precision,
        "threads": options.threads,
    }
    try:
        found = probe(
            engine,
            model,
            precision,
            mask=mask,
            steps=STEPS,
            picture=picture,
            device=str(options.device),
            threads=options.threads,
        )
    except DragError as error:  # a mode that does not fit into this machine is a result too
        return row("memory", name, note=str(error), **shared)
    return row(
        "memory",
        name,
        resolution=found["resolution"],
        verified=verify_engine(engine, precision, options.device).ok,
        peak_mb=found["peak_mb"],
        baseline_mb=found["baseline_mb"],
        **(shared | {"model": found["model"]}),
    )
