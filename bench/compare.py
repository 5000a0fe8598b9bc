"""Two records side by side: what became slower or larger than the noise explains. It informs and decides nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draggan_fast import DragError

from .engines import BASELINE
from .rows import IDENTITY, NUMBERS, Row

LEAST_CHANGE = 0.05  # what no two runs agree better than, whatever their noise says
MEMORY_CHANGE = 0.05
Record = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One quantity of one row that changed beyond the noise. worse: by what factor; below 1 = better.

    allowed: the factor up to which the noise of both records explains it.
    """

    row: str
    quantity: str
    before: float | bool
    after: float | bool | None
    worse: float
    allowed: float


@dataclass(frozen=True)
class Comparison:
    """regressions and improvements, worst first; missing: rows of the old record that the new one does not have."""

    regressions: list[Change]
    improvements: list[Change]
    missing: list[str]
    compared: int


def read_record(path: str) -> Record:
    """A record that ``draggan-fast bench --json`` wrote. Raises DragError for any other file."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DragError(f"Cannot read {path!r}: {error.strerror or error}.") from None
    except ValueError:
        raise DragError(f"{path!r} is not JSON; give a record of 'draggan-fast bench --json'.") from None
    ok = (
        isinstance(found, dict)
        and isinstance(found.get("machine"), dict)
        and isinstance(found.get("rows"), list)
        and all(isinstance(r, dict) and isinstance(r.get("suite"), str) and "name" in r for r in found["rows"])
        and all(isinstance(r.get(key), str | int | float | None) for r in found["rows"] for key in IDENTITY)
        and all(isinstance(r.get(key), int | float | None) for r in found["rows"] for key in NUMBERS)
    )
    if not ok:
        raise DragError(f"{path!r} is not a record of 'draggan-fast bench --json' (machine and rows).")
    return found


def identity(found: Row) -> tuple[Any, ...]:
    return tuple(found.get(key) for key in IDENTITY)


def described(found: Row) -> str:
    return " ".join(str(found[key]) for key in IDENTITY if found.get(key) is not None)


def compare(old: Record, new: Record) -> Comparison:
    """Rows that agree in every column of ``IDENTITY``: the ratio to the baseline where both have one, since a faster
    or busier machine moves both of its sides; else the median, if both ran on the same machine; and the peak memory."""
    same_machine = all(old["machine"].get(k) == new["machine"].get(k) for k in ("cpu", "gpu", "torch"))
    now = {identity(r): r for r in new["rows"]}
    suites = {r["suite"] for r in new["rows"]}
    changes: list[Change] = []
    missing: list[str] = []
    compared = 0
    for before in old["rows"]:
        after = now.get(identity(before))
        if after is None:
            if before["suite"] in suites:  # a suite that was not asked for is not missing
                missing.append(described(before))
            continue
        compared += 1
        changes += row_changes(before, after, same_machine)
    return Comparison(
        sorted((c for c in changes if c.worse > c.allowed), key=lambda c: -c.worse),
        sorted((c for c in changes if c.worse < 1 / c.allowed), key=lambda c: c.worse),
        missing,
        compared,
    )


def row_changes(before: Row, after: Row, same_machine: bool) -> list[Change]:
    name = described(before)
    if before.get("verified") and after.get("verified") is False:
        return [Change(name, "verified", True, False, float("inf"), 1.0)]
    found = []

    def both(key: str) -> tuple[float, float] | None:
        values = before.get(key), after.get(key)
        return (float(values[0]), float(values[1])) if values[0] and values[1] else None

    if before.get("engine") != BASELINE and (ratios := both("ratio_to_published")):
        allowed = 1 + max(LEAST_CHANGE, noise(before, "ratio_noise") + noise(after, "ratio_noise"))
        found.append(Change(name, "ratio_to_published", *ratios, ratios[0] / ratios[1], allowed))
    elif same_machine and (medians := both("p50_ms")):
        allowed = 1 + max(LEAST_CHANGE, noise(before, "noise") + noise(after, "noise"))
        found.append(Change(name, "p50_ms", *medians, medians[1] / medians[0], allowed))
    if peaks := both("peak_mb"):
        found.append(Change(name, "peak_mb", *peaks, peaks[1] / peaks[0], 1 + MEMORY_CHANGE))
    return found


def noise(found: Row, key: str) -> float:
    return float(found.get(key) or 0.0)


def report(comparison: Comparison, path: str) -> str:
    """What a person reads, a line each."""
    lines = [
        f"Compared with {path}: {comparison.compared} rows, {len(comparison.regressions)} regression(s), "
        f"{len(comparison.improvements)} improvement(s)."
    ]
    for title, changes in (("REGRESSION", comparison.regressions), ("better", comparison.improvements)):
        for c in changes:
            if c.quantity == "verified":
                lines.append(f"  {title}: {c.row}: no longer computes what it must")
                continue
            factor = c.worse if c.worse > 1 else 1 / c.worse
            lines.append(
                f"  {title}: {c.row}: {c.quantity} {c.before:.4g} → {c.after:.4g}, {factor:.2f}× "
                f"{'worse' if c.worse > 1 else 'better'} (noise explains up to {c.allowed:.2f}×)"
            )
    if comparison.missing:
        shown = "; ".join(comparison.missing[:5])
        more = f" and {len(comparison.missing) - 5} more" if len(comparison.missing) > 5 else ""
        lines.append(f"  not measured this time: {shown}{more}")
    return "\n".join(lines)
