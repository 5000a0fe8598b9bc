"""One row of a record: the keys that ``draggan-fast bench --json`` promises, all present in every row."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

# Two rows measure the same thing when these agree.
IDENTITY = (
    "suite", "name", "engine", "model", "resolution", "points", "mask", "precision", "batch", "threads",
)  # fmt: skip
MEASURED = (
    "p20_ms", "p50_ms", "p80_ms", "p95_ms", "p99_ms",
    "noise",  # (p80 − p20) / (2·p50)
    "repeats",
    "ratio_to_published",  # p50 of the engine "published" / p50 of this row: above 1 is faster
    "ratio_noise",  # the same half-width, of the ratio taken round by round
    "verified",  # does the engine compute what its specification computes; false: there is no ratio
    "peak_mb",  # MB = 10^6 bytes, of the process or of the GPU
    "baseline_mb",  # of the process before the mode began: after import, model not loaded
    "exponent",  # of the fitted power law of a scaling curve: time ~ size^exponent
    "gflop", "gbytes",  # the work that cannot be avoided
    "gflops_per_s", "gb_per_s",
    "share_of_floor",  # time that the machine's ceilings allow / time taken
    "note",
)  # fmt: skip
NUMBERS = tuple(key for key in MEASURED if key != "note")  # or null; ``verified`` is a number too, to Python
KEYS = (*IDENTITY, *MEASURED)


def row(suite: str, name: str, **values: Any) -> Row:
    """A row with every key, ``None`` where it does not apply. Raises ValueError for a key that is not promised."""
    if unknown := sorted(set(values) - set(KEYS)):
        raise ValueError(f"a row has no {', '.join(unknown)}")
    return dict.fromkeys(KEYS) | {"suite": suite, "name": name} | {k: rounded(v) for k, v in values.items()}


def rounded(value: Any) -> Any:
    """Floats to six digits: more would be noise in a record."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
