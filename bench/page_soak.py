"""A soak of the page: random gestures in one tab for minutes, and what the browser and the server hold meanwhile.

``live_page --soak MINUTES`` runs it. Every sample follows a forced garbage collection at rest, so that a growing number
is something that is held on to, not something that has not been collected yet.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .browser import LivePage, Point

SAMPLES = 20  # over the whole time, the first and the last included
SEEDS = (29, 5, 22, 8, 18)
SIDE = 128.0  # gestures are on a picture of this many pixels, and scaled to what is there
# What the browser counts, as Chromium's Performance.getMetrics names it.
METRICS = {
    "heap_bytes": "JSHeapUsedSize", "dom_nodes": "Nodes", "listeners": "JSEventListeners", "documents": "Documents",
}  # fmt: skip


class Soak:
    """The gestures, one after the other; ``errors`` is what the console said."""

    def __init__(self, live: LivePage, server_pid: int, seed: int = 0) -> None:
        self.live, self._chance = live, random.Random(seed)
        self._statm = Path("/proc") / str(server_pid) / "statm"
        self._cdp = live.page.context.new_cdp_session(live.page)
        self._cdp.send("Performance.enable")
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        live.page.on("pageerror", lambda error: self.errors.append(str(error)))
        live.page.on("console", self._said)
        self._gestures: dict[str, tuple[int, Callable[[], None]]] = {
            "pull": (8, self._pull), "mask": (3, self._mask), "keyboard": (2, self._keyboard), "seed": (2, self._seed),
            "timeline": (2, self._scrub), "clear_mask": (1, self._clear_mask), "reload": (1, self._reload),
            "undo": (3, lambda: self._press("#undo")), "redo": (2, lambda: self._press("#redo")),
            "zoom": (1, self._zoom),
        }  # fmt: skip

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def run(self, minutes: float) -> dict[str, Any]:
        """The row of the record: gestures, errors, samples over time, and their growth after the first third."""
        begin = time.monotonic()
        end, every = begin + 60 * minutes, 60 * minutes / (SAMPLES - 1)
        samples, due = [self.sample(0.0)], begin + every
        names = list(self._gestures)
        weights = [weight for weight, _ in self._gestures.values()]
        while time.monotonic() < end:
            (name,) = self._chance.choices(names, weights)
            self._gestures[name][1]()
            self.done[name] += 1
            if (now := time.monotonic()) >= due:
                samples.append(self.sample(now - begin))
                due = now + every
        samples.append(self.sample(time.monotonic() - begin))
        return {
            "minutes": minutes,
            "gestures": dict(self.done),
            "console_errors": self.errors,
            "samples": samples,
            "growth": growth(samples),
        }

    def sample(self, seconds: float) -> dict[str, Any]:
        """At rest and after a collection: of the page METRICS, of the server its resident memory, in bytes."""
        self.live.until_rest(120)
        for _ in range(2):  # what the first one finalises, the second one frees
            self._cdp.send("HeapProfiler.collectGarbage")
        found = {entry["name"]: int(entry["value"]) for entry in self._cdp.send("Performance.getMetrics")["metrics"]}
        pages = int(self._statm.read_text(encoding="ascii").split()[1])
        return {
            "seconds": round(seconds, 1),
            **{name: found[theirs] for name, theirs in METRICS.items()},
            "server_rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        }

    # --- gestures -----------------------------------------------------------------------------------------------------

    def _somewhere(self, margin: float = 24.0) -> Point:
        scale = self.live.element("element.session.height") / SIDE
        x, y = (scale * self._chance.uniform(margin, SIDE - margin) for _ in range(2))
        return x, y

    def _mode(self, name: str) -> None:
        self.live.page.locator(f"input[name=mode][value={name}]").check()

    def _pull(self) -> None:
        self._mode("live")
        (x, y), angle = self._somewhere(), self._chance.uniform(0, 2 * math.pi)
        self.live.pull((x, y), (x + 8 * math.cos(angle), y + 8 * math.sin(angle)), self._chance.uniform(0.1, 0.8), 10)
        self.live.release()
        if self._chance.random() < 0.5:  # or else it is disturbed by what comes next
            self.live.until_rest(120)

    def _mask(self) -> None:
        self._mode("mask")
        self.live.pull(self._somewhere(), self._somewhere(), 0.2, 8)
        self.live.release()

    def _clear_mask(self) -> None:
        self._mode("mask")
        self._press("#clear-mask")

    def _keyboard(self) -> None:
        self._mode("mask")
        self.live.element("element.focus() ?? true")
        for key in self._chance.choices(("Shift+ArrowLeft", "Shift+ArrowUp", "ArrowRight", "ArrowDown", "["), k=4):
            self.live.page.keyboard.press(key)
        self.live.page.keyboard.press("Enter")

    def _press(self, selector: str) -> None:
        self.live.until_rest(120)
        button = self.live.page.locator(selector)
        if button.is_enabled():
            button.click()

    def _seed(self) -> None:
        self.live.until_rest(120)
        self.live.page.locator(f".seed[data-seed='{self._chance.choice(SEEDS)}']").click()
        self.live.until_rest(120)

    def _zoom(self) -> None:
        self.live.page.mouse.move(*self.live.at(self._somewhere()))
        self.live.page.mouse.wheel(0, -300)
        self.live.page.locator("#zoom-reset").click()

    def _scrub(self) -> None:
        self.live.until_rest(120)
        length = self.live.element("element.status.timeline")
        if length > 1:
            self.live.page.locator("#timeline input").fill(str(self._chance.randrange(length)))

    def _reload(self) -> None:
        self.live.until_rest(120)
        self.live.page.reload()
        self.live.wait_for_picture()
        self.live.until("element.ready && element.status && element.frame")


def growth(samples: list[dict[str, Any]]) -> dict[str, float]:
    """The last third's mean over the middle third's, by number: 1 = no growth. The first third is warming up."""
    third = max(len(samples) // 3, 1)
    middle, last = samples[-2 * third : -third] or samples[:1], samples[-third:]

    def mean(rows: list[dict[str, Any]], name: str) -> float:
        return float(sum(row[name] for row in rows) / len(rows))

    return {name: round(mean(last, name) / mean(middle, name), 3) for name in (*METRICS, "server_rss_bytes")}
