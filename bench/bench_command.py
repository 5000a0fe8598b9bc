"""``draggan-fast bench``: runs suites, prints their tables, writes the record."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from draggan_fast import DragError
from draggan_fast.atomic import write_bytes
from draggan_fast.command_common import check_writable

from . import options as bench_options
from .compare import Record, compare, read_record, report
from .machine import machine
from .options import Options
from .rows import Row
from .tables import table

EXIT_INTERRUPTED = 130


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0, whatever was measured and however it compares; 130 after Ctrl-C, with what there is written.

    Raises DragError, before anything is measured, for whatever is wrong with the arguments.
    """
    old = read_record(arguments.compare) if arguments.compare else None
    out = check_writable(arguments.json) if arguments.json else None
    options = bench_options.checked(arguments)
    rows: list[Row] = []
    record: Record = {"machine": machine(options.device), "rows": rows}
    interrupted = False
    try:
        for suite in options.suites:
            run_suite(suite, options, rows)
    except KeyboardInterrupt:
        interrupted = True
    finally:  # whatever ended it: measurements are expensive
        if out is not None and rows:
            write_record(out, record)
    if interrupted:
        kept = f"; the {len(rows)} rows measured until then are in {out}" if out and rows else ""
        print(f"draggan-fast: interrupted{kept}", file=sys.stderr)
        return EXIT_INTERRUPTED
    if out is not None:
        print(f"{len(rows)} rows → {out}")
    if old is not None:
        print(report(compare(old, record), arguments.compare))
    return 0


def run_suite(suite: str, options: Options, rows: list[Row]) -> None:
    """Appends the suite's rows as they come and prints its table, also when it is interrupted."""
    module = import_module(f".suites.{suite}", __package__)
    own: list[Row] = []
    found: Iterable[Row] = module.rows(options)
    try:
        for row in found:
            own.append(row)
            rows.append(row)
    finally:
        if own:
            print(f"\n{suite}: {headline(module.__doc__)}\n\n{table(own)}", flush=True)


def headline(doc: str | None) -> str:
    return (doc or "").strip().splitlines()[0]


def write_record(path: Path, record: Record) -> None:
    try:
        write_bytes(path, (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise DragError(f"Cannot write {str(path)!r}: {error.strerror or error}.") from None
