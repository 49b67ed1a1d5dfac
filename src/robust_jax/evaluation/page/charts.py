"""Charts as SVG text: their colours are the page's, light or dark, and their sizes those of a phone's screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 42, 12, 10, 38
MARKS = 7  # colours, and shapes, before they repeat
_MOST_POINTS = 150

Series = dict[str, Any]
"""name, colour (a number), points [(x, y, low, high)], and faint, dots, line, spread [(low, high)] of x."""


def line_chart(
    series: Sequence[Series], x_label: str, *, percent: bool = True, whole: bool = True, mark: float | None = None
) -> Markup:
    """Lines with bands.

    Args:
      series: what to draw.
      x_label: below the horizontal axis.
      percent: whether y is a share, written in per cent.
      whole: whether the vertical axis shows 0 to 1, instead of what there is.
      mark: an x to mark by a dotted line.
    """
    points = [point for one in series for point in one["points"]]
    xs = [x for x, *_ in points] + [end for one in series for pair in one.get("spread", ()) for end in pair]
    ys = [y for _, *of in points for y in of if y is not None]
    x_axis = _Axis(xs, LEFT, WIDTH - RIGHT)
    y_axis = _Axis([0.0, 1.0] if whole else ys, HEIGHT - BOTTOM, TOP, bounds=(0, 1) if percent else None)
    parts = [_frame(x_axis, y_axis, x_label, percent, any(one.get("spread") for one in series))]
    if mark is not None:
        x = x_axis(mark)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    parts += [_band(one, x_axis, y_axis) for one in series] + [_line(one, x_axis, y_axis) for one in series]
    names = ", ".join(str(one["name"]) for one in series)
    label = escape(f"Chart over {x_label}: {names}")
    return Markup(  # noqa: S704 - every text in it is escaped
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


class _Axis:
    """Maps numbers to a side of the drawing, with a little room at its ends."""

    def __init__(self, values: Sequence[float], start: float, end: float, bounds: tuple[float, float] | None = None):
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
        self.low, self.high = low - margin, high + margin
        self.start, self.end, self._bounds = start, end, bounds

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        low, high = self._bounds or (-math.inf, math.inf)
        found = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        return [float(t) for t in found if self.low <= t <= self.high and low <= t <= high]


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, percent: bool, percent_x: bool) -> str:
    parts = []
    for tick in y_axis.ticks():
        y = y_axis(tick)
        text = f"{100 * tick:.3g}%" if percent else f"{tick:.3g}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for tick in x_axis.ticks():
        x, text = x_axis(tick), f"{100 * tick:.3g}%" if percent_x else f"{tick:.4g}"
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{text}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _band(one: Series, x_axis: _Axis, y_axis: _Axis) -> str:
    known = [(x_axis(x), y_axis(low), y_axis(high)) for x, _, low, high in one["points"] if low is not None]
    if len(known) < 2 or not one.get("line", True):
        return ""
    there = " ".join(f"{x:.1f},{high:.1f}" for x, _, high in known)
    back = " ".join(f"{x:.1f},{low:.1f}" for x, low, _ in reversed(known))
    return f'<polygon class="band c{one["colour"] % MARKS}" points="{there} {back}"/>'


def _line(one: Series, x_axis: _Axis, y_axis: _Axis) -> str:
    points = thinned(one["points"])
    kind = f"c{one['colour'] % MARKS}" + " faint" * bool(one.get("faint"))
    at = [(x_axis(x), y_axis(y)) for x, y, *_ in points]
    parts = []
    if one.get("line", True):
        parts.append(f'<polyline class="line {kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}"/>')
    else:
        spreads = one.get("spread", [])
        for (x, y), (_, _, low, high), (left, right) in zip(at, points, spreads, strict=True):
            ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{y_axis(low):.1f}" y2="{y_axis(high):.1f}"'
            across = f'x1="{x_axis(left):.1f}" x2="{x_axis(right):.1f}" y1="{y:.1f}" y2="{y:.1f}"'
            parts += [f'<line class="whisker {kind}" {ends}/>', f'<line class="whisker {kind}" {across}/>']
    if one.get("dots"):
        for (x, y), (value, share, *_) in zip(at, points, strict=True):
            told = escape(f"{one['name']}: {value:.4g}, {share:.4g}")
            parts.append(f"<g>{shape(one['colour'] // MARKS, x, y, kind)}<title>{told}</title></g>")
    return "".join(parts)


def shape(number: int, x: float, y: float, kind: str) -> str:
    """A mark, one of three shapes in turn: a dot, a square, a triangle."""
    if number % 3 == 0:
        return f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
    if number % 3 == 1:
        return f'<rect class="dot {kind}" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'
    corners = f"{x:.1f},{y - 4:.1f} {x - 3.8:.1f},{y + 3:.1f} {x + 3.8:.1f},{y + 3:.1f}"
    return f'<polygon class="dot {kind}" points="{corners}"/>'


def thinned(points: Sequence[Any]) -> list[Any]:
    """At most 150 of the points, evenly spaced, with the last one."""
    stride = -(-len(points) // _MOST_POINTS)
    return list(points) if stride < 2 else [*points[:-1:stride], points[-1]]


def confusion(counts: Sequence[Sequence[int]], names: Sequence[str], columns: Sequence[str]) -> Markup:
    """A confusion matrix: a row per true class, a column per predicted class; shades are shares of the row."""
    size = 26
    left = 12 + 6 * min(max(map(len, names)), 9)
    top = 30 + 5 * min(max(map(len, columns)), 7)
    width, height = left + size * len(columns) + 4 * min(len(columns[-1]), 7), top + size * len(names) + 4
    parts = [f'<text class="label" x="{left}" y="10">predicted →</text>']
    for j, name in enumerate(columns):
        x = left + size * (j + 0.5) + 3.5
        parts.append(f'<text transform="translate({x:.1f} {top - 5}) rotate(-45)">{escape(_short(name, 7))}</text>')
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        y = top + size * i
        label = escape(_short(name, 9))
        parts.append(f'<text x="{left - 5}" y="{y + size / 2 + 3.5}" text-anchor="end">{label}</text>')
        for j, count in enumerate(row):
            parts.append(_cell(left + size * j, y, size, count, sum(row), i == j, f"{name} → {columns[j]}: {count}"))
    return Markup(  # noqa: S704 - every text in it is escaped
        f'<svg class="confusion" viewBox="0 0 {width} {height}" style="max-width:{width * 1.25:.0f}px" role="img" '
        f'aria-label="Confusion matrix">{"".join(parts)}</svg>'
    )


def _cell(x: float, y: float, size: float, count: int, total: int, right: bool, told: str) -> str:
    share = count / total if total else 0.0
    shade = f' style="fill-opacity:{0.12 + 0.88 * share:.2f}"' if count else ""
    kind = ("right" if right else "wrong") if count else "none"
    box = f'<rect class="{kind}" x="{x}" y="{y}" width="{size - 1.5}" height="{size - 1.5}" rx="3"{shade}/>'
    if not count:
        return box
    deep = ' class="deep"' if share > 0.55 else ""
    text = f'<text{deep} x="{x + size / 2 - 0.75}" y="{y + size / 2 + 2.75}" text-anchor="middle">{count}</text>'
    return f"<g>{box}{text}<title>{escape(told)}</title></g>"


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
