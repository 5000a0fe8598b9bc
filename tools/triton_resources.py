"""Compiles every Triton kernel ahead of time, without a GPU: prints what each takes in registers, stack, shared memory.

    python tools/triton_resources.py [--sm 75,90] [--dtype float32,bfloat16] [--json FILE]

The launchers themselves run, on CPU tensors and with a stand-in for the GPU's driver, so what is compiled is what a
launch at the default size would compile: the same signatures, specialisations and launch table. The numbers are read
off the binary by the cuobjdump that Triton brings along. A stack means that registers were spilled to memory: exit
code 1 if any kernel has one. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import triton
from draggan_fast.kernels import (
    configs,
    mask_loss,
    modulated_conv_fir_triton,
    modulated_conv_triton,
    motion_supervision,
    point_tracking,
    sample_feature,
)
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

ARCHITECTURES = (75, 80, 86, 89, 90)
DTYPES = ("float32", "bfloat16", "float16")


class StandInDriver:
    """As much of a GPU driver as compiling asks for. Each architecture is a device of its own number."""

    def __init__(self, sm: int) -> None:
        self.sm = sm

    def get_current_device(self) -> int:
        return self.sm

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.sm, 32)


def launch_everything(dtype: torch.dtype) -> None:
    """Calls every launcher once, at the size the default settings have at 1024² (16 points)."""
    channels, cells, size, points = 256, 128, 1024, 16
    feature = torch.empty(1, channels, cells, cells, dtype=dtype).to(memory_format=torch.channels_last)
    handles, active = torch.zeros(1, points, 2), torch.ones(1, points, dtype=torch.bool)
    reference = torch.empty(1, points, channels)
    sample_feature.sample_feature(feature, handles, (size, size))
    point_tracking.point_tracking(feature, reference, handles, active, 24, (size, size))
    motion_supervision.motion_supervision(feature, handles, handles, active, 6, (size, size))
    mask_loss.mask_loss(feature, feature, torch.empty(1, size, size), (size, size))

    def map_of(rows: int, columns: int) -> torch.Tensor:
        return torch.empty(1, channels, rows, columns, dtype=dtype).to(memory_format=torch.channels_last)

    half, taps = cells // 2, (1.0, 3.0, 3.0, 1.0)
    phases = tuple(map_of(half + i, half + j) for i in (1, 0) for j in (1, 0))
    factors, noise, bias = torch.ones(1, channels), torch.empty(cells, cells), torch.empty(channels)
    forward, backward = (factors, noise, bias, factors, 1.0, 256.0), (factors, noise, bias, 1.0, 256.0)
    modulated_conv_triton.activate(feature, *forward)
    modulated_conv_triton.activate_backward(feature, factors, feature, *backward)
    modulated_conv_fir_triton.fir_activate(phases, taps, *forward)
    modulated_conv_fir_triton.activate_backward_fir(feature, factors, feature, *backward, taps)


def resources(kernel: object) -> dict[str, int]:
    """Registers per thread, stack bytes per thread, and shared memory of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])  # type: ignore[attr-defined]
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return {
        "registers": int(found["REG"]),
        "stack_bytes": int(found["STACK"]) + int(found["LOCAL"]),
        "shared_bytes": kernel.metadata.shared,  # type: ignore[attr-defined]
        "num_warps": kernel.metadata.num_warps,  # type: ignore[attr-defined]
    }


def compile_all(architectures: tuple[int, ...], dtypes: tuple[str, ...]) -> list[dict[str, object]]:
    """One row per kernel, architecture and dtype. Launches nothing; the launchers are left unusable afterwards."""
    rows: dict[tuple[str, int, str], dict[str, object]] = {}
    place: list[tuple[int, str]] = []
    compiling: Callable = JITFunction.run

    def compile_only(self: JITFunction, *args: object, grid: object, warmup: bool, **options: object) -> None:
        kernel = compiling(self, *args, grid=grid, warmup=True, **options)
        sm, dtype = place[-1]
        name = self.fn.__name__
        rows[name, sm, dtype] = {"kernel": name, "sm": sm, "dtype": dtype, **resources(kernel)}

    JITFunction.run = compile_only  # type: ignore[method-assign, assignment]
    for sm in architectures:
        driver.set_active(StandInDriver(sm))  # type: ignore[arg-type]
        configs.architecture = lambda device, sm=sm: sm  # type: ignore[assignment, misc]
        configs.launch.cache_clear()
        for dtype in dtypes:
            place.append((sm, dtype))
            launch_everything(getattr(torch, dtype))
    return [rows[key] for key in sorted(rows)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sm", default=",".join(map(str, ARCHITECTURES)), help="compute capabilities, as 75,90")
    parser.add_argument("--dtype", default=",".join(DTYPES), help="feature dtypes, as float32,bfloat16")
    parser.add_argument("--json", type=Path, help="write the table here, too")
    arguments = parser.parse_args()
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing.")
    rows = compile_all(tuple(map(int, arguments.sm.split(","))), tuple(arguments.dtype.split(",")))
    print(f"{'kernel':24}{'sm':>4}  {'dtype':10}{'registers':>10}{'stack B':>9}{'shared B':>10}{'warps':>7}")
    for row in rows:
        print(
            "{kernel:24}{sm:>4}  {dtype:10}{registers:>10}{stack_bytes:>9}{shared_bytes:>10}{num_warps:>7}".format(
                **row
            )
        )
    if arguments.json:
        record = {
            "command": "python tools/triton_resources.py",
            "date": datetime.date.today().isoformat(),
            "triton": triton.__version__,
            "torch": torch.__version__,
            "case": "feature [1, 256, 128, 128] channels-last, image 1024², 16 points, r1 6, r2 24",
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if any(row["stack_bytes"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
