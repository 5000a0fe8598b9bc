"""From times to rows: percentiles, the ratio to the baseline, the share of the machine's floor, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .engines import BASELINE
from .rows import Row, rounded, row
from .suites import floor
from .timing import ratio, summary
from .verify import Verdict


@lru_cache(maxsize=4)
def ceilings(device: str, threads: int) -> floor.Ceilings:
    """The machine's ceilings, measured once a run, a few seconds."""
    return floor.ceilings(device, threads)


def timed_row(suite: str, name: str, times: Sequence[float], **values: Any) -> Row:
    """A row with the percentiles of these times in ms."""
    found: dict[str, Any] = summary(times)
    if len(times) == 1:
        found["noise"] = None  # nothing is known of it
    return row(suite, name, repeats=len(times), **found, **values)


def compared_row(
    suite: str, name: str, times: Sequence[float], baseline: Sequence[float], verdict: Verdict, **values: Any
) -> Row:
    """The same beside the baseline's times of the same rounds.

    The baseline's own row has ratio 1, and as ``ratio_noise`` its A/A difference: its odd rounds against its even
    ones. What is not verified gets no ratio, whatever the clock says.
    """
    found = timed_row(suite, name, times, verified=verdict.ok, note=verdict.reason, **values)
    if not verdict.ok:
        return found
    if values.get("engine") == BASELINE:
        even, odd = times[: len(times) // 2 * 2 : 2], times[1::2]
        noise = abs(ratio(even, odd)[0] - 1) if odd else None
        return found | {"ratio_to_published": 1.0, "ratio_noise": rounded(noise)}
    factor, noise = ratio(baseline, times)
    return found | {"ratio_to_published": rounded(factor), "ratio_noise": rounded(noise) if len(times) > 1 else None}


def with_floor(found: Row, limits: floor.Ceilings, gflop: float | None = None, gbytes: float | None = None) -> Row:
    """The row with the work that cannot be avoided, its rates, and which share of the roofline it reaches."""
    if not (gflop or gbytes):  # nothing is counted, so no share is known
        return found
    seconds = found["p50_ms"] / 1e3
    least = limits.least_seconds((gflop or 0) * 1e9, (gbytes or 0) * 1e9, found["precision"] or "fp32")
    return found | {
        "gflop": gflop,
        "gbytes": gbytes,
        "gflops_per_s": gflop and rounded(gflop / seconds),
        "gb_per_s": gbytes and rounded(gbytes / seconds),
        "share_of_floor": rounded(least / seconds),
    }
