"""What a measurement was made on: the ``machine`` entry of every JSON record."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import draggan_fast
from draggan_fast.commands import cpu_name

# Of a CPU's flags those that decide which kernels can run.
CPU_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
    "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip


def cpu_flags() -> list[str]:
    """Those of ``CPU_FLAGS`` that this CPU has, as Linux tells them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = {
        flag for line in lines if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()
    }
    return [flag for flag in CPU_FLAGS if flag in found]


def memory_gb() -> float | None:
    """The machine's memory, where the system tells."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def commit() -> str:
    """The checkout this package runs from, as ``git describe`` names it; "unknown" in an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    # subtle: a wheel's site-packages may lie inside somebody else's checkout, whose commit would be a lie.
    if not ((root / ".git").exists() and (root / "pyproject.toml").is_file()):
        return "unknown"
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
        )
    except OSError:  # no git here
        return "unknown"
    return found.stdout.strip() or "unknown"


def command() -> list[str]:
    """The command line, without folders: a record is read elsewhere."""
    return [Path(word).name if Path(word).is_absolute() else word for word in [Path(sys.argv[0]).name, *sys.argv[1:]]]


def gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gb": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Device, CPU and its flags, threads, versions, commit, command and date (UTC): plain values, ready for JSON."""
    device = torch.device(device)
    return {
        "device": device.type,
        "gpu": gpu(device) if device.type == "cuda" else None,
        "cpu": cpu_name(),
        "cpu_flags": cpu_flags(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": memory_gb(),
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "draggan_fast": draggan_fast.__version__,
        "commit": commit(),
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
