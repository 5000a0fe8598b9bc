"""``draggan-fast profile``: one table of where a drag step's time goes on this machine; also as trace and as a page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from draggan_fast import DragError, Model, load
from draggan_fast.atomic import write_bytes
from draggan_fast.command_common import check_writable, set_threads
from draggan_fast.loading import pick_device
from draggan_fast.models import DEFAULT_MODEL

from . import profile_page, trace
from .machine import machine
from .profile_svg import percent
from .profiling import DISSECTED_ENGINES, ONCE, PER_FRAME, PER_STEP, Part, Profile, Subject, profile
from .suites import floor
from .workloads import default_points, random_model

MAX_STEPS = 1000


def run(arguments: argparse.Namespace) -> int:
    """Profiles as the options say, prints the table, writes the files asked for. Raises DragError before any work."""
    outputs = {
        kind: check_writable(path, suffixes)
        for kind, path, suffixes in (
            ("json", arguments.json, (".json",)),
            ("trace", arguments.trace, (".json",)),
            ("html", arguments.html, (".html", ".htm")),
        )
        if path is not None
    }
    if len({path.resolve() for path in outputs.values()}) < len(outputs):
        raise DragError("--json, --trace and --html must name different files.")
    if not 1 <= arguments.steps <= MAX_STEPS:
        raise DragError(f"--steps must be from 1 to {MAX_STEPS}, not {arguments.steps}.")
    if arguments.engine not in DISSECTED_ENGINES:
        raise DragError(f"profile can cut the step of {', '.join(DISSECTED_ENGINES)}, not of {arguments.engine!r}.")
    set_threads(arguments.threads)
    model = chosen_model(arguments)
    default_points(model.config.resolution, arguments.points)  # refuses what the picture has no room for

    ceilings = floor.ceilings(model.device)
    found = profile(model, arguments.points, arguments.mask, arguments.steps, ceilings, arguments.engine)
    about = machine(model.device)
    print(table(found))
    if "json" in outputs:
        record = {"machine": about, "ceilings": ceilings.to_json(), "rows": found.rows()}
        write(outputs["json"], json.dumps(record, indent=1, allow_nan=False))
    if "html" in outputs:
        write(outputs["html"], profile_page.page(found, about))
    if "trace" in outputs:
        write(
            outputs["trace"],
            json.dumps(trace.record(Subject(model, arguments.points, arguments.mask, arguments.engine))),
        )
    return 0


def chosen_model(arguments: argparse.Namespace) -> Model:
    """The named model, or random config-f weights of --resolution."""
    if arguments.resolution is None:
        return load(DEFAULT_MODEL if arguments.model is None else arguments.model, arguments.device)
    if arguments.model is not None:
        raise DragError("Give either --model or --resolution (random weights of config-f width), not both.")
    return random_model(arguments.resolution, pick_device(arguments.device))


def write(path: Path, content: str) -> None:
    try:
        write_bytes(path, content.encode())
    except OSError as error:
        raise DragError(f"Cannot write {path}: {error.strerror or error}.") from None
    print(f"→ {path}")


def table(found: Profile) -> str:
    """The profile in plain text."""
    lines = [
        f"{found.model}, {found.resolution}×{found.resolution}, {found.points} point(s), mask {found.mask}, engine "
        f"{found.engine}, {found.precision}, {found.device}, {found.threads} threads; medians of {found.steps} steps",
        "",
        f"{'part':<16}{'ms':>10}{'of step':>9}{'GFLOP':>10}{'GB':>9}{'GFLOP/s':>10}{'of ceiling':>12}",
    ]
    lines += [line(part, found.step_ms) for part in found.of(PER_STEP)]
    lines.append(f"{'sum':<16}{found.step_ms:>10.2f}{1:>9.1%}")
    for often, words in ((PER_FRAME, "per frame shown"), (ONCE, "once per picture")):
        lines += ["", words, *(line(part, None) for part in found.of(often))]
    rest = found.of(PER_STEP)[-1]
    ceilings = found.ceilings
    lines += [
        "",
        f"The parts sum to {found.step_ms:.2f} ms; a step without hooks, made in turn with them, takes "
        f"{found.plain_ms:.2f} ms (ratio {found.step_ms / found.plain_ms:.3f}). "
        f"{rest.ms:.2f} ms ({rest.ms / found.step_ms:.1%}) belong to no part: rest.",
        f"Ceilings measured now: {ceilings.gflops():,.0f} GFLOP/s in fp32, {ceilings.gflops('bf16'):,.0f} in bf16; "
        f"{ceilings.gb_per_s():,.0f} GB/s from memory, {ceilings.gb_per_s('llc_'):,.0f} from the last-level cache, "
        f"{ceilings.gb_per_s('cached_'):,.0f} from the cores' own.",
    ]
    return "\n".join(lines)


def line(part: Part, step_ms: float | None) -> str:
    share = percent(part.share) if part.share is not None else "–"
    speed = f"{part.gflop / part.ms * 1e3:.1f}" if part.gflop >= 5e-4 and part.ms else "–"
    return (
        f"{part.name:<16}{part.ms:>10.2f}{f'{part.ms / step_ms:.1%}' if step_ms else '':>9}"
        f"{f'{part.gflop:.3f}' if part.gflop >= 5e-4 else '–':>10}"
        f"{f'{part.gbytes:.4f}' if part.gbytes >= 5e-5 else '–':>9}{speed:>10}{share:>12}"
    )
