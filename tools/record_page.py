"""Records the page while somebody pulls at it: the README's ``docs/live.webp``.

    python tools/record_page.py [--out docs/live.webp] [--threads N]

Nothing is staged but the pointer's path: server and page run in real time, the frames are those that Chromium composed
(its screencast), with the times at which it composed them. A headless browser draws no pointer, so it is drawn in here.
"""

from __future__ import annotations

import argparse
import base64
import io
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from draggan_fast.bench.browser import LivePage, LiveServer, Point, browser
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
WINDOW = (1000, 640)  # the smallest with seeds and panel beside the picture; what is recorded is shown as it is
FRAMES_PER_SECOND = 15
EVERY_NTH = 3  # of the 60 frames that Chromium composes a second: to encode all of them would slow the page down
MOVES_PER_SECOND = 40
MOST_BYTES = 1_500_000
# (seconds, where to in pixels of the picture, button down); a pause goes nowhere.
Stroke = tuple[float, Point, bool]
SEED, START = 29, (56.0, 50.0)
PATH: tuple[Stroke, ...] = (
    (0.5, (45, 31), False),
    (1.1, (31, 45), True),
    (0.4, (31, 45), True),
    (1.0, (47, 27), True),
    (0.8, (40, 33), True),
    (0.5, (40, 33), False),
    (0.5, (62, 79), False),
    (0.9, (73, 74), True),
    (0.9, (57, 78), True),
    (0.7, (64, 79), True),
    (0.9, (64, 79), False),
    (1.4, (78, 60), False),
)
# An arrow pointer: its outline from the tip, in pixels of the window.
POINTER = ((0, 0), (0, 19), (4.6, 15), (7.6, 22), (11, 20.5), (8, 13.8), (14, 13.4))


@dataclass
class Recording:
    """shots: (seconds since 1970, JPEG); pointer: (the same, where on the page, button down)."""

    running: bool = True
    shots: list[tuple[float, bytes]] = field(default_factory=list)
    pointer: list[tuple[float, Point, bool]] = field(default_factory=list)

    def pointer_at(self, moment: float) -> tuple[Point, bool]:
        past = [(where, down) for when, where, down in self.pointer if when <= moment]
        return past[-1] if past else self.pointer[0][1:]


def eased(share: float) -> float:
    """A hand's way of moving: slow, fast, slow."""
    return (1 - math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2


def record(live: LivePage) -> Recording:
    """Plays PATH in real time while the screencast runs."""
    recording = Recording()
    session = live.page.context.new_cdp_session(live.page)

    def shot(event: dict[str, Any]) -> None:
        recording.shots.append((event["metadata"]["timestamp"], base64.b64decode(event["data"])))
        if recording.running:
            session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

    session.on("Page.screencastFrame", shot)
    recording.shots.append((time.time(), live.page.screenshot(type="jpeg", quality=90)))  # of what does not move yet
    session.send("Page.startScreencast", {"format": "jpeg", "quality": 90, "everyNthFrame": EVERY_NTH})
    (left, top), (right, bottom) = live.at((0, 0)), live.at((100, 100))
    scale = ((right - left) / 100, (bottom - top) / 100)
    here = START
    pressed = False
    for seconds, target, down in PATH:
        if down != pressed:
            (live.page.mouse.down if down else live.page.mouse.up)()
            pressed = down
        start, begin, index = here, time.perf_counter(), 0
        while (share := (time.perf_counter() - begin) / seconds) < 1:
            ease = eased(share)
            here = (start[0] + (target[0] - start[0]) * ease, start[1] + (target[1] - start[1]) * ease)
            where = (left + here[0] * scale[0], top + here[1] * scale[1])
            recording.pointer.append((time.time(), where, pressed))
            if here != start or not index:
                live.page.mouse.move(*where)
            index += 1
            live.page.wait_for_timeout(max(1000 * (index / MOVES_PER_SECOND - (time.perf_counter() - begin)), 1))
        here = target
    if pressed:
        live.page.mouse.up()
    recording.running = False
    session.send("Page.stopScreencast")
    session.detach()
    return recording


def with_pointer(shot: Image.Image, where: Point, down: bool) -> Image.Image:
    """The picture with an arrow, drawn at four times the size for smooth edges."""
    fine = 4
    layer = Image.new("RGBA", (32 * fine, 32 * fine))
    draw = ImageDraw.Draw(layer)
    outline = [((x + 4) * fine, (y + 4) * fine) for x, y in POINTER]
    draw.polygon(outline, fill=(20, 21, 23, 255))
    draw.line([*outline, outline[0]], fill=(255, 255, 255, 255), width=7 if down else 6, joint="curve")
    arrow = layer.resize((32, 32), Image.Resampling.LANCZOS)
    result = shot.copy()
    result.paste(arrow, (round(where[0]) - 4, round(where[1]) - 4), arrow)
    return result


def frames(recording: Recording) -> list[Image.Image]:
    """At an even pace: for each moment what was on the screen then."""
    begin, end = recording.pointer[0][0], recording.pointer[-1][0]
    made, index = [], 0
    for number in range(round((end - begin) * FRAMES_PER_SECOND)):
        moment = begin + number / FRAMES_PER_SECOND
        while index + 1 < len(recording.shots) and recording.shots[index + 1][0] <= moment:
            index += 1
        shot = Image.open(io.BytesIO(recording.shots[index][1])).convert("RGB")
        where, down = recording.pointer_at(moment)
        made.append(with_pointer(shot, where, down))
    return made


def encoded(pictures: list[Image.Image]) -> bytes:
    """An animated WebP that loops, of the best quality that fits."""
    for quality in (80, 70, 60, 50, 40, 30):
        buffer = io.BytesIO()
        first, *rest = pictures
        first.save(
            buffer, "WEBP", save_all=True, append_images=rest, duration=round(1000 / FRAMES_PER_SECOND), loop=0,
            quality=quality, method=4,
        )  # fmt: skip
        if buffer.tell() <= MOST_BYTES:
            break
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "live.webp")
    parser.add_argument("--threads", type=int, help="of the server (default: all)")
    arguments = parser.parse_args()
    threads = [] if arguments.threads is None else ["--threads", str(arguments.threads)]
    with LiveServer(threads) as server, browser() as chromium:
        page = chromium.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]}, color_scheme="light")
        live = LivePage(page, server.url).open(f"#seed={SEED}")
        page.locator("#drag-settings summary").click()  # the measurements instead
        page.mouse.move(*live.at(START))
        page.locator("#seeds img[src]").nth(4).wait_for()
        page.wait_for_timeout(1500)
        recording = record(live)
        painted, felt = live.element("[element.latency.painted, element.latency.pointerToPaint.percentile(0.5)]")
    data = encoded(frames(recording))
    arguments.out.write_bytes(data)
    print(
        f"{len(recording.shots)} shots in {sum(seconds for seconds, _, _ in PATH):.1f} s, {painted} frames painted, "
        f"pointer to paint {felt:.0f} ms (p50) → {arguments.out.name}, {len(data):,} bytes"
    )


if __name__ == "__main__":
    main()
