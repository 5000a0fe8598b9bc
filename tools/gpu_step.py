"""Times the captured step of the fast engine on this GPU: replays alone, steps of a session, and steps without a graph.

    python tools/gpu_step.py [--resolution 256,512,1024] [--json FILE]

Networks of the published width with random weights; 1 and 16 points, with a mask and without, in every precision, and
without a mask also computed whole, which says whether crops pay on this GPU. ``replay``: the GPU's time of one replay,
of many back to back; ``run``: a session's run(), the host included, results read one step late; ``step``: one step()
and its result, what a caller waits for; ``eager``: the same without a graph (DRAGGAN_FAST_GRAPH=off).
tests/test_cuda_steps.py says whether the numbers are right; tools/gpu_run.sh runs both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from draggan_fast.bench.engines import ENGINES, FAST, start_latent
from draggan_fast.bench.machine import machine
from draggan_fast.bench.rows import row
from draggan_fast.bench.timing import summary, timed
from draggan_fast.bench.workloads import crawling_config, default_points, mask_named, random_model

from draggan_fast import DragSession, graphs, static_step

POINTS, MASKS = (1, 16), ("none", "half")
REPLAYS, REPEATS, WARM_UP = 20, 30, 3
Case = tuple[str, int, str, str]  # precision, points, mask, crops or whole


def cases(device: torch.device) -> Iterator[Case]:
    for precision in ENGINES[FAST].served(device):
        for mask in MASKS:
            for points in POINTS:
                for way in ("crops", "whole") if mask == "none" else ("whole",):
                    yield precision, points, mask, way


def new_session(model, precision: str, points: int, mask: str) -> DragSession:
    model = dataclasses.replace(model, precision=precision)
    session = DragSession(model, w=start_latent(model), config=crawling_config(model, engine=FAST))
    session.set_points(*default_points(model.config.resolution, points))
    session.set_mask(mask_named(mask, model.config.resolution))
    return session


def times(run: Callable[[], object], device: torch.device, calls: int = 1) -> list[float]:
    """Milliseconds of one of ``calls`` calls that ``run`` makes, by the device's clock."""
    for _ in range(WARM_UP):
        run()
    return [timed(run, device) / calls for _ in range(REPEATS)]


def waited(run: Callable[[], object], calls: int = 1) -> list[float]:
    """The same by the host's clock: ``run`` returns when its results are there."""
    for _ in range(WARM_UP):
        run()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        found.append((time.perf_counter() - start) * 1e3 / calls)
    return found


def measured(model, case: Case) -> Iterator[dict]:
    """The rows of one case. ``whole``: as if crops were never less work."""
    precision, points, mask, way = case
    device = model.device
    first_block = static_step.first_block
    if way == "whole":
        static_step.first_block = lambda *_: None
    try:
        session = new_session(model, precision, points, mask)
        session.step()
        (plan, captured), *_ = reversed(session._engine.captured.items())
        if mask == "none" and (plan.first_on_crops is None) != (way == "whole"):
            return  # crops are not less work here: nothing to compare
        captured_replay = captured._replay

        def replays() -> None:
            for _ in range(REPLAYS):
                captured_replay()

        found = {
            "replay": times(replays, device, REPLAYS),
            "run": waited(lambda: session.run(REPLAYS), REPLAYS),
            "step": waited(session.step),
        }
        session.may_capture, session._steps = False, None
        if way == "crops" or mask != "none":  # without a graph the session chooses by itself
            found["eager"] = waited(session.step)
    finally:
        static_step.first_block = first_block
    for name, milliseconds in found.items():
        yield row(
            "gpu_step", f"{name}, {way}", engine=FAST, model=model.name, resolution=model.config.resolution,
            points=points, mask=mask, precision=precision, repeats=REPEATS, **summary(milliseconds),
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--resolution", default="256,512,1024", help="sizes of the networks, as 256,1024")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_step.py: there is no CUDA GPU here.", file=sys.stderr)
        return 2
    device, rows = torch.device("cuda"), []
    print(f"{torch.cuda.get_device_name()}; {graphs.about(device)}")
    print(f"{'picture':>8} {'precision':>9} {'points':>6} {'mask':>5}  {'what':15}{'p50 ms':>9}{'p20':>9}{'p80':>9}")
    for resolution in map(int, arguments.resolution.split(",")):
        model = random_model(resolution, device)
        for case in cases(device):
            for one in measured(model, case):
                rows.append(one)
                values = "".join(f"{one[key]:>9.3f}" for key in ("p50_ms", "p20_ms", "p80_ms"))
                where = f"{resolution:>8} {one['precision']:>9} {one['points']:>6} {one['mask']:>5}"
                print(f"{where}  {one['name']:15}{values}", flush=True)
    if arguments.json:
        text = json.dumps({"machine": machine(device), "rows": rows}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
