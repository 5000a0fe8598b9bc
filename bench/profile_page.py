"""The profile as one self-contained HTML page: no script, no request to anywhere, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from .profile_svg import colour_class, milliseconds, percent, roofline, stacked_bar, strength
from .profiling import ONCE, PER_FRAME, PER_STEP, Part, Profile

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1d1f24; --soft: #5d636f; --line: #e3e4e8;
  --forward: #2f6fde; --backward: #e0702a; --tracking: #12948a; --supervision: #3d9a45; --mask: #8a56d8;
  --adam: #c2417c; --rest: #9aa0ab; --other: #64748b; --roof: #30343c; --inside: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f25; --ink: #e8eaee; --soft: #9aa1ad;
  --line: #30343d; --forward: #6aa0ff; --backward: #ff9a55; --tracking: #3cc7bb; --supervision: #71c878;
  --mask: #b48cf5; --adam: #ee77ab; --rest: #737a87; --other: #94a3b8; --roof: #c9ced8; --inside: #101216; } }
* { box-sizing: border-box; }
body, svg { font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
body { margin: 0; background: var(--page); color: var(--ink); font-size: 15px; line-height: 1.5; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 16px; margin: 0 0 4px; }
p { margin: 0 0 12px; color: var(--soft); max-width: 78ch; }
section, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
section { padding: 20px 22px; margin-top: 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px; margin-top: 22px; }
.tile { padding: 14px 16px; }
.tile b { display: block; font-size: 24px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
svg { display: block; width: 100%; height: auto; overflow: visible; font-size: 11px; }
svg text { fill: var(--ink); } svg .tick, svg .axis, svg .rooflabel { fill: var(--soft); }
svg .inside { fill: var(--inside); font-weight: 600; } svg .value { font-weight: 400; }
svg .name { paint-order: stroke; stroke: var(--card); stroke-width: 3px; stroke-linejoin: round; }
svg .rooflabel { paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.grid { stroke: var(--line); } .leader { stroke: var(--soft); stroke-width: .8; }
.roof { stroke: var(--roof); stroke-width: 2; } .thin { stroke-width: 1; opacity: .55; }
.dashed { stroke-dasharray: 6 4; }
.dot { stroke: var(--card); stroke-width: 1.5; }
.forward { fill: var(--forward); } .backward { fill: var(--backward); } .tracking { fill: var(--tracking); }
.supervision { fill: var(--supervision); } .mask { fill: var(--mask); } .adam { fill: var(--adam); }
.rest { fill: var(--rest); } .other { fill: var(--other); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th, tr.head td { font-weight: 600; color: var(--soft); font-size: 12.5px; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } tr:last-child td { border-bottom: 0; }
tr.sum td { font-weight: 600; } tr.head td { padding-top: 16px; }
td svg.chip { display: inline-block; width: 10px; height: 10px; margin-right: 8px; vertical-align: -1px; }
td.share svg { display: inline-block; width: 74px; height: 8px; } td.share span { display: inline-block; width: 58px; }
.track { fill: var(--line); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin: 8px 0 0; font-size: 14px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def page(profile: Profile, machine: Mapping[str, Any]) -> str:
    """The whole document. machine: as ``machine.machine`` describes it."""
    step = profile.of(PER_STEP)
    points = f"{profile.points} point{'s' if profile.points > 1 else ''}"
    masked = "half the picture fixed" if profile.mask == "half" else "no mask"
    what = (
        f"{profile.model}, {profile.resolution}×{profile.resolution}, {points}, {masked}, engine {profile.engine} in "
        f"{profile.precision}, {profile.threads} threads on {profile.device}"
    )
    title = f"Where a drag step goes: {profile.model}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>Where a drag step goes</h1>
<p>{escape(what)}</p>
{tiles(profile)}
<section>
<h2>One step</h2>
<p>Every part is as wide as its time. Blue: the features, block by block; orange: their backward.</p>
{stacked_bar(step)}
</section>
<section>
<h2>Under this machine's ceilings</h2>
<p>Each dot is a part of the work; the lines are what this machine was measured to reach. A dot below its line has
that much to gain.</p>
{roofline(profile.parts, profile.ceilings)}
</section>
<section>
<h2>In numbers</h2>
<p>Medians of {profile.steps} steps. GFLOP: arithmetic done, a multiply-add counting as two. GB: traffic that no code
can avoid (inputs read once, outputs written once, weights read once). Share: the least time that the ceilings allow,
by the time taken.</p>
<div class="wide">{table(profile)}</div>
</section>
<section>
<h2>The machine</h2>
{description(profile, machine)}
</section>
</main>
</body>
</html>
"""


def tiles(profile: Profile) -> str:
    step = profile.of(PER_STEP)
    least = sum(part.ms * part.share for part in step if part.share is not None)
    rest = step[-1]
    shown = [
        (milliseconds(profile.plain_ms), "a step, left alone"),
        (milliseconds(profile.step_ms), f"sum of its parts, {profile.step_ms / profile.plain_ms:.3f} of that"),
        (f"{least / profile.step_ms:.0%}", "of the measured ceilings, over the step"),
        (f"{rest.ms / profile.step_ms:.1%}", "rest: the step's time that no part explains"),
    ]
    inner = "".join(f'<div class="tile"><b>{escape(n)}</b><span>{escape(words)}</span></div>' for n, words in shown)
    return f'<div class="tiles">{inner}</div>'


def table(profile: Profile) -> str:
    columns = ("part", "ms", "of the step", "GFLOP", "GB", "GFLOP/s", "share of ceiling")
    lines = ["<tr>" + "".join(f"<th>{escape(c)}</th>" for c in columns) + "</tr>"]
    lines += [line(part, profile.step_ms) for part in profile.of(PER_STEP)]
    lines.append(f'<tr class="sum"><td>sum</td><td>{profile.step_ms:.2f}</td><td>100 %</td>{"<td></td>" * 4}</tr>')
    for often, words in ((PER_FRAME, "for every frame that is shown"), (ONCE, "once per picture")):
        lines.append(f'<tr class="head"><td colspan="7">{escape(words)}</td></tr>')
        lines += [line(part, None) for part in profile.of(often)]
    return f"<table>{''.join(lines)}</table>"


def line(part: Part, step_ms: float | None) -> str:
    chip = (
        f'<svg class="chip" viewBox="0 0 10 10" aria-hidden="true"><rect width="10" height="10" rx="2" '
        f'class="{colour_class(part.name)}" fill-opacity="{strength(part.name):.2f}"/></svg>'
    )
    cells = [
        f"{part.ms:.2f}",
        "" if not step_ms else f"{part.ms / step_ms:.1%}",
        f"{part.gflop:.3f}" if part.gflop >= 5e-4 else "–",
        f"{part.gbytes:.4f}" if part.gbytes >= 5e-5 else "–",
        f"{part.gflop / part.ms * 1e3:.1f}" if part.gflop >= 5e-4 and part.ms else "–",
    ]
    inner = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    share = "–"
    if part.share is not None:
        bar = (
            f'<svg viewBox="0 0 74 8" aria-hidden="true"><rect width="74" height="8" rx="4" class="track"/>'
            f'<rect width="{74 * min(part.share, 1):.1f}" height="8" rx="4" class="{colour_class(part.name)}"/></svg>'
        )
        share = f"{bar}<span>{escape(percent(part.share))}</span>"
    return f'<tr><td>{chip}{escape(part.name)}</td>{inner}<td class="share">{share}</td></tr>'


def description(profile: Profile, machine: Mapping[str, Any]) -> str:
    """Whatever the machine's description holds, and its ceilings, as a list of terms."""
    entries = {key.replace("_", " "): flat(value) for key, value in machine.items() if value not in (None, [], "")}
    entries |= {
        f"ceiling: {name.replace('_', ' ')}": f"{reading.best:,.2f} {reading.unit} (p20–p80 of its times: "
        f"±{reading.summary['noise']:.0%})"
        for name, reading in profile.ceilings.readings.items()
    }
    inner = "".join(f"<dt>{escape(term)}</dt><dd>{escape(words)}</dd>" for term, words in entries.items())
    return f"<dl>{inner}</dl>"


def flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {flat(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(flat, value))
    return str(value)
