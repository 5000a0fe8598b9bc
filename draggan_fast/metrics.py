"""What ``/metrics`` tells Prometheus, and the process's memory. Each server has a registry of its own."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.2, 0.4, 0.8, 1.6, 3.2)


class Metrics:
    """Counted from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._stage = Histogram(
            "draggan_stage_seconds",
            "Time of a stage: step, render, encode, and from a targets message to the frame that reflects it",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._errors = Counter(
            "draggan_errors", "Messages refused and failures, by their code", ["code"], registry=self.registry
        )
        self.messages = Counter("draggan_messages", "Messages from clients", registry=self.registry)
        self._sessions = Gauge("draggan_sessions", "Pictures that are open", registry=self.registry)
        self.viewers = Gauge("draggan_viewers", "Connected viewers", registry=self.registry)
        self.animations = Gauge(
            "draggan_animations", "Animations that are being made or wait for it", registry=self.registry
        )
        memory = Gauge("draggan_memory_bytes", "Resident memory of the process", registry=self.registry)
        memory.set_function(lambda: process_megabytes() * 1e6)
        self.frames = Counter("draggan_frames", "Frames sent", registry=self.registry)
        self.bytes = Counter("draggan_frame_bytes", "Bytes of the frames sent", registry=self.registry)
        self.steps = Counter("draggan_steps", "Steps made", registry=self.registry)
        self.open_sessions = 0

    def stage(self, name: str, seconds: float) -> None:
        self._stage.labels(name).observe(seconds)
        if name == "step":
            self.steps.inc()

    def error(self, code: str) -> None:
        self._errors.labels(code).inc()

    def sessions(self, count: int) -> None:
        self.open_sessions = count
        self._sessions.set(count)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)


def process_megabytes() -> float:
    """Resident memory of this process now, in 10⁶ bytes; its peak or 0 where the system tells no more."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
    except (OSError, ValueError, IndexError):
        pass
    try:
        resource = importlib.import_module("resource")
    except ModuleNotFoundError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(round(peak / 1e6 if sys.platform == "darwin" else peak / 1e3, 1))
