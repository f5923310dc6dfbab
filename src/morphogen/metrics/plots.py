"""Scatter plots on logarithmic axes as SVG, without a plotting library."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

_WIDTH, _HEIGHT = 640, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 20, 50
_COLOURS = ("#2563eb", "#dc2626", "#16a34a", "#9333ea", "#ea580c", "#0891b2", "#4d7c0f", "#be185d")


class Point(NamedTuple):
    """A model in the plot: x and y positive; error half the height of its interval; hollow where it was published."""

    name: str
    x: float
    y: float
    error: float | None = None
    published: bool = False


class _Axis:
    """A logarithmic axis from `start` to `end` pixels with ticks at 1, 2 and 5 times powers of ten."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = math.log10(min(values)), math.log10(max(values))
        margin = max(0.08 * (high - low), 0.08)
        self._low, self._high, self._start, self._end = low - margin, high + margin, start, end

    def at(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._start + min(max(share, 0.0), 1.0) * (self._end - self._start)

    def ticks(self) -> list[float]:
        decades = range(math.floor(self._low), math.ceil(self._high) + 1)
        factors = (1, 2, 5) if self._high - self._low < 2.5 else (1,)
        found = [f * 10.0**d for d in decades for f in factors]
        return [t for t in found if self._low <= math.log10(t) <= self._high]


def _short(value: float) -> str:
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{suffix}"
    return f"{value:g}"


def scatter(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """An SVG picture. Points that a logarithmic axis cannot show (a distance not above zero) are named below it."""
    shown = [p for p in points if p.x > 0 and p.y > 0]
    hidden = [p.name for p in points if not (p.x > 0 and p.y > 0)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    if shown:
        x = _Axis([p.x for p in shown], _LEFT, _WIDTH - _RIGHT)
        y = _Axis([p.y for p in shown], _HEIGHT - _BOTTOM, _TOP)
        for tick in x.ticks():
            parts.append(
                f'<path d="M{x.at(tick):.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#e5e5e5"/>'
                f'<text x="{x.at(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_short(tick)}</text>'
            )
        for tick in y.ticks():
            parts.append(
                f'<path d="M{_LEFT} {y.at(tick):.1f}H{_WIDTH - _RIGHT}" stroke="#e5e5e5"/>'
                f'<text x="{_LEFT - 6}" y="{y.at(tick) + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
            )
        for i, point in enumerate(shown):
            parts.append(_mark(point, x, y, _COLOURS[i % len(_COLOURS)]))
    parts.append(
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text transform="translate(16 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{html.escape(y_label)}</text>'
    )
    if hidden:
        said = html.escape(f"not above zero: {', '.join(hidden)}")
        parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 28}" fill="#888" font-size="10">{said}</text>')
    return "".join(parts) + "</svg>\n"


def _mark(point: Point, x: _Axis, y: _Axis, colour: str) -> str:
    left, top = x.at(point.x), y.at(point.y)
    fill = "white" if point.published else colour
    mark = f'<circle cx="{left:.1f}" cy="{top:.1f}" r="5" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'
    if point.error:
        low = y.at(max(point.y - point.error, 1e-12))
        mark += f'<path d="M{left:.1f} {low:.1f}V{y.at(point.y + point.error):.1f}" stroke="{colour}"/>'
    beyond = left > _WIDTH - 160
    anchor, shift = ("end", -8) if beyond else ("start", 8)
    return mark + (
        f'<text x="{left + shift:.1f}" y="{top - 6:.1f}" text-anchor="{anchor}">{html.escape(point.name)}</text>'
    )
