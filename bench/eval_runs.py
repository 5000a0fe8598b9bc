"""Making the drags of an evaluation, in one process or several; their records on disk, and tables of them.

Drags are made index by index: whatever is interrupted has all cases equally far.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from draggan_fast import DragError
from draggan_fast.atomic import write_bytes
from draggan_fast.command_common import set_threads

from .evaluation import PSI, Case, Column, Options, Record, Row, Workbench, study_module
from .machine import machine
from .rows import rounded

Records = dict[tuple[str, int], Record]  # by case and index

_bench: Workbench | None = None  # of this worker process


def _start_worker(options: Options, threads: int) -> None:
    global _bench  # noqa: PLW0603 (a worker has one model for all its tasks)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    set_threads(threads)
    _bench = Workbench(options)


def _work(case: Case, index: int) -> Record:
    assert _bench is not None
    return measured(_bench, case, index)


def measured(bench: Workbench, case: Case, index: int) -> Record:
    found: Record = study_module(bench.options.study).measure(bench, case, index)
    return {"case": case.key, "index": index, **{k: tidy(v) for k, v in found.items()}}


def tidy(value: Any) -> Any:
    """Ready for JSON: arrays as lists, to a thousandth of a pixel, other numbers to six digits."""
    if isinstance(value, np.ndarray):
        return np.round(value.astype(np.float64), 3).tolist()
    return rounded(value.item() if isinstance(value, np.generic) else value)


def make_drags(bench: Workbench, todo: list[tuple[Case, int]], jobs: int) -> Iterator[Record]:
    """Records as they come; ``jobs`` processes of one thread each, or this process if it is 1."""
    if jobs == 1:
        for case, index in todo:
            yield measured(bench, case, index)
        return
    # Spawned, not forked: a fork of a process whose OpenMP threads have run may hang.
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start_worker, (bench.options, 1)) as executor:
        try:
            for future in as_completed([executor.submit(_work, case, index) for case, index in todo]):
                yield future.result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


# --- records on disk ------------------------------------------------------------------------------------------


def request(bench: Workbench) -> dict[str, Any]:
    """What records must agree in to stand in one file."""
    options = bench.options
    return {
        "study": options.study,
        "model": bench.model.name,
        "model_hash": bench.model.content_hash,
        "detector_hash": bench.detector.content_hash,
        "seed": options.seed,
        "max_steps": options.max_steps,
        "device": str(bench.model.device),
        "truncation_psi": PSI,
    }


def earlier_records(path: Path, wanted: dict[str, Any]) -> list[Record]:
    """The records of an interrupted or smaller run. Raises DragError if the file belongs to other drags."""
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        made, records = dict(content["request"]), [dict(record) for record in content["pairs"]]
        if not all({"case", "index"} <= record.keys() for record in records):
            raise KeyError("case, index")
    except (OSError, ValueError, KeyError, TypeError):
        raise DragError(f"{path.name} is not a record of 'draggan-fast eval', so it cannot be resumed.") from None
    if made != wanted:
        other = ", ".join(f"{k} {made.get(k)!r}" for k, v in wanted.items() if made.get(k) != v)
        raise DragError(f"{path.name} cannot be resumed: it was made with {other}.")
    return records


def rows_of(bench: Workbench, cases: Sequence[Case], records: Iterable[Record], threads: int) -> list[Row]:
    """A row for each case, in their order; without numbers where no drag was made."""
    study = study_module(bench.options.study)
    by_case: dict[str, list[Record]] = {case.key: [] for case in cases}
    for record in sorted(records, key=lambda r: r["index"]):
        if record["case"] in by_case:
            by_case[record["case"]].append(record)
    head = {"suite": bench.options.study, "model": bench.model.name, "resolution": bench.side, "threads": threads}
    rows = []
    for case in cases:
        found = by_case[case.key]
        told = {**asdict(case), "changes": dict(case.changes)}
        absent = told.pop("absent")
        numbers = study.row(case, found) if found else {}
        if clash := (head.keys() | told.keys()) & numbers.keys():
            raise ValueError(f"the study's {', '.join(clash)} would overwrite what the row says of its case")
        rows.append({**head, **told, "pairs": len(found), "note": absent, **numbers})
    return rows


def save(path: Path, bench: Workbench, rows: list[Row], records: Records, complete: bool) -> None:
    """JSON, whole or not at all; a line for each drag, so that records can be compared and searched."""
    head = {"machine": machine(bench.model.device), "request": request(bench), "complete": complete, "rows": rows}
    lines = ",\n".join(
        json.dumps(records[key], ensure_ascii=False) for key in sorted(records, key=lambda k: (k[1], k[0]))
    )
    text = f'{json.dumps(head, indent=1, ensure_ascii=False)[:-2]},\n "pairs": [\n{lines}\n]}}\n'
    write_bytes(path, text.encode())


# --- tables -----------------------------------------------------------------------------------------------------


def cell(row: Row, column: Column) -> str:
    """A row's value, with its confidence interval if the column wants it; "–" where there is none."""
    value = row.get(column.key)
    if value is None:
        return "–"
    shown = f"{value:{column.form}}"
    if column.interval:
        low, high = row[f"{column.key}_ci"]
        shown += f" [{low:{column.form}}, {high:{column.form}}]"
    return shown


def table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Aligned columns; what a row lacks and why stands under them."""
    lines = [[column.heading for column in columns], *([cell(row, column) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip()
        for line in lines
    ]
    notes = dict.fromkeys(f"  {row['name']}: {row['note']}" for row in rows if row.get("note"))
    return "\n".join([*text, *notes])
