"""How long one drag step takes: prints JSON with p20/p50/p80 in milliseconds. Data only; it decides no test.

    python bench/step.py [--model toy-animals] [--steps 60]
    python bench/step.py --random 256      # random weights of config-f width at that resolution

A row is one stage of the same run: "step" (track, supervise, backward, Adam, one truncated synthesis) and
"step + render" (the same, with the full picture after each step).
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import draggan_fast as dg
from draggan_fast.commands import cpu_name

WARM_UP = 5
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
    rows = []
    for name, render in (("step", False), ("step + render", True)):
        # A target that is never reached within the run, so that every step does all of its work.
        session = dg.DragSession(model, seed=0, config=model.drag_config(lr=1e-6))
        session.set_points([(size * 0.4, size * 0.5)], [(size * 0.8, size * 0.4)])
        times = []
        for _ in range(steps + WARM_UP):
            start = time.perf_counter()
            session.step()
            if render:
                session.render()
            times.append((time.perf_counter() - start) * 1e3)
        rows.append(
            {
                "suite": "step",
                "name": name,
                "engine": "reference",
                "model": model.name,
                "resolution": size,
                "points": 1,
                "mask": "none",
                "precision": model.precision,
                **percentiles(times[WARM_UP:]),
                "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
        )
    return rows


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
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
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
