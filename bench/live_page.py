"""How fast the page feels: from a pointer's move to the painted frame that shows it, in headless Chromium on loopback.

    python -m draggan_fast.bench.live_page --json bench/results/2026-11-25_live_page_cpu.json
    python -m draggan_fast.bench.live_page --soak 10 --json …   what is held after minutes of random gestures

A server of its own, a browser of its own; real pointer moves at 60 a second, in circles around where the pointer was
pressed. For the soak Playwright drives the browser, otherwise nobody looks into it (``devtools``). The page itself
takes the times: ``performance.now()`` in the handler of each move, and in the animation frame
in which the first frame with the move's stamp or a later one was drawn. What the screen takes after that is not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import time
from typing import Any

from draggan_fast import DragError
from draggan_fast.atomic import write_bytes
from draggan_fast.command_common import check_writable

from .browser import LivePage, LiveServer, Point, browser, find_chromium
from .devtools import PlainLivePage, plain_browser
from .machine import machine
from .page_soak import Soak

MOVES_PER_SECOND = 60
# Where to press on which picture, and how far the pointer goes round.
GESTURES: tuple[tuple[str, int, Point, float], ...] = (
    ("ear", 29, (44, 32), 9),
    ("nose", 29, (63, 80), 7),
    ("ear", 22, (50, 24), 9),
    ("chin", 8, (64, 100), 7),
    ("mouth", 18, (60, 92), 6),
)
# Keeps what each painted frame says, for the gesture that is going on.
LISTEN = """() => {
    const element = document.querySelector('drag-canvas');
    window.shots = [];
    element.addEventListener('frame', ({ detail }) => window.shots.push({
        at: performance.now(), latency: detail.latency, step: detail.step, running: detail.running,
        preview: detail.preview, times: { ...detail.times, paint: performance.now() - detail.received },
    }));
}"""


def percentile(values: list[float], share: float) -> float | None:
    """By nearest rank; None without values."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)] if values else None


def pull_round(live: LivePage, start: Point, radius: float, seconds: float) -> None:
    """Presses, pulls out and goes round for so long at an even pace, releases."""
    (left, top), (right, bottom) = live.at((0, 0)), live.at((100, 100))
    scale = ((right - left) / 100, (bottom - top) / 100)

    def move(x: float, y: float) -> None:
        live.page.mouse.move(left + x * scale[0], top + y * scale[1])

    move(*start)
    live.page.mouse.down()
    begin = time.perf_counter()
    index = 0
    while (now := time.perf_counter() - begin) < seconds:
        out = min(now / 0.5, 1) * radius
        angle = math.pi + 2 * math.pi * now / 4
        move(start[0] + out * math.cos(angle), start[1] + out * math.sin(angle))
        index += 1
        time.sleep(max(index / MOVES_PER_SECOND - (time.perf_counter() - begin), 0))
    live.page.mouse.up()


def measure(live: LivePage, seconds: float) -> list[dict[str, Any]]:
    """One row a gesture, then one over all of them."""
    rows, every = [], []
    live.page.evaluate(LISTEN)
    for name, seed, start, radius in GESTURES:
        live.element(f"element.create({{ seed: {seed} }})")
        live.until(f"element.session.seed === {seed} && element.status.step === 0")
        time.sleep(0.5)
        live.page.evaluate("() => { window.shots.length = 0; }")
        begin = live.page.evaluate("() => performance.now()")
        pull_round(live, start, radius, seconds)
        end = live.page.evaluate("() => performance.now()")
        shots = [shot for shot in live.page.evaluate("() => window.shots") if shot["at"] <= end]
        every.append((shots, end - begin))
        rows.append({"gesture": name, "seed": seed, **summary([(shots, end - begin)])})
        live.until_rest(60)
    return [*rows, {"gesture": "all", "seed": None, **summary(every)}]


def summary(parts: list[tuple[list[dict[str, Any]], float]]) -> dict[str, Any]:
    shots = [shot for part, _ in parts for shot in part]
    milliseconds = sum(time_taken for _, time_taken in parts)
    latency = [value for shot in shots for value in shot["latency"]]
    stages = {
        stage: rounded(statistics.median(values)) if (values := [shot["times"][stage] for shot in shots]) else None
        for stage in ("step", "render", "encode", "wait", "sinceStamp", "paint")
    }
    steps = sum(part[-1]["step"] - part[0]["step"] for part, _ in parts if part)
    return {
        "moves": len(latency),
        "pointer_to_paint_p50_ms": rounded(percentile(latency, 0.5)),
        "pointer_to_paint_p95_ms": rounded(percentile(latency, 0.95)),
        "pointer_to_paint_max_ms": rounded(max(latency, default=None)),
        "painted_frames": len(shots),
        "painted_frames_per_s": rounded(1000 * len(shots) / milliseconds),
        "steps_per_s": rounded(1000 * steps / milliseconds),
        "previews": sum(shot["preview"] for shot in shots),
        "medians_ms": stages,
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        prog="draggan_fast.bench.live_page", description=(__doc__ or "").split("\n\n")[0]
    )
    arguments.add_argument("--model", default="toy-animals", metavar="NAME|PATH")
    arguments.add_argument("--threads", type=int, metavar="N", help="of the server (default: all)")
    arguments.add_argument("--seconds", type=float, default=8.0, help="each gesture (default 8)")
    arguments.add_argument("--fps", type=int, help="frames a second to ask for (default: what the element asks for)")
    arguments.add_argument("--size", default="1280x800", metavar="WxH", help="of the window (default 1280x800)")
    arguments.add_argument("--soak", type=float, metavar="MINUTES", help="random gestures instead, for so long")
    arguments.add_argument("--json", metavar="FILE", help="write the record there")
    return arguments


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record: machine, request and rows. Raises DragError where there is no browser or no server."""
    try:
        width, height = (int(side) for side in arguments.size.split("x"))
    except ValueError:
        raise DragError(f"--size must look like 1280x800, not {arguments.size!r}.") from None
    if arguments.soak is not None and not 0 < arguments.soak <= 24 * 60:
        raise DragError(f"--soak takes minutes, above 0 and up to a day, not {arguments.soak:g}.")
    threads = [] if arguments.threads is None else ["--threads", str(arguments.threads)]
    with LiveServer(["--model", arguments.model, *threads]) as server, contextlib.ExitStack() as stack:
        if arguments.soak is None:
            page, version = stack.enter_context(plain_browser(width, height))
            live: LivePage = PlainLivePage(page, server.url)
        else:
            chromium = stack.enter_context(browser())
            live = LivePage(chromium.new_page(viewport={"width": width, "height": height}), server.url)
            version = chromium.version
        live.open()
        if arguments.fps:
            live.element(f"element.connection.send('view', {{ fps: {arguments.fps} }})")
        session = live.element("element.session")
        load = os.getloadavg()[0]  # of the last minute, before anything was pulled at
        time.sleep(2)  # thumbnails
        if arguments.soak is None:
            rows = measure(live, arguments.seconds)
        else:
            assert server.process is not None
            rows = [Soak(live, server.process.pid).run(arguments.soak)]
        return {
            "machine": machine(),
            "request": {
                "suite": "live_page" if arguments.soak is None else "page_soak",
                "model": session["model"], "engine": session["engine"],
                "precision": session["precision"], "size": arguments.size, "seconds": arguments.seconds,
                "moves_per_second": MOVES_PER_SECOND, "view": live.element("element.view"), "fps": arguments.fps,
                "threads": arguments.threads, "browser": version,
                "format": live.element("element.frame.picture.type || 'raw'"),  # of frames
                "browser_program": os.path.basename(find_chromium() or ""),
                "priority": os.getpriority(os.PRIO_PROCESS, 0),  # of the server too, and at best of the browser
                "load_average_before": round(load, 2), "load_average_after": round(os.getloadavg()[0], 2),
            },
            "rows": rows,
        }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        out = check_writable(arguments.json) if arguments.json else None
        record = run(arguments)
        for row in record["rows"]:
            if arguments.soak is not None:
                grown = ", ".join(f"{name} × {factor}" for name, factor in row["growth"].items())
                print(f"{sum(row['gestures'].values())} gestures, {len(row['console_errors'])} console errors; {grown}")
                continue
            where = row["gesture"] if row["seed"] is None else f"{row['gesture']} of {row['seed']}"
            print(
                f"{where:12} p50 {row['pointer_to_paint_p50_ms']} ms, p95 {row['pointer_to_paint_p95_ms']} ms, "
                f"{row['painted_frames_per_s']} frames/s, {row['steps_per_s']} steps/s"
            )
        if out is not None:
            write_bytes(out, (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    except DragError as error:
        print(f"live_page: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
