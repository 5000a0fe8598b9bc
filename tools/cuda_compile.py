"""Compiles every csrc/cuda/*.cuh with nvcc, without a GPU and without torch, and prints what each kernel takes.

    python tools/cuda_compile.py [--json bench/results/DATE_cuda_resources.json]

One nvcc call per op, for all GPU generations; warnings are errors. A row of the table is a kernel, a dtype and a
generation: registers per thread, bytes of stack, spilled to memory, and shared per block.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "csrc" / "cuda"
ARCHITECTURES = (75, 80, 86, 89, 90)  # Turing, A100, Ampere, Ada, Hopper
OPS = tuple(sorted(path.stem for path in FOLDER.glob("*.cuh") if path.stem != "common"))
DTYPES = {"float": "float32", "__half": "float16", "__nv_bfloat16": "bfloat16"}
FLAGS = ("-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v")

UNIT = """
#include "{op}.cuh"
struct Launch {{
  template <typename Kernel, typename Params>
  void operator()(Kernel kernel, int64_t blocks, int threads, const Params& params) const {{
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads)>>>(params);
  }}
}};
namespace draggan {{
namespace cuda {{
{instances}
}}
}}
"""
ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
MANGLED = re.compile(r"cuda\d+(\w+?_kernel)I(f|6__half|13__nv_bfloat16)(?:Li(\d+)E)?E")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


class Resources(NamedTuple):
    """What one kernel takes on one generation of GPUs. Bytes, but for registers (per thread)."""

    op: str
    kernel: str
    dtype: str
    vector: int  # elements per store; 1 where the kernel has no such parameter
    architecture: int
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


def nvcc_version(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V([\d.]+)", text)
    return found.group(1) if found else "unknown"


def translation_unit(op: str) -> str:
    """The op's .cuh with its kernels asked for in every dtype."""
    params = "".join(word.capitalize() for word in op.split("_")) + "Params"
    instances = [f"template void launch_{op}<{t}, Launch>(const {params}<{t}>&, const Launch&);" for t in DTYPES]
    return UNIT.format(op=op, instances="\n".join(instances))


def parse(op: str, report: str) -> list[Resources]:
    """The rows of ptxas' report: for each entry function a line of names, one of spills, one of registers."""
    rows = []
    name: re.Match[str] | None = None
    stack: re.Match[str] | None = None
    for line in report.splitlines():
        name = ENTRY.search(line) or name
        stack = STACK.search(line) or stack
        used = USED.search(line)
        if used is None or name is None or stack is None:
            continue
        kernel = MANGLED.search(name.group(1))
        if kernel is None:
            raise ValueError(f"This kernel's name was not understood: {name.group(1)}.")
        shared = SHARED.search(line)
        dtype = {"f": "float32", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}[kernel.group(2)]
        rows.append(
            Resources(
                op, kernel.group(1), dtype, int(kernel.group(3) or 1), int(name.group(2)), int(used.group(1)),
                *(int(n) for n in stack.groups()), int(shared.group(1)) if shared else 0,
            )
        )  # fmt: skip
        name = stack = None
    return sorted(rows)


def compile_op(op: str, nvcc: str = "nvcc", architectures: Iterable[int] = ARCHITECTURES) -> list[Resources]:
    """Compiles one op for the architectures and returns what its kernels take.

    Raises RuntimeError with nvcc's own words if it finds an error, or a warning.
    """
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / f"{op}.cu"
        source.write_text(translation_unit(op), encoding="utf-8")
        command = [nvcc, *FLAGS, *targets, f"-I{FOLDER}", "-fatbin", "-o", f"{scratch}/{op}.fatbin", str(source)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    report = result.stdout + result.stderr
    if result.returncode != 0:
        raise RuntimeError(f"nvcc rejects csrc/cuda/{op}.cuh:\n{report}")
    return parse(op, report)


def table(rows: Iterable[Resources]) -> str:
    """A line per kernel, dtype and vector, a column of registers per architecture."""
    cells: dict[tuple, dict[int, Resources]] = {}
    for row in rows:
        cells.setdefault((row.kernel, row.dtype, row.vector), {})[row.architecture] = row
    columns = "".join(f"{f'sm_{a}':>7}" for a in ARCHITECTURES)
    lines = [f"{'kernel: registers per thread':46}{columns}   shared   spilled"]
    for (kernel, dtype, vector), found in cells.items():
        name = f"{kernel} {dtype}" + (f" ×{vector}" if vector > 1 else "")
        registers = "".join(f"{found[a].registers if a in found else '–':>7}" for a in ARCHITECTURES)
        spilled = max(r.spill_stores + r.spill_loads + r.stack for r in found.values())
        lines.append(f"{name:46}{registers}{max(r.shared for r in found.values()):>9}{spilled:>10}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    arguments = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("cuda_compile.py: nvcc is not on the PATH.", file=sys.stderr)
        return 2
    rows = [row for op in OPS for row in compile_op(op, nvcc)]
    print(table(rows))
    if arguments.json:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()
        header = {
            "command": "python tools/cuda_compile.py", "date": date.today().isoformat(), "commit": commit or "unknown",
            "nvcc": nvcc_version(nvcc), "flags": " ".join(FLAGS),
        }  # fmt: skip
        text = json.dumps({"machine": header, "rows": [row._asdict() for row in rows]}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 1 if any(row.spill_stores or row.spill_loads for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
