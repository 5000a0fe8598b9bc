"""Rows as a table for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .rows import Row


def milliseconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def speed_up(row: Row) -> str:
    """The ratio, or in its place the refusal."""
    if row["verified"] is False:
        return "WRONG"
    if row["ratio_to_published"] is None:
        return ""
    return f"{row['ratio_to_published']:.3g}×"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.01 else f"{100 * value:.2g} %"


# heading → what stands there; a column that is empty in every row is left out
COLUMNS: dict[str, Callable[[Row], str]] = {
    "name": lambda r: r["name"],
    "model": lambda r: r["model"] or "",
    "px": lambda r: text(r["resolution"]),
    "points": lambda r: text(r["points"]),
    "batch": lambda r: text(r["batch"]),
    "threads": lambda r: text(r["threads"]) if r["suite"] == "scaling" else "",
    "mask": lambda r: r["mask"] or "",
    "engine": lambda r: r["engine"] or "",
    "precision": lambda r: r["precision"] or "",
    "p20 ms": lambda r: text(r["p20_ms"], milliseconds),
    "p50 ms": lambda r: text(r["p50_ms"], milliseconds),
    "p80 ms": lambda r: text(r["p80_ms"], milliseconds),
    "p95 ms": lambda r: text(r["p95_ms"], milliseconds),
    "p99 ms": lambda r: text(r["p99_ms"], milliseconds),
    "noise": lambda r: text(r["noise"], percent),
    "times": lambda r: text(r["repeats"]),
    "speed-up": speed_up,
    "±": lambda r: text(r["ratio_noise"], percent),
    "baseline MB": lambda r: text(r["baseline_mb"], "{:.0f}".format),
    "peak MB": lambda r: text(r["peak_mb"], "{:.4g}".format),
    "exponent": lambda r: text(r["exponent"], "{:z.2f}".format),
    "GFLOP/s": lambda r: text(r["gflops_per_s"], "{:.3g}".format),
    "GB/s": lambda r: text(r["gb_per_s"], "{:.3g}".format),
    "of floor": lambda r: text(r["share_of_floor"], percent),
}
LEFT = {"name", "model", "mask", "engine", "precision"}


def text(value: Any, shown: Callable[[Any], str] = str) -> str:
    return "" if value is None else shown(value)


def table(rows: Sequence[Row]) -> str:
    """The rows under their headings, then a line for each row that is WRONG or carries a note."""
    cells = {heading: [shown(row) for row in rows] for heading, shown in COLUMNS.items()}
    cells = {heading: column for heading, column in cells.items() if any(column)}
    widths = {heading: max(map(len, [heading, *column])) for heading, column in cells.items()}

    def line(values: Sequence[str]) -> str:
        aligned = (v.ljust(w) if h in LEFT else v.rjust(w) for v, (h, w) in zip(values, widths.items()))
        return "  ".join(aligned).rstrip()

    lines = [line(list(cells)), line(["-" * width for width in widths.values()])]
    lines += [line([column[index] for column in cells.values()]) for index in range(len(rows))]
    notes = [f"  {note(row)}" for row in rows if row["note"]]
    return "\n".join([*lines, *dict.fromkeys(notes)])


def note(row: Row) -> str:
    """The row's note under its name, and under WRONG if it says why the row has no ratio."""
    who = ", ".join(filter(None, (row["name"], row["engine"])))
    return f"{'WRONG: ' if row['verified'] is False else ''}{who}: {row['note']}"
