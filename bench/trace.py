"""A Chrome/Perfetto trace of a drag step with its parts as named ranges above PyTorch's operators."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from .parts import Watcher
from .profiling import Subject

TRACK = "draggan_fast parts"
STEPS = 2


class NvtxRanges:
    """A watcher of a Timeline that names the parts for Nsight. Ranges that start and end, not push and pop: a part may
    begin in autograd's thread and end in the main one."""

    def __init__(self) -> None:
        self._open: Any = None

    def __call__(self, part: str | None) -> None:
        if self._open is not None:
            torch.cuda.nvtx.range_end(self._open)
        self._open = None if part is None else torch.cuda.nvtx.range_start(part)


class HostMarks:
    """A watcher of a Timeline that notes when the host switched: (part or None, microseconds)."""

    def __init__(self) -> None:
        self.marks: list[tuple[str | None, float]] = []

    def __call__(self, part: str | None) -> None:
        self.marks.append((part, time.perf_counter_ns() / 1e3))


def record(subject: Subject) -> dict[str, Any]:
    """The trace, ready for JSON: two dissected steps, mapping, a picture and its encoding.

    On CUDA the ranges are the host's, and NVTX has the same ones.
    """
    timeline, marks = subject.timeline, HostMarks()
    watchers: list[Watcher] = [marks]
    activities = [ProfilerActivity.CPU]
    if subject.model.device.type == "cuda":
        watchers.append(NvtxRanges())
        activities.append(ProfilerActivity.CUDA)
    timeline.watchers.extend(watchers)
    try:
        with torch.profiler.profile(activities=activities) as profiler:
            for index in range(STEPS):
                with record_function(f"drag step {index}"):
                    subject.dissected_step()
            for name, (_, run) in subject.others().items():
                with record_function(f"drag {name}"), timeline.step(name):
                    run()
    finally:
        for watcher in watchers:
            timeline.watchers.remove(watcher)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    add_ranges(trace, marks.marks)
    return trace


def add_ranges(trace: dict[str, Any], marks: list[tuple[str | None, float]]) -> None:
    """Adds the parts as complete events on a track of their own.

    The profiler's clock is not the host's: each stretch of marks (up to a None) is shifted onto the "drag …" range
    that PyTorch recorded around it.
    """
    events = trace["traceEvents"]
    annotations = (e for e in events if e.get("cat") == "user_annotation")
    around = sorted((e for e in annotations if e["name"].startswith("drag ")), key=lambda e: float(e["ts"]))
    process, track = around[0]["pid"], 0
    stretches: list[list[tuple[str | None, float]]] = [[]]
    for mark in marks:
        stretches[-1].append(mark)
        if mark[0] is None:
            stretches.append([])
    for annotation, stretch in zip(around, stretches):
        shift = float(annotation["ts"]) - stretch[0][1]
        for (part, start), (_, end) in itertools.pairwise(stretch):
            events.append(
                {
                    "ph": "X", "cat": "draggan_fast", "name": part, "pid": process, "tid": track,
                    "ts": start + shift, "dur": end - start,
                }
            )  # fmt: skip
    for name, value in (("thread_name", {"name": TRACK}), ("thread_sort_index", {"sort_index": -1})):
        events.append({"ph": "M", "name": name, "pid": process, "tid": track, "ts": 0, "args": value})
