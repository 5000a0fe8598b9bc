"""How long one drag step takes, beside the published program in the same run: prints JSON. It decides no test.

    python bench/step.py [--model toy-animals] [--steps 40]
    python bench/step.py --random 256      # random weights of config-f width at that resolution

The rows take turns, step by step, so that a machine that slows down slows all of them. "step" is one truncated
synthesis, tracking, supervision, backward and Adam; "step + picture" has the full picture too, which the published
program always makes.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from draggan_fast.bench.published import PublishedDrag

import draggan_fast as dg
from draggan_fast.command_common import set_threads
from draggan_fast.commands import cpu_name

WARM_UP = 2
CONFIG_F = (512, 512, 512, 512, 512, 256, 128, 64, 32)  # channels of the published 1024² network, 4×4 first


def random_model(resolution: int) -> dg.Model:
    """A network of config-f width with random weights: the right cost, not a picture."""
    torch.manual_seed(0)
    blocks = resolution.bit_length() - 2
    config = dg.GeneratorConfig(
        resolution=resolution, z_dim=512, w_dim=512, channels=CONFIG_F[:blocks], mapping_widths=(512,) * 8
    )
    generator = dg.Generator(config).eval().freeze()
    return dg.Model(
        f"random-{resolution}", f"random-{resolution}", generator, "", "random", {}, torch.device("cpu"), "fp32"
    )


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    return {f"p{p}_ms": round(float(np.percentile(milliseconds, p)), 3) for p in (20, 50, 80)}


def measure(model: dg.Model, steps: int) -> list[dict[str, Any]]:
    size = model.config.resolution
    # A crawling step size: the target is never reached, so that every step does all of its work.
    config = model.drag_config(lr=1e-6)
    handle, target = (round(size * 0.4), round(size * 0.5)), (round(size * 0.8), round(size * 0.4))
    sessions = [dg.DragSession(model, seed=0, config=config) for _ in range(2)]
    for session in sessions:
        session.set_points([handle], [target])
    published = PublishedDrag(model, sessions[0].w0, [handle], [target], config)

    def with_picture() -> None:
        sessions[1].render()
        sessions[1].step()

    variants: list[tuple[str, str, Callable[[], Any]]] = [
        ("published", "step + picture", published.step),
        ("reference", "step", sessions[0].step),
        ("reference", "step + picture", with_picture),
    ]
    times: list[list[float]] = [[] for _ in variants]
    for index in range(steps + WARM_UP):
        for variant, (_, _, run) in enumerate(variants):
            start = time.perf_counter()
            run()
            if index >= WARM_UP:
                times[variant].append((time.perf_counter() - start) * 1e3)
    baseline = float(np.median(times[0]))
    return [
        {
            "suite": "step",
            "name": name,
            "engine": engine,
            "model": model.name,
            "resolution": size,
            "points": 1,
            "mask": "none",
            "precision": model.precision,
            **percentiles(times[variant]),
            "ratio_to_published": round(baseline / float(np.median(times[variant])), 3),
        }
        for variant, (engine, name, _) in enumerate(variants)
    ]


def commit() -> str:
    root = Path(__file__).resolve().parent.parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy-animals")
    parser.add_argument("--random", type=int, metavar="RESOLUTION", help="random config-f weights instead of a model")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    model = random_model(arguments.random) if arguments.random else dg.load(arguments.model, device="cpu")
    result = {
        "machine": {
            "cpu": cpu_name(),
            "vector instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "draggan_fast": dg.__version__,
            "commit": commit(),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        "rows": measure(model, arguments.steps),
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
