"""``draggan-fast eval``: does the point arrive, and does the rest of the picture stay? Tables, JSON, contact sheets."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from draggan_fast import DragError, media
from draggan_fast.command_common import check_writable, provenance, set_threads

from .eval_runs import Records, earlier_records, make_drags, request, rows_of, save, table
from .evaluation import SHOWN, Case, Options, Workbench, study_module

SAVE_SECONDS = 20.0  # the JSON on disk is never older than this while drags are made


def check(arguments: argparse.Namespace) -> None:
    """Refuses what cannot work before any work is done."""
    for name in ("count", "jobs", "max_steps"):
        if not 1 <= getattr(arguments, name) <= 1_000_000:
            option = {"count": f"--{arguments.count_name}", "jobs": "--jobs", "max_steps": "--max-steps"}[name]
            raise DragError(f"{option} must be from 1 to 1000000, not {getattr(arguments, name)}.")
    if arguments.seed < 0:
        raise DragError(f"--seed must not be negative, but is {arguments.seed}.")
    if arguments.json:
        check_writable(arguments.json, (".json",))
    if arguments.sheet:
        check_writable(arguments.sheet, (".png", ".webp"))
    if arguments.resume and not arguments.json:
        raise DragError("--resume continues the file of --json: name it.")
    cores = os.cpu_count() or 1
    if arguments.jobs > cores:
        raise DragError(f"--jobs must be at most {cores}, the cores of this machine, not {arguments.jobs}.")
    if arguments.jobs > 1 and arguments.threads not in (None, 1):
        raise DragError("With --jobs each process has one thread: leave --threads out.")


def run(arguments: argparse.Namespace) -> int:
    """The command's exit code: 0, or 130 after Ctrl-C (what was measured by then is shown and written)."""
    check(arguments)
    set_threads(arguments.threads)
    if arguments.quick:
        arguments.count = min(arguments.count, arguments.quick_count)
        arguments.max_steps = min(arguments.max_steps, 100)
    options = Options(arguments.study, arguments.model, arguments.device, arguments.seed, arguments.max_steps)
    bench = Workbench(options)
    study = study_module(arguments.study)
    cases = study.cases(arguments, bench.model)
    path = Path(arguments.json) if arguments.json else None
    records: Records = {}
    if path and arguments.resume:
        records = {(r["case"], r["index"]): r for r in earlier_records(path, request(bench))}
    complete = drag_all(bench, cases, arguments, records, path)

    threads = 1 if arguments.jobs > 1 else torch.get_num_threads()
    rows = rows_of(bench, cases, [r for r in records.values() if r["index"] < arguments.count], threads)
    print(table(study.COLUMNS, rows))
    print(f"\n{study.LEGEND}")
    if path:
        save(path, bench, rows, records, complete)
        print(f"→ {path}")
    if arguments.sheet and complete:
        shown = study.sheet(bench, [c for c in cases if not c.absent], min(SHOWN, arguments.count))
        media.save_image(arguments.sheet, shown, info=provenance(bench.model))
        print(f"→ {arguments.sheet}")
    if not complete:
        print(f"draggan-fast: interrupted after {len(records)} drags", file=sys.stderr)
    return 0 if complete else 130


def drag_all(
    bench: Workbench,
    cases: list[Case],
    arguments: argparse.Namespace,
    records: Records,
    path: Path | None,
) -> bool:
    """Makes the drags that ``records`` lacks and adds theirs; False if Ctrl-C stopped it."""
    todo = [
        (case, index)
        for index in range(arguments.count)
        for case in cases
        if not case.absent and (case.key, index) not in records
    ]
    threads = 1 if arguments.jobs > 1 else torch.get_num_threads()
    saved = time.monotonic()

    def save_so_far() -> None:
        if path:
            save(path, bench, rows_of(bench, cases, records.values(), threads), records, complete=False)

    try:
        for record in tqdm(make_drags(bench, todo, arguments.jobs), total=len(todo), unit="drag", disable=None):
            records[record["case"], record["index"]] = record
            if time.monotonic() - saved > SAVE_SECONDS:
                save_so_far()
                saved = time.monotonic()
    except KeyboardInterrupt:
        return False
    except BaseException:  # hours of drags are not lost to one that failed
        save_so_far()
        raise
    return True
