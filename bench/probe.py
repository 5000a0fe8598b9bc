"""One mode in a process of its own, for the suites ``startup`` and ``memory``: prints one line of JSON.

    python -m draggan_fast.bench.probe '{"engine": "reference", "model": "toy-animals", …}'

Nothing heavy is imported before the clock runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from draggan_fast.errors import DragError

MB = 1e6


def probe(
    engine: str,
    model: str,
    precision: str = "fp32",
    points: int = 1,
    mask: str = "none",
    steps: int = 2,
    picture: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    shown: bool = False,
) -> dict[str, Any]:
    """The mode ``engine`` … ``mask``, measured in a fresh interpreter. Raises DragError if it fails there.

    picture: the full picture after each step too. shown: the picture is drawn before the first step, as a user sees it
    before putting points on it (the published program has none by then). The result has model, resolution; import_ms,
    load_ms, first_picture_ms (the session, weights packed, and that picture), first_step_ms, to_first_step_ms (their
    sum), warm_step_ms (the last of ``steps``); baseline_mb: resident after the import; loaded_mb: with the network;
    peak_mb: the most from there on (of the GPU's memory if the device is one); host_peak_mb: of the process. None
    where the system does not tell.
    """
    spec = dict(locals())
    command = [sys.executable, "-m", "draggan_fast.bench.probe", json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if done.returncode == -9:
            last = "it was killed, as Linux does when memory runs out"
        sentence = last.partition("DragError: ")[2] or last
        raise DragError(f"{engine} on {model} failed in its own process: {sentence}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def fresh_baseline_mb() -> float | None:
    """What a process holds that has imported torch and draggan_fast and done nothing yet; None where the system does
    not tell. (This one may have imported far more.)"""
    code = "import draggan_fast.bench.probe as p, torch, draggan_fast; draggan_fast.load; print(p.resident_mb())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    try:
        return float(done.stdout)
    except ValueError:
        return None


def resident_mb() -> float | None:
    """What of this process is in memory now."""
    return status_mb("VmRSS")


def peak_resident_mb() -> float | None:
    """The most that was, since the start or the last ``reset_peak``.

    subtle: not getrusage's ru_maxrss, which a child inherits from the process that started it.
    """
    return status_mb("VmHWM")


def status_mb(name: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / MB for line in lines if line.startswith(f"{name}:")), None)


def reset_peak() -> bool:
    """Forgets the peak so far (Linux); whether that worked."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def measured(spec: dict[str, Any]) -> dict[str, Any]:
    """What ``probe`` returns, in this very process."""
    began = time.perf_counter()
    import torch

    from draggan_fast import DragSession, load  # noqa: F401 (what a user imports)

    imported = time.perf_counter()
    from draggan_fast.command_common import set_threads

    from .engines import BASELINE
    from .options import model_named
    from .workloads import crawling_drag

    set_threads(spec["threads"])
    device = torch.device(spec["device"])
    found: dict[str, Any] = {"import_ms": (imported - began) * 1e3, "baseline_mb": resident_mb()}

    before = time.perf_counter()
    model = model_named(spec["model"], device)
    synchronise(device)
    found["load_ms"] = (time.perf_counter() - before) * 1e3
    found["loaded_mb"] = resident_mb()
    found["model"] = model.name
    found["resolution"] = model.config.resolution
    reset_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    before = time.perf_counter()
    drag = crawling_drag(model, spec["engine"], spec["precision"], spec["points"], spec["mask"])
    if spec["shown"] and spec["engine"] != BASELINE:
        drag.picture()
    synchronise(device)
    found["first_picture_ms"] = (time.perf_counter() - before) * 1e3

    before = time.perf_counter()
    for index in range(spec["steps"]):
        drag.step()
        if spec["picture"]:
            drag.picture()
        synchronise(device)
        found["first_step_ms" if index == 0 else "warm_step_ms"] = (time.perf_counter() - before) * 1e3
        before = time.perf_counter()
    found["to_first_step_ms"] = found["first_picture_ms"] + found["first_step_ms"]
    found["host_peak_mb"] = found["peak_mb"] = peak_resident_mb()
    if device.type == "cuda":
        found["peak_mb"] = torch.cuda.max_memory_allocated(device) / MB
    return found


def synchronise(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.argv[1]))))
