"""What a front-end waits for: one step, its picture, and the bytes that go to the browser."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from draggan_fast import Model

from .. import workloads
from ..against import compared_row, timed_row
from ..engines import Drag
from ..options import Options, loaded
from ..rows import Row, rounded
from ..timing import alternate_within
from ..verify import verify_engine

FORMATS: dict[str, dict[str, int]] = {"JPEG": {"quality": 90}, "WEBP": {"quality": 90, "method": 0}}
FRAMES = 100  # at most: below that a 99th percentile is the slowest frame


def rows(options: Options) -> Iterator[Row]:
    """Per model, engine and precision a row ``frame`` (step, picture, JPEG); rows ``encode JPEG`` and ``encode WEBP``
    of the encoding alone; one point, no mask. The percentiles go up to p99.

    With all suites together the smallest random network and the named one only."""
    few = options.few_models()
    chosen = few if options.every_case else tuple(dict.fromkeys((few[0], few[-1])))
    for model in loaded(chosen, options.device):
        options.say(f"frame: {model.name}")
        yield from frame_rows(options, model)


def frame_rows(options: Options, model: Model) -> Iterator[Row]:
    contenders = options.contenders()
    drags = [workloads.crawling_drag(model, engine, precision) for engine, precision in contenders]
    times = alternate_within([frame_of(drag) for drag in drags], 2 * options.seconds, options.device, most=FRAMES)
    shared = {"model": model.name, "resolution": model.config.resolution, "threads": options.threads}
    for (engine, precision), taken in zip(contenders, times):
        verdict = verify_engine(engine, precision, options.device)
        found = compared_row(
            "frame", "frame", taken, times[0], verdict,
            engine=engine, points=1, mask="none", precision=precision, **shared,
        )  # fmt: skip
        yield found | tail(taken)
    picture = drags[-1].picture()
    encoders = [encoder_of(picture, name) for name in FORMATS]
    for name, taken in zip(FORMATS, alternate_within(encoders, options.seconds / 4, options.device, most=FRAMES)):
        yield timed_row("frame", f"encode {name}", taken, **shared) | tail(taken)


def frame_of(drag: Drag) -> Callable[[], bytes]:
    def frame() -> bytes:
        drag.step()
        return encoded(drag.picture(), "JPEG")

    return frame


def encoder_of(picture: np.ndarray, name: str) -> Callable[[], bytes]:
    return lambda: encoded(picture, name)


def encoded(picture: np.ndarray, name: str) -> bytes:
    """uint8 [H, W, 3] → a file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, name, **FORMATS[name])
    return buffer.getvalue()


def tail(milliseconds: list[float]) -> dict[str, float]:
    return {f"p{p}_ms": rounded(float(np.percentile(milliseconds, p))) for p in (95, 99)}
