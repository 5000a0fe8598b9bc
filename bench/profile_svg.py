"""The two pictures of the profile page as inline SVG: the step as a stacked bar, and the roofline.

Colours are CSS classes of the page, so that light and dark are its business alone. Every text is escaped here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from . import parts
from .profiling import Part
from .suites.floor import CACHE_LEVELS, Ceilings

TEXT_WIDTH, TEXT_HEIGHT = 6.6, 14.0  # px of one character and of a line at the pages' 11 px, on the wide side
LEVEL_NAMES = {"": "memory", "llc_": "last-level cache", "cached_": "core's cache"}
CLASSES = {
    parts.TRACKING: "tracking",
    parts.SUPERVISION: "supervision",
    parts.MASK: "mask",
    parts.ADAM: "adam",
    parts.REST: "rest",
}


def colour_class(name: str) -> str:
    """The CSS class of a part: forward, backward, an op's name, or other."""
    if match := re.fullmatch(r"\d+² (forward|backward)", name):
        return match[1]
    return CLASSES.get(name, "other")


def strength(name: str) -> float:
    """0.4…1: the larger a block's resolution, the stronger its colour."""
    match = re.match(r"(\d+)²", name)
    return 1.0 if match is None else min(0.4 + 0.12 * (math.log2(int(match[1])) - 2), 1.0)


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(content)}</text>'


def stacked_bar(step: Sequence[Part], width: float = 960) -> str:
    """The step's parts side by side, as wide as they are long; those wide enough carry their name and ms."""
    total = sum(part.ms for part in step) or 1.0
    height, x, drawn = 56.0, 0.0, []
    for part in step:
        w = part.ms / total * width
        label = f"{part.name}: {milliseconds(part.ms)}, {part.ms / total:.1%} of the step"
        drawn.append(
            f'<rect x="{x:.2f}" y="0" width="{max(w - 1, 0.2):.2f}" height="{height}" rx="2" '
            f'class="{colour_class(part.name)}" fill-opacity="{strength(part.name):.2f}">'
            f"<title>{escape(label)}</title></rect>"
        )
        if w > TEXT_WIDTH * len(part.name) + 4:
            middle = x + w / 2
            drawn.append(text(middle, height / 2 - 3, part.name, "inside", "middle"))
            drawn.append(text(middle, height / 2 + 12, milliseconds(part.ms), "inside value", "middle"))
        x += w
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="The parts of a step, as wide as they are '
        f'long">{"".join(drawn)}</svg>'
    )


def percent(share: float) -> str:
    return f"{share:.1%}" if share == 0 or share >= 5e-4 else "<0.1%"


def milliseconds(ms: float) -> str:
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 1 else f"{ms:.2f} ms"


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Shared area."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(wide, 0.0) * max(high, 0.0)

    def within(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


def place_labels(dots: Sequence[tuple[float, float, str]], frame: Box, taken: Iterable[Box] = ()) -> list[Box]:
    """A box for each dot's name, as near as it fits: none overlaps another, a dot or anything in ``taken``.

    Greedy, the most crowded dots first; on circles of growing radius around the dot. A picture so full that no free
    place is left gets the place with the least overlap.
    """
    obstacles = [*taken, *(Box(x - 7, y - 7, x + 7, y + 7) for x, y, _ in dots)]

    def crowd(index: int) -> int:
        x, y, _ = dots[index]
        return -sum(math.hypot(x - u, y - v) < 60 for u, v, _ in dots)

    placed: dict[int, Box] = {}
    for index in sorted(range(len(dots)), key=crowd):
        x, y, name = dots[index]
        w = TEXT_WIDTH * len(name)
        best, least = None, math.inf
        for candidate in around(x, y, w):
            if not candidate.within(frame):
                continue
            cost = sum(candidate.overlap(other) for other in (*obstacles, *placed.values()))
            if cost < least:
                best, least = candidate, cost
            if cost == 0:
                break
        placed[index] = best if best is not None else Box(x, y, x + w, y + TEXT_HEIGHT)
    return [placed[index] for index in range(len(dots))]


def around(x: float, y: float, width: float) -> Iterable[Box]:
    """Places for a label of this width, the nearest first."""
    for radius in (9, 14, 20, 28, 38, 50, 64, 80, 100, 125):
        for turn in range(24):
            angle = 2 * math.pi * turn / 24
            cx, cy = x + radius * math.cos(angle), y + radius * math.sin(angle)
            # The side of the label that faces the dot is what keeps the distance.
            left = cx - width * (1 - math.cos(angle)) / 2
            top = cy - TEXT_HEIGHT * (1 - math.sin(angle)) / 2
            yield Box(left, top, left + width, top + TEXT_HEIGHT)


class Axes:
    """Logarithmic axes: FLOP per byte to the right, GFLOP/s upward."""

    def __init__(self, dots: Sequence[tuple[float, float]], ceilings: Ceilings, frame: Box) -> None:
        self.frame = frame
        top = max(ceilings.gflops("fp32"), ceilings.gflops("bf16"))
        ridge = ceilings.gflops("bf16") / ceilings.gb_per_s("")
        self.x0 = math.floor(math.log10(min([x for x, _ in dots] + [0.3])))
        self.x1 = math.ceil(math.log10(max([x for x, _ in dots] + [ridge * 2])))
        self.y0 = math.floor(math.log10(min([y for _, y in dots] + [1.0])))
        self.y1 = math.log10(top) + 0.25

    def x(self, intensity: float) -> float:
        share = (math.log10(intensity) - self.x0) / (self.x1 - self.x0)
        return self.frame.left + share * (self.frame.right - self.frame.left)

    def y(self, gflops: float) -> float:
        share = (math.log10(gflops) - self.y0) / (self.y1 - self.y0)
        return self.frame.bottom - share * (self.frame.bottom - self.frame.top)


def roofline(found: Sequence[Part], ceilings: Ceilings, width: float = 960, height: float = 520) -> str:
    """Every part that computes: its arithmetic per byte of unavoidable traffic, and the GFLOP/s it reaches, under the
    measured ceilings."""
    shown = [p for p in found if p.gflop > 0 and p.gbytes > 0 and p.ms > 0]
    speeds = [(p.gflop / p.gbytes, p.gflop / p.ms * 1e3) for p in shown]
    frame = Box(58, 12, width - 12, height - 44)
    axes = Axes(speeds, ceilings, frame)
    drawn = [*grid(axes), *ceiling_lines(axes, ceilings)]
    words = ceiling_labels(axes, ceilings)
    roofs = [Box(frame.left, y - 2, frame.right, y + 2) for y in map(axes.y, map(ceilings.gflops, ("fp32", "bf16")))]
    dots = [(axes.x(x), axes.y(y), part.name) for (x, y), part in zip(speeds, shown)]
    boxes = place_labels(dots, frame, [*roofs, *(box for _, box in words)])
    leaders, marks, names = [], [], []
    for (x, y, name), box, part, (intensity, gflops) in zip(dots, boxes, shown, speeds):
        nearest_x, nearest_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
        if math.hypot(nearest_x - x, nearest_y - y) > 12:
            leaders.append(
                f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{nearest_x:.1f}" y2="{nearest_y:.1f}" class="leader"/>'
            )
        share = f", {part.share:.0%} of the ceiling" if part.share is not None else ""
        title = f"{name}: {gflops:.3g} GFLOP/s at {intensity:.3g} FLOP/byte, {milliseconds(part.ms)}{share}"
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="dot {colour_class(name)}">'
            f"<title>{escape(title)}</title></circle>"
        )
        names.append(text((box.left + box.right) / 2, box.bottom - 3.5, name, "name", "middle"))
    drawn += [*leaders, *marks, *names]
    drawn += [content for content, _ in words]
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="Roofline: GFLOP/s over FLOP per byte">'
        f"{''.join(drawn)}</svg>"
    )


def grid(axes: Axes) -> list[str]:
    f, drawn = axes.frame, []
    for power in range(axes.x0, axes.x1 + 1):
        x = axes.x(10.0**power)
        drawn.append(f'<line x1="{x:.1f}" y1="{f.top}" x2="{x:.1f}" y2="{f.bottom}" class="grid"/>')
        drawn.append(text(x, f.bottom + 16, tick(power), "tick", "middle"))
    for power in range(axes.y0, math.floor(axes.y1) + 1):
        y = axes.y(10.0**power)
        drawn.append(f'<line x1="{f.left}" y1="{y:.1f}" x2="{f.right}" y2="{y:.1f}" class="grid"/>')
        drawn.append(text(f.left - 7, y + 4, tick(power), "tick", "end"))
    middle = (f.top + f.bottom) / 2
    drawn.append(text((f.left + f.right) / 2, f.bottom + 36, "FLOP per byte of unavoidable traffic", "axis", "middle"))
    drawn.append(
        f'<text transform="translate(12 {middle:.0f}) rotate(-90)" class="axis" text-anchor="middle">GFLOP/s</text>'
    )
    return drawn


def tick(power: int) -> str:
    return f"{10.0**power:,.0f}" if power >= 0 else f"{10.0**power:.{-power}f}"


def ceiling_lines(axes: Axes, ceilings: Ceilings) -> list[str]:
    f, drawn = axes.frame, []
    for precision, css in (("fp32", "roof"), ("bf16", "roof dashed")):
        speed = ceilings.gflops(precision)
        left = axes.x(speed / ceilings.gb_per_s("cached_"))
        y = axes.y(speed)
        drawn.append(f'<line x1="{max(left, f.left):.1f}" y1="{y:.1f}" x2="{f.right}" y2="{y:.1f}" class="{css}"/>')
    for level in ("", *CACHE_LEVELS):
        (x1, y1), (x2, y2) = slope(axes, ceilings, level)
        css = "roof" if not level else "roof thin"
        drawn.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>')
    return drawn


def slope(axes: Axes, ceilings: Ceilings, level: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where a level's bandwidth line enters the frame, and where it meets the highest roof."""
    bandwidth = ceilings.gb_per_s(level)
    low = max(10.0**axes.x0, 10.0**axes.y0 / bandwidth)
    high = ceilings.gflops("bf16") / bandwidth
    return (axes.x(low), axes.y(low * bandwidth)), (axes.x(high), axes.y(high * bandwidth))


def ceiling_labels(axes: Axes, ceilings: Ceilings) -> list[tuple[str, Box]]:
    """(SVG, the place it takes) of the words on the ceilings."""
    f, made = axes.frame, []
    for precision in ("fp32", "bf16"):
        words = f"{precision} {ceilings.gflops(precision):,.0f} GFLOP/s"
        y = axes.y(ceilings.gflops(precision)) - 5
        # Just right of where memory stops to be the limit: the dots of convolutions lie farther right.
        x = min(axes.x(ceilings.gflops(precision) / ceilings.gb_per_s()) + 40, f.right - TEXT_WIDTH * len(words))
        made.append((text(x, y, words, "rooflabel"), Box(x, y - 11, x + TEXT_WIDTH * len(words), y + 8)))
    for level in ("", *CACHE_LEVELS):
        (x1, y1), (x2, y2) = slope(axes, ceilings, level)
        angle = math.degrees(math.atan2(y2 - y1, x2 - x1))
        words = f"{LEVEL_NAMES[level]} {ceilings.gb_per_s(level):,.0f} GB/s"
        # Staggered along the lines, which lie close to each other.
        along = {"": 0.12, "llc_": 0.2, "cached_": 0.28}[level]
        x, y = x1 + along * (x2 - x1), y1 + along * (y2 - y1)
        length = TEXT_WIDTH * len(words)
        reach_x, reach_y = length * math.cos(math.radians(angle)), length * math.sin(math.radians(angle))
        svg = (
            f'<text transform="translate({x:.1f} {y:.1f}) rotate({angle:.1f})" dy="-6" class="rooflabel">'
            f"{escape(words)}</text>"
        )
        made.append((svg, Box(x - 12, y + reach_y - 6, x + reach_x, y)))
    return made
