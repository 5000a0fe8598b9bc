"""What a session's work takes, measured by itself: per frame for the header, per second for the ``stats`` message."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from .live_viewer import Viewer
from .metrics import Metrics, process_megabytes

WINDOW = 256  # measurements of each stage that percentiles are taken over
STAGES = ("step", "render", "encode", "wait")


class Stats:
    """Milliseconds of each stage; of the steps and waits since the last frame, their sums."""

    def __init__(self) -> None:
        self._stages: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in STAGES}
        self.dropped = 0
        self.step_seconds = self.full_seconds = 0.0  # smoothed: of a step, of a full picture with its encoding
        self._steps_ms = self._wait_ms = 0.0
        self.begin()

    def begin(self) -> None:
        """A run begins: rates are counted from here."""
        self._since = time.monotonic()
        self._steps = self._frames = 0

    def stepped(self, milliseconds: float) -> None:
        self._stages["step"].append(milliseconds)
        self.step_seconds = smoothed(self.step_seconds, milliseconds / 1e3)
        self._steps_ms += milliseconds
        self._steps += 1

    def waited(self, milliseconds: float) -> None:
        self._stages["wait"].append(milliseconds)
        self._wait_ms += milliseconds

    def shown(self, render: float, encode: float, full: float | None = None) -> tuple[float, float, float, float]:
        """A frame was made: milliseconds of its steps, render, encode, and of waiting for the worker. full: what a full
        picture of it takes, if that is known."""
        self._stages["render"].append(render)
        self._stages["encode"].append(encode)
        if full is not None:
            self.full_seconds = smoothed(self.full_seconds, full / 1e3)
        self._frames += 1
        times = (self._steps_ms, render, encode, self._wait_ms)
        self._steps_ms = self._wait_ms = 0.0
        return times

    def message(self, viewer: Viewer, metrics: Metrics) -> dict[str, Any]:
        """The ``stats`` of the time since the last one."""
        seconds = max(time.monotonic() - self._since, 1e-3)
        message = {
            "type": "stats",
            "steps_per_second": round(self._steps / seconds, 2),
            "frames_per_second": round(self._frames / seconds, 2),
            "dropped": self.dropped + viewer.replaced,
            "stages": {name: percentiles(values) for name, values in self._stages.items()},
            "memory_mb": process_megabytes(),
            "sessions": metrics.open_sessions,
        }
        self.begin()
        return message


def smoothed(before: float, now: float) -> float:
    return now if not before else 0.8 * before + 0.2 * now


def percentiles(values: deque[float]) -> dict[str, float]:
    """Median and 95th percentile, 0 of nothing."""
    ordered = sorted(values)
    if not ordered:
        return {"p50": 0.0, "p95": 0.0}
    return {f"p{part}": round(ordered[min(len(ordered) - 1, len(ordered) * part // 100)], 3) for part in (50, 95)}
