"""One iteration of a drag: every engine beside the published program's step, in turns."""

from __future__ import annotations

from collections.abc import Iterator

from draggan_fast import Model

from .. import workloads
from ..against import ceilings, compared_row, with_floor
from ..engines import FAST
from ..options import Options, loaded
from ..rows import Row
from ..timing import alternate_within
from ..verify import verify_engine


def rows(options: Options) -> Iterator[Row]:
    """Per model, number of points, mask, engine and precision a row ``step``.

    For ``published`` a step includes the full picture, which that program cannot do without.
    """
    for model in loaded(options.models, options.device):
        for points, mask in options.cases(model):
            options.say(f"step: {model.name}, {points} point(s), mask {mask}")
            yield from case_rows(options, model, points, mask)


def case_rows(options: Options, model: Model, points: int, mask: str) -> Iterator[Row]:
    contenders = options.contenders()
    drags = [workloads.crawling_drag(model, engine, precision, points, mask) for engine, precision in contenders]
    times = alternate_within([drag.step for drag in drags], options.seconds, options.device)
    gflop = workloads.step_gflop(model.config, workloads.crawling_config(model).feature_block)
    for (engine, precision), taken in zip(contenders, times):
        found = compared_row(
            "step",
            "step",
            taken,
            times[0],
            verify_engine(engine, precision, options.device),
            engine=engine,
            model=model.name,
            resolution=model.config.resolution,
            points=points,
            mask=mask,
            precision=precision,
            threads=options.threads,
        )
        # On crops, and by Winograd's convolution, the fast engine does a fraction of that work: its share of the floor
        # would be too high.
        whole = engine != FAST or (mask == "half" and precision != "fp32")
        yield with_floor(found, ceilings(str(options.device), options.threads), gflop=gflop if whole else None)
