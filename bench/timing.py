"""Taking times that can be compared: variants take turns, the order turns round, percentiles state the noise.

On a GPU the clock is a pair of CUDA events on the current stream; elsewhere it is the host's.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

Variant = Callable[[], Any]
T = TypeVar("T")

LEAST_REPEATS = 3
COLD_BYTES = 256 << 20  # several times any last-level cache a core or a GPU has to itself


def timed(run: Variant, device: torch.device) -> float:
    """Milliseconds of one call. On a GPU all that the call enqueued on the current stream is waited for."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    with torch.cuda.device(device):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        before.record()
        run()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after))


def alternate(variants: Sequence[Variant], repeats: int, warm_up: int, device: torch.device) -> list[list[float]]:
    """Times of each variant in ms, [len(variants)][repeats]; the variants take turns, so that a machine that slows
    down slows all of them.

    Every second round runs backwards: no variant always finds the caches and clocks as the same other one left them.
    The first ``warm_up`` rounds are not counted.
    """
    times: list[list[float]] = [[] for _ in variants]
    for number in range(warm_up + repeats):
        order = range(len(variants))
        for index in order if number % 2 == 0 else reversed(order):
            taken = timed(variants[index], device)
            if number >= warm_up:
                times[index].append(taken)
    return times


def alternate_within(
    variants: Sequence[Variant],
    seconds: float,
    device: torch.device,
    *,
    least: int = LEAST_REPEATS,
    most: int = 50,
    warm_up: int = 1,
) -> list[list[float]]:
    """``alternate`` with as many repeats as fit into about ``seconds``, warm-up included: from ``least`` to ``most``.

    ``least`` wins over ``seconds``: fewer repeats would be no measurement.
    """
    start = time.perf_counter()
    alternate(variants, 0, warm_up, device)
    first = alternate(variants, 1, 0, device)
    spent = time.perf_counter() - start
    round_seconds = max(sum(map(sum, first)) / 1e3, 1e-6)
    repeats = min(max(int((seconds - spent) / round_seconds) + 1, least), most)
    rest = alternate(variants, repeats - 1, 0, device)
    return [a + b for a, b in zip(first, rest)]


def summary(milliseconds: Sequence[float]) -> dict[str, float]:
    """{"p20_ms", "p50_ms", "p80_ms", "noise"}; noise = (p80 − p20) / (2·p50), the relative half-width."""
    p20, p50, p80 = (float(np.percentile(milliseconds, p)) for p in (20, 50, 80))
    return {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "noise": (p80 - p20) / (2 * p50) if p50 else 0.0}


def ratio(baseline: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """(how many times faster ``other`` is by the medians, the relative half-width p20–p80 of the rounds' ratios).

    Rounds are paired: what disturbs both halves of a round cancels.
    """
    rounds = np.asarray(baseline) / np.asarray(other)
    p20, p50, p80 = np.percentile(rounds, (20, 50, 80))
    return float(np.median(baseline) / np.median(other)), float((p80 - p20) / (2 * p50))


def rotation(make: Callable[[], T], bytes_each: int, total: int = COLD_BYTES) -> Iterator[T]:
    """Endlessly the next of as many copies as fill ``total`` bytes: when one comes round again no cache holds it."""
    copies = [make() for _ in range(max(total // max(bytes_each, 1), 1) + 1)]
    return itertools.cycle(copies)
