"""How much memory one call takes above what was there before it: tensors of PyTorch's allocators, exactly counted."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch


def extra_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Peak of the bytes allocated during the call, its results among them, above those held when it began.

    Call it once before: what is kept for later calls (library handles, cached weights) is not counted then.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        kept = run()
        torch.cuda.synchronize(device)
        del kept
        return torch.cuda.max_memory_allocated(device) - before
    with silent_stderr():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            kept = run()
        del kept
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    total = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: float(e["ts"])):
        total += int(event["args"]["Bytes"])
        peak = max(peak, total)
    return peak


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Nothing reaches the process's stderr: the profiler's C++ half writes its stages there, past ``sys.stderr``."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
