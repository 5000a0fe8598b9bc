"""The machine's measured ceilings: how fast it multiplies, convolves, moves memory and launches an operator.

Nothing here knows about dragging. Every other measurement can say by these numbers which share of what the machine
could do it reaches. A ceiling is the best of several readings, since noise only ever makes a reading worse; the
percentiles say how far the usual reading lies below it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from draggan_fast.loading import pick_device

from ..rows import row
from ..timing import alternate, summary

REPEATS, WARM_UP = 9, 2
# Bytes of each of two buffers: the first level fits one core's second-level cache, the next the last-level cache (of
# which a virtual machine's share is far less than it reports).
CACHE_LEVELS = {"cached_": 1 << 20, "llc_": 16 << 20}
LARGE_BYTES = (256 << 20, 1 << 30)  # least and most of each buffer that has to come from memory
LAUNCHES = 1000
# Side of the square product; batch, channels and resolution of the convolution. They fill the device for milliseconds.
CPU_SIZES, CUDA_SIZES = (1536, 1, 512, 64), (8192, 32, 512, 64)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
GPU_PRECISIONS = {**PRECISIONS, "fp16": torch.float16}
EMULATED_SHARE = (
    4  # of the sides, where a CPU only emulates a precision: it is twenty times as slow, and no one's choice
)


@dataclass(frozen=True)
class Reading:
    """One quantity read several times. best: the ceiling, in ``unit``; work: what one reading did, in GFLOP, GB or
    operators; summary: percentiles of its times in ms and their noise, as ``timing.summary`` gives them."""

    unit: str
    best: float
    work: float
    summary: dict[str, float]

    @classmethod
    def rate(cls, unit: str, work: float, milliseconds: list[float]) -> Reading:
        """Work per second."""
        return cls(unit, work / min(milliseconds) * 1e3, work, summary(milliseconds))


@dataclass(frozen=True)
class Ceilings:
    """What one device reaches at most.

    readings: ``matmul_*`` and ``conv_*`` in GFLOP/s (a multiply-add is two), a large square product and a 3×3
    convolution per precision; ``copy``, ``read``, ``fill`` in GB/s of buffers of ``large_bytes`` each, far above the
    caches, and the same in ``llc_*`` (16 MiB, last-level cache) and ``cached_*`` (1 MiB); a copy counts what it reads
    and what it writes; ``launch`` in µs that the host spends on one tiny operator.
    """

    device: str
    threads: int
    large_bytes: int
    readings: dict[str, Reading]

    def gflops(self, precision: str = "fp32") -> float:
        """The best GFLOP/s of this precision, by whichever of the two workloads reaches more."""
        found = [
            self.readings[key].best for kind in ("matmul", "conv") if (key := f"{kind}_{precision}") in self.readings
        ]
        return max(found) if found else math.inf  # float16 on a CPU: no ceiling is known, so it bounds nothing

    def gb_per_s(self, level: str = "") -> float:
        """The best GB/s of a level: "" = memory, "llc_", "cached_"; of copy, read and fill whichever moves most."""
        return max(self.readings[level + kind].best for kind in ("copy", "read", "fill"))

    def level(self, nbytes: float) -> str:
        """The nearest level whose two buffers were as large as that traffic; "" = memory."""
        return next((name for name, size in CACHE_LEVELS.items() if nbytes <= 2 * size), "")

    def least_seconds(self, flop: float, nbytes: float, precision: str = "fp32") -> float:
        """The roofline: no code on this device does that work in less time."""
        return max(flop / self.gflops(precision), nbytes / self.gb_per_s(self.level(nbytes))) / 1e9

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def ceilings(device: str | torch.device = "auto", threads: int | None = None, repeats: int = REPEATS) -> Ceilings:
    """Measures the device: a few seconds on two cores.

    threads: CPU threads during the measurement, None = as torch is set.  repeats: readings of each quantity.
    Raises DragError if there is no such device.
    """
    picked = pick_device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            large = large_buffer_bytes(picked)
            readings = compute_readings(picked, repeats)
            for level, size in (("", large), *CACHE_LEVELS.items()):
                readings |= traffic_readings(picked, repeats, size, level)
            readings["launch"] = launch_reading(picked, repeats)
            return Ceilings(str(picked), torch.get_num_threads(), large, readings)
    finally:
        torch.set_num_threads(before)


def compute_readings(device: torch.device, repeats: int) -> dict[str, Reading]:
    """matmul_* and conv_*."""
    side, batch, channels, resolution = CUDA_SIZES if device.type == "cuda" else CPU_SIZES
    work: dict[str, tuple[float, Callable[[], Any]]] = {}
    for name, dtype in (GPU_PRECISIONS if device.type == "cuda" else PRECISIONS).items():
        if device.type == "cpu" and name == "bf16" and not torch.cpu._is_avx512_bf16_supported():
            side, resolution = side // EMULATED_SHARE, resolution // EMULATED_SHARE
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        product = torch.empty_like(a)
        work[f"matmul_{name}"] = 2 * side**3, matmul_into(a, b, product)
        x = torch.randn(batch, channels, resolution, resolution, device=device, dtype=dtype)
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        work[f"conv_{name}"] = 2 * batch * channels**2 * 9 * resolution**2, convolution(x, weight)
    times = alternate([run for _, run in work.values()], repeats, WARM_UP, device)
    return {
        name: Reading.rate("GFLOP/s", flop / 1e9, milliseconds)
        for (name, (flop, _)), milliseconds in zip(work.items(), times, strict=True)
    }


def matmul_into(a: Tensor, b: Tensor, out: Tensor) -> Callable[[], Any]:
    return lambda: torch.mm(a, b, out=out)


def convolution(x: Tensor, weight: Tensor) -> Callable[[], Any]:
    return lambda: F.conv2d(x, weight, padding=1)


def traffic_readings(device: torch.device, repeats: int, size: int, level: str) -> dict[str, Reading]:
    """copy, read, fill of float32 buffers of ``size`` bytes, so often per reading that 64 MiB are passed over."""
    rounds = max((64 << 20) // size, 1)
    source = torch.ones(size // 4, device=device)
    destination = torch.zeros_like(source)

    def repeated(once: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(rounds):
                once()

        return run

    work: dict[str, tuple[int, Callable[[], Any]]] = {
        "copy": (2 * size, lambda: destination.copy_(source)),
        "read": (size, source.sum),
        "fill": (size, lambda: destination.fill_(1.0)),
    }
    times = alternate([repeated(once) for _, once in work.values()], repeats, WARM_UP, device)
    return {
        level + name: Reading.rate("GB/s", rounds * moved / 1e9, milliseconds)
        for (name, (moved, _)), milliseconds in zip(work.items(), times, strict=True)
    }


def launch_reading(device: torch.device, repeats: int) -> Reading:
    """µs of host time per operator on one element: what Python and the dispatcher cost, whatever the work."""
    one = torch.ones(1, device=device)
    out = torch.empty_like(one)
    milliseconds = []
    for _ in range(repeats + WARM_UP):
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # an empty queue: the host must not wait for room in it
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            torch.add(one, one, out=out)
        milliseconds.append((time.perf_counter() - start) * 1e3)
    counted = milliseconds[WARM_UP:]
    return Reading("µs", min(counted) * 1e3 / LAUNCHES, LAUNCHES, summary(counted))


def large_buffer_bytes(device: torch.device) -> int:
    """Twice the last-level cache where that is known, within bounds and within an eighth of the memory."""
    least, most = LARGE_BYTES
    if device.type == "cuda":
        return most
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = min(max(2 * last_level_cache_bytes(), least), most)
    return max(min(wanted, memory // 8), 64 << 20) // 4096 * 4096


def last_level_cache_bytes() -> int:
    """Of the first CPU, as the kernel reports it; 0 where it does not."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text[:-1].isdigit():
            sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1], 0))
    return max(sizes)


def rows(options: Any) -> list[dict[str, Any]]:
    """The suite's rows. options: anything with ``device`` and ``threads`` (see ``ceilings``)."""
    from ..against import ceilings as once_a_run  # late: it imports this module

    found = once_a_run(str(options.device), options.threads)
    return [reading_row(name, reading, found.threads) for name, reading in found.readings.items()]


def reading_row(name: str, reading: Reading, threads: int) -> dict[str, Any]:
    precision = name.rpartition("_")[2]
    values: dict[str, Any] = {
        "precision": precision if precision in GPU_PRECISIONS else None,
        "threads": threads,
        "repeats": REPEATS,
        **reading.summary,
    }
    if reading.unit == "GFLOP/s":
        values |= {"gflop": reading.work, "gflops_per_s": reading.best}
    elif reading.unit == "GB/s":
        values |= {"gbytes": reading.work, "gb_per_s": reading.best}
    else:
        values |= {"note": f"{reading.best:.2f} µs an operator, {LAUNCHES} of them timed together"}
    return row("floor", name, **values)
