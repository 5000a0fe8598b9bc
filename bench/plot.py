"""Figures and README tables from the JSON of ``draggan-fast bench`` and ``eval``; nothing is typed by hand.

    python -m draggan_fast.bench.plot bench/results/*_bench_*.json bench/results/*_landmarks_*.json \\
        [--figures docs [--machine AVX512]] [--readme README.md]

Every row's ``suite`` says what it is, so the files can be given in any order; of two rows that measure the same thing
that of the later file counts. Tables go between the markers ``<!-- table:NAME -->`` and ``<!-- end -->``; with
``<!-- table:NAME AVX2 -->`` it is that of machines with these vector instructions.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from draggan_fast import DragError
from draggan_fast.atomic import write_bytes

from . import figures

Row = dict[str, Any]
IDENTITY = ("suite", "name", "engine", "model", "resolution", "points", "mask", "precision", "settings", "threads")
NOISY = 0.2  # relative half-width from which a ratio is shown to one digit
ENGINES = ("published", "reference", "fast")  # the order of columns; engines unknown here follow by name


def load_rows(paths: Iterable[Path]) -> list[Row]:
    """The rows of these files, each with the ``machine`` it was measured on. Raises DragError for any other file."""
    found: dict[tuple[Any, ...], Row] = {}
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows, machine = content["rows"], content["machine"]
        except (OSError, ValueError, KeyError, TypeError):
            raise DragError(f"{path} is not a record of 'draggan-fast bench' or 'eval' (machine and rows).") from None
        for row in rows:
            measured = {**row, "machine": machine}
            found[(*(row.get(key) for key in IDENTITY), kind_of(measured))] = measured
    return list(found.values())


def kind_of(row: Row) -> str:
    """What machine a row is of: its GPU or its vector instructions."""
    return str(row["machine"].get("gpu") or row["machine"].get("vector_instructions"))


def of_machine(rows: Iterable[Row], kind: str | None) -> list[Row]:
    """The rows of such machines; None: of any, the later one of two that measure the same thing."""
    if kind is not None:
        return [row for row in rows if kind_of(row) == kind]
    return list({tuple(row.get(key) for key in IDENTITY): row for row in rows}.values())


def tables_of(rows: list[Row]) -> dict[str, str]:
    """The tables by what stands in their markers: ``step``, ``step AVX2``, …, as far as there are rows."""
    found = {}
    for kind in [None, *sorted({kind_of(row) for row in rows})]:
        those = of_machine(rows, kind)
        for name, make in TABLES.items():
            if select(those, suite=name):
                found[name if kind is None else f"{name} {kind}"] = make(those)
    return found


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows whose entries are all as wanted."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def engines(rows: Iterable[Row]) -> list[str]:
    present = {str(row["engine"]) for row in rows if row.get("engine")}
    return [e for e in ENGINES if e in present] + sorted(present - set(ENGINES))


def markdown(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def workload(row: Row) -> str:
    """What a row's step works on, for people: the embedded model by name, random networks by size."""
    model, size = str(row.get("model")), row["resolution"]
    return f"{size}²" if model.startswith("random") else f"{size}² {model}"


def step_table(rows: list[Row]) -> str:
    """One row per workload, mask and number of points; per engine the median step and its ratio to the published."""
    steps = sorted(
        select(rows, suite="step"),
        key=lambda r: (str(r["model"]).startswith("random"), r["resolution"], r["mask"] != "none", r["points"]),
    )
    columns = columns_of(steps)
    body: dict[tuple[str, ...], dict[tuple[str, str | None], str]] = {}
    for row in steps:
        ratio = row.get("ratio_to_published")
        shown = "" if row["engine"] == "published" else f" (**{ratio:.1f}×**)" if ratio else " (not verified)"
        key = (workload(row), str(row["points"]), "half fixed" if row["mask"] == "half" else "none")
        body.setdefault(key, {})[row["engine"], row["precision"]] = milliseconds(row["p50_ms"]) + shown
    header = ["picture", "points", "mask", *[f"{e}, {p}" for e, p in columns]]
    return markdown(header, ([*key, *[cells.get(c, "–") for c in columns]] for key, cells in body.items()))


def frame_table(rows: list[Row]) -> str:
    """The same for a step with its full picture and that picture's encoding: what a front-end waits for."""
    found = sorted(
        select(rows, suite="frame", name="frame"),
        key=lambda r: (str(r["model"]).startswith("random"), r["resolution"]),
    )
    columns = columns_of(found)
    body: dict[str, dict[tuple[str, str | None], str]] = {}
    for row in found:
        ratio = row.get("ratio_to_published")
        shown = "" if row["engine"] == "published" else f" (**{ratio:.1f}×**)" if ratio else " (not verified)"
        cell = f"{milliseconds(row['p50_ms'])}{shown}"
        body.setdefault(workload(row), {})[row["engine"], row["precision"]] = cell
    header = ["picture", *[f"{e}, {p}" for e, p in columns]]
    return markdown(header, ([key, *[cells.get(c, "–") for c in columns]] for key, cells in body.items()))


def columns_of(rows: Iterable[Row]) -> list[tuple[str, str | None]]:
    """(engine, precision) of every column, in the order of ``engines``."""
    rows = list(rows)
    return [
        (engine, precision)
        for engine in engines(rows)
        for precision in sorted({r["precision"] for r in select(rows, engine=engine)}, key=str)
    ]


def memory_table(rows: list[Row]) -> str:
    """Peak memory per workload, kind of step and engine."""
    found = select(rows, suite="memory")
    columns = columns_of(found)
    body: dict[tuple[str, ...], dict[tuple[str, str | None], str]] = {}
    order = ["step", "step + picture"]
    for row in sorted(
        found, key=lambda r: (str(r["model"]).startswith("random"), r["resolution"] or 0, r["mask"] != "none")
    ):
        name = row["name"] if row["engine"] != "published" else "step + picture"  # which that program always makes
        for shown in order if row["engine"] == "published" else [name]:
            key = (workload(row), shown, "half fixed" if row["mask"] == "half" else "none")
            peak = row["peak_mb"]
            body.setdefault(key, {})[row["engine"], row["precision"]] = (
                f"{peak / 1000:.2f} GB" if peak else "did not fit"
            )
    header = ["picture", "what", "mask", *[f"{e}, {p}" for e, p in columns]]
    return markdown(header, ([*k, *[c.get(e, "–") for e in columns]] for k, c in body.items()))


def interval(row: Row, key: str, form: str) -> str:
    low, high = row[f"{key}_ci"]
    return f"{row[key]:{form}} ({low:{form}}–{high:{form}})"


def landmarks_table(rows: list[Row]) -> str:
    """How far the dragged landmarks are from their targets before and after, by the detector."""
    body = []
    for row in select(rows, suite="landmarks"):
        if row.get("after") is None:
            continue
        who = "no edit" if row["name"] == "no edit" else f"{row['engine']}, {row['precision']}"
        what = row["settings"] if row["name"] in ("ours", "no edit") else f"{row['settings']}, {row['name']}"
        known = row["name"] != "no edit"
        body.append(
            [
                str(row["points"]),
                what if known else "–",
                who,
                str(row["pairs"]),
                interval(row, "after", ".1f"),
                f"{row['near']:.0%}",
                f"{row['success']:.0%}" if known else "–",
                f"{row['steps']:.0f}" if known else "–",
                f"{row['seconds']:.1f}" if known else "–",
            ]
        )
    header = [
        "points",
        "settings",
        "engine",
        "pairs",
        "distance, px",
        "within 3 px",
        "all within stop distance",
        "steps",
        "s",
    ]
    return markdown(header, sorted(body, key=lambda line: (int(line[0]) if line[0].isdigit() else 99, line[1] != "–")))


def ops_table(rows: list[Row]) -> str:
    """Milliseconds of each op by each backend, beside the way of the published program."""
    found = select(rows, suite="ops")
    columns = columns_of(found)
    body: dict[tuple[str, str], dict[tuple[str, str | None], str]] = {}
    for row in found:
        ratio = row.get("ratio_to_published")
        noisy = (row.get("ratio_noise") or 0) > NOISY
        shown = " (not verified)" if row.get("verified") is False else ""
        if ratio and not shown:
            shown = f" (about {float(f'{ratio:.1g}'):.0f}×)" if noisy else f" ({ratio:.0f}×)"
        key = (f"`{row['name']}`", "–" if row["points"] in (None, 0) else str(row["points"]))
        cells = body.setdefault(key, {})
        cells[row["engine"], row["precision"]] = f"{row['p50_ms']:.2f}{'' if row['engine'] == 'published' else shown}"
    names = [f"{'materialised' if e == 'published' else e}, {p}" for e, p in columns]
    return markdown(["op, ms", "points", *names], ([*k, *[c.get(e, "–") for e in columns]] for k, c in body.items()))


TABLES = {
    "step": step_table,
    "frame": frame_table,
    "memory": memory_table,
    "ops": ops_table,
    "landmarks": landmarks_table,
}


def machine_line(rows: list[Row]) -> str:
    """The machine in one line, for under a table."""
    machine = rows[0]["machine"]
    return (
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, commit {machine['commit']}, "
        f"{machine['date'][:10]}"
    )


def with_table(text: str, name: str, table: str) -> str:
    """The README's text with this table between its markers; unchanged if it has no such markers."""
    pattern = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}{table}\n{m[2]}", text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORD.json")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="write bench-*.svg there")
    parser.add_argument("--machine", metavar="KIND", help="whose figures: GPU or vector instructions (default: any)")
    parser.add_argument("--readme", type=Path, metavar="README.md", help="replace the tables in this file")
    arguments = parser.parse_args(argv)
    try:
        rows = load_rows(arguments.records)
    except DragError as error:
        print(f"plot: {error}", file=sys.stderr)
        return 2
    tables = tables_of(rows)
    if arguments.figures:
        for name, svg in figures.draw_all(of_machine(rows, arguments.machine)).items():
            write_bytes(arguments.figures / f"bench-{name}.svg", svg)
    if arguments.readme:
        text = arguments.readme.read_text(encoding="utf-8")
        for name, table in tables.items():
            text = with_table(text, name, table)
        write_bytes(arguments.readme, text.encode())
    else:
        for name, table in tables.items():
            suite, _, kind = name.partition(" ")
            print(f"{name} ({machine_line(select(of_machine(rows, kind or None), suite=suite))})\n\n{table}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
