"""Times every op on this GPU: each backend, as eager calls and as replays of a CUDA graph, beside the memory floor.

    python tools/gpu_ops.py [--json FILE]

Feature [1, 256, 128, 128] channels-last, image 1024². The calls take turns over several sets of inputs, more than the
L2 cache holds. The floor is the bytes that an op must move (inputs read once, results written once) over the bandwidth
of a large copy, measured here. tests/test_cuda_ops.py says whether the numbers are right; tools/gpu_run.sh runs both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from draggan_fast import ops

ROOT = Path(__file__).resolve().parent.parent
CHANNELS, CELLS, IMAGE = 256, 128, 1024
R1, R2 = 6, 24  # pixels at 1024²: the defaults 3 and 12 at 512²
CALLS, REPEATS, WARM_UP = 20, 30, 5
Call = Callable[[], object]


def input_sets(dtype: torch.dtype) -> int:
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, 3 * cache // (CHANNELS * CELLS * CELLS * dtype.itemsize) + 1)


def elapsed_ms(run: Call) -> list[float]:
    """Milliseconds of REPEATS runs, by events."""
    for _ in range(WARM_UP):
        run()
    times = []
    for _ in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def copy_bandwidth() -> float:
    """Bytes read plus written per second by a copy far larger than any cache."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / (min(elapsed_ms(lambda: target.copy_(source))) * 1e-3)


def cases(dtype: torch.dtype) -> dict[str, tuple[list[Call], float]]:
    """Name → (a call per set of inputs, the bytes that one must move)."""
    generator = torch.Generator("cuda").manual_seed(0)

    def feature() -> Tensor:
        values = torch.randn(1, CHANNELS, CELLS, CELLS, generator=generator, device="cuda")
        return values.to(dtype).contiguous(memory_format=torch.channels_last)

    def points(count: int) -> Tensor:
        return torch.randint(40, IMAGE - 40, (1, count, 2), generator=generator, device="cuda").float()

    size = (IMAGE, IMAGE)
    features = [feature() for _ in range(input_sets(dtype))]
    movable = torch.zeros(1, IMAGE, IMAGE, device="cuda")
    movable[:, :, IMAGE // 2 :] = 1
    map_bytes = CHANNELS * CELLS * CELLS * dtype.itemsize

    found: dict[str, tuple[list[Call], float]] = {}
    for count in (1, 16):
        handles, targets = points(count), points(count)
        active = torch.ones(1, count, dtype=torch.bool, device="cuda")
        wanted = ops.sample_feature(features[0], targets, size)
        patch, window = (2 * R1 + 1) * CELLS // IMAGE + 3, (2 * R2 + 1) * CELLS // IMAGE + 2
        found[f"motion_supervision, {count} points"] = (
            [partial(ops.motion_supervision, f, handles, targets, active, R1, size) for f in features],
            map_bytes + count * patch**2 * CHANNELS * dtype.itemsize,
        )
        found[f"point_tracking, {count} points"] = (
            [partial(ops.point_tracking, f, wanted, handles, active, R2, size) for f in features],
            count * (window**2 * CHANNELS * dtype.itemsize + CHANNELS * 4),
        )
        found[f"sample_feature, {count} points"] = (
            [partial(ops.sample_feature, f, handles, size) for f in features],
            count * CHANNELS * 4 * (dtype.itemsize + 1),
        )
    # The mask's two extremes: a change of one sign everywhere, and one that is noise (a drag lies in between).
    for kind, start in (
        ("signs agree", lambda f: f - 0.1 * f.roll(1, dims=3).abs()),
        ("signs at random", lambda f: f.roll(1, dims=1)),
    ):
        found[f"mask_loss, half fixed, {kind}"] = (
            [partial(ops.mask_loss, f, start(f), movable, size) for f in features],
            2 * map_bytes / 2 + map_bytes + IMAGE * IMAGE * 4,
        )
    return found


def captured(calls: list[Call]) -> Call:
    """A graph of CALLS calls over the sets of inputs; its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        eager(calls)()
    return graph.replay


def eager(calls: list[Call]) -> Call:
    """As many calls, made one by one."""

    def run() -> None:
        for i in range(CALLS):
            calls[i % len(calls)]()

    return run


def row(name: str, backend: str, timing: str, dtype: torch.dtype, run: Call, moved: float, bandwidth: float) -> dict:
    times = sorted(time / CALLS for time in elapsed_ms(run))
    p20, p50, p80 = (times[round(share * (len(times) - 1))] for share in (0.2, 0.5, 0.8))
    floor = moved / bandwidth * 1e3
    return {
        "suite": "gpu_ops", "name": name, "engine": backend, "timing": timing, "resolution": IMAGE,
        "precision": str(dtype).removeprefix("torch."), "p20_ms": p20, "p50_ms": p50, "p80_ms": p80,
        "bytes": moved, "floor_ms": floor, "share_of_floor": floor / p50, "gb_per_s": moved / p50 * 1e-6,
    }  # fmt: skip


def machine(bandwidth: float) -> dict:
    def output(*command: str) -> str:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return {
        "gpu": torch.cuda.get_device_name(), "capability": list(torch.cuda.get_device_capability()),
        "copy_bytes_per_s": bandwidth, "torch": torch.__version__, "cuda": torch.version.cuda,
        "commit": output("git", "describe", "--always", "--dirty") or "unknown",
        "command": "python tools/gpu_ops.py", "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_ops.py: there is no CUDA GPU here.", file=sys.stderr)
        return 2
    bandwidth = copy_bandwidth()
    rows = []
    print(f"{torch.cuda.get_device_name()}: a copy moves {bandwidth / 1e12:.2f} TB/s")
    print(f"{'op':40}{'dtype':>9} {'backend':>10} {'timing':>7}{'p50 µs':>9}{'p20':>8}{'p80':>8}{'floor':>8}")
    for dtype in (torch.float32, torch.bfloat16):
        for name, (calls, moved) in cases(dtype).items():
            for backend in ops.available_backends(name.split(",")[0], "cuda"):
                with ops.forced_backend(backend):
                    # The reference allocates freely: only the kernels promise that they can be captured.
                    ways = {"eager": eager} if backend == "reference" else {"eager": eager, "graph": captured}
                    for timing, way in ways.items():
                        rows.append(row(name, backend, timing, dtype, way(calls), moved, bandwidth))
                        one = rows[-1]
                        times = "".join(f"{one[key] * 1e3:>8.1f}" for key in ("p20_ms", "p80_ms", "floor_ms"))
                        p50 = f"{one['p50_ms'] * 1e3:>9.1f}"
                        print(f"{name:40}{one['precision']:>9} {backend:>10} {timing:>7}{p50}{times}", flush=True)
    if arguments.json:
        text = json.dumps({"machine": machine(bandwidth), "rows": rows}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
