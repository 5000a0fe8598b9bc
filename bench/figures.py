"""The figures of ``plot``: rows → SVG. matplotlib is optional (extra ``plot``), so it is imported late."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from draggan_fast import DragError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
# Okabe and Ito's colours: told apart by everyone, and on paper.
COLOURS = {"published": "#999999", "reference": "#0072B2", "fast": "#D55E00"}
OTHER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.hashsalt": "draggan_fast",  # the same rows give the same file
}


def colour(engine: str, engines: list[str]) -> str:
    others = [e for e in engines if e not in COLOURS]
    return COLOURS[engine] if engine in COLOURS else OTHER_COLOURS[others.index(engine) % len(OTHER_COLOURS)]


def series_name(row: Row) -> str:
    precision = row.get("precision")
    return f"{row['engine']}, {precision}" if precision not in (None, "fp32") else str(row["engine"])


def series_names(rows: Iterable[Row]) -> list[str]:
    """Every engine (with its precision, unless float32) in the rows: the published program first."""
    found = {series_name(row) for row in rows}
    return sorted(found, key=lambda name: (name != "published", name != "reference", name))


def to_svg(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", bbox_inches="tight", facecolor="white", metadata={"Date": None})
    return stream.getvalue()


def grouped_bars(axes: Axes, rows: list[Row], value: str, label: Callable[[Row], str], colours: list[str]) -> None:
    """Bars of ``value``, grouped by resolution, one per series, each with its label on top."""
    sizes = sorted({row["resolution"] for row in rows})
    names = series_names(rows)
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        found = {row["resolution"]: row for row in rows if series_name(row) == name and row.get(value)}
        places = [sizes.index(size) + (index - (len(names) - 1) / 2) * width for size in found]
        bars = axes.bar(
            places, [r[value] for r in found.values()], width * 0.92, label=name, color=colour(name, colours)
        )
        axes.bar_label(bars, [label(r) for r in found.values()], padding=2, fontsize=8)
    axes.set_xticks(range(len(sizes)), [f"{size}²" for size in sizes])
    axes.tick_params(axis="x", length=0)


def random_rows(rows: list[Row], suite: str) -> list[Row]:
    return [r for r in rows if r.get("suite") == suite and str(r.get("model")).startswith("random")]


def step_figure(rows: list[Row]) -> Figure | None:
    """Seconds per step by resolution, without and with a mask, one point, networks of published width."""
    from matplotlib.figure import Figure

    chosen = [r for r in random_rows(rows, "step") if r["points"] == 1]
    masks = [m for m in ("none", "half") if any(r["mask"] == m for r in chosen)]
    if not chosen:
        return None
    figure = Figure(figsize=(8.4, 3.0 * len(masks)), layout="constrained")
    for index, mask in enumerate(masks):
        axes = figure.add_subplot(len(masks), 1, index + 1)
        part = [{**r, "seconds": r["p50_ms"] / 1000} for r in chosen if r["mask"] == mask]

        def label(row: Row) -> str:
            ratio = row.get("ratio_to_published")
            taken = f"{row['seconds']:.1f} s" if row["seconds"] >= 1 else f"{row['p50_ms']:.0f} ms"
            return taken + (f"\n{ratio:.0f}×" if ratio and row["engine"] != "published" else "")

        grouped_bars(axes, part, "seconds", label, series_names(chosen))
        axes.set_title("one point, no mask" if mask == "none" else "one point, half the picture held", fontsize=10)
        axes.set_ylabel("seconds per step")
        axes.set_yscale("log")  # a straight scale would show the fast ones as nothing
        axes.margins(y=0.25)
        if index == 0:
            axes.legend(loc="upper left")
    return figure


def memory_figure(rows: list[Row]) -> Figure | None:
    """Peak memory of the process by resolution."""
    from matplotlib.figure import Figure

    kind = {True: ("step", "step + picture"), False: ("step + picture",)}  # published makes its picture in any case
    chosen = [
        row
        for row in random_rows(rows, "memory")
        if row.get("peak_mb") and row["mask"] == "none" and row["name"] in kind[row["engine"] == "published"]
    ]
    if not chosen:
        return None
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    axes = figure.add_subplot()
    part = [{**r, "gigabytes": r["peak_mb"] / 1000} for r in chosen]
    grouped_bars(axes, part, "gigabytes", lambda r: f"{r['gigabytes']:.2g} GB", series_names(chosen))
    axes.set_ylabel("peak memory, GB")
    axes.margins(y=0.12)
    axes.legend(loc="upper left")
    return figure


FIGURES: dict[str, Callable[[list[Row]], Any]] = {"step": step_figure, "memory": memory_figure}


def draw_all(rows: list[Row]) -> dict[str, bytes]:
    """Name → SVG of every figure that the rows have data for. Raises DragError if matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise DragError("Figures need matplotlib: pip install 'draggan-fast[plot]'.") from None
    drawn = {}
    with mpl.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw(rows)
            if figure is not None:
                drawn[name] = to_svg(figure)
    return drawn
