"""From nothing to a drag: import, load, first picture, first step and warm step, in fresh processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..against import compared_row, timed_row
from ..options import Options
from ..probe import probe
from ..rows import Row
from ..verify import verify_engine

REPEATS, FEW_REPEATS, QUICK_REPEATS = 3, 2, 1  # few: when all suites share a quarter of an hour
PHASES = {
    "import_ms": "import",
    "load_ms": "load",
    "first_picture_ms": "first picture",
    "first_step_ms": "first step",
    "to_first_step_ms": "first picture and step",
    "warm_step_ms": "warm step",
}
WARM_STEPS = 3


def rows(options: Options) -> Iterator[Row]:
    """Per model and engine the rows ``import``, ``load``, ``first picture`` (a new session, its weights packed, and its
    picture, which the published program draws with its first step only), ``first step``, both together, and ``warm
    step``.

    The smallest random network and the named model only (quick: the latter): the start of larger ones says no more.
    """
    few = options.few_models()
    for model in dict.fromkeys((few[0], few[-1])):
        contenders = options.contenders()
        found: list[list[dict[str, Any]]] = [[] for _ in contenders]
        repeats = QUICK_REPEATS if options.quick else REPEATS if options.every_case else FEW_REPEATS
        for number in range(repeats):
            for index, (engine, precision) in enumerate(contenders):
                options.say(f"startup: {model}, {engine}, {precision}, process {number + 1}")
                found[index].append(
                    probe(
                        engine,
                        model,
                        precision,
                        steps=WARM_STEPS,
                        device=str(options.device),
                        threads=options.threads,
                        shown=True,
                    )
                )
        for (engine, precision), own in zip(contenders, found):
            for key, name in PHASES.items():
                shared = {
                    "engine": engine,
                    "model": own[0]["model"],
                    "resolution": own[0]["resolution"],
                    "points": 1,
                    "mask": "none",
                    "precision": precision,
                    "threads": options.threads,
                }
                times, baseline = ([process[key] for process in processes] for processes in (own, found[0]))
                # No ratio for the first step alone: the published program's is its first picture too.
                if key in ("to_first_step_ms", "warm_step_ms"):
                    verdict = verify_engine(engine, precision, options.device)
                    yield compared_row("startup", name, times, baseline, verdict, **shared)
                else:
                    yield timed_row("startup", name, times, **shared)
