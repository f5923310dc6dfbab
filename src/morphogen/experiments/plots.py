"""Scatter plots on logarithmic axes as SVG, without a plotting library."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

_WIDTH, _HEIGHT = 640, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 20, 50
_RADIUS, _LETTER = 5, 6.8  # of a point, and the width of a letter, in pixels
_Box = tuple[float, float, float, float]  # left, top, right, bottom
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
        wide = self._high - self._low
        factors = (1,) if wide >= 2.5 else (1, 2, 5) if wide >= 0.7 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)
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
        y = _Axis([p.y + e for p in shown for e in (0.0, p.error or 0.0)], _HEIGHT - _BOTTOM, _TOP)
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
        colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(shown))]
        # Bars first and names last, so that none hides another.
        parts += [_bar(p, x, y, colour) for p, colour in zip(shown, colours, strict=True)]
        parts += [_mark(p, x, y, colour) for p, colour in zip(shown, colours, strict=True)]
        parts += _names(shown, x, y, colours)
    parts.append(
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text transform="translate(16 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{html.escape(y_label)}</text>'
    )
    if hidden:
        said = html.escape(f"not above zero: {', '.join(hidden)}")
        parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 28}" fill="#888" font-size="10">{said}</text>')
    return "".join(parts) + "</svg>\n"


def _mark(point: Point, x: _Axis, y: _Axis, colour: str) -> str:
    fill = "white" if point.published else colour
    return (
        f'<circle cx="{x.at(point.x):.1f}" cy="{y.at(point.y):.1f}" r="{_RADIUS}" fill="{fill}" stroke="{colour}" '
        'stroke-width="1.5"/>'
    )


def _bar(point: Point, x: _Axis, y: _Axis, colour: str) -> str:
    if not point.error:
        return ""
    _, high, _, low = _bar_box(point, x, y)
    return f'<path d="M{x.at(point.x):.1f} {low:.1f}V{high:.1f}" stroke="{colour}"/>'


def _bar_box(point: Point, x: _Axis, y: _Axis) -> _Box:
    error, left = point.error or 0.0, x.at(point.x)
    return left - 1, y.at(point.y + error), left + 1, y.at(max(point.y - error, 1e-12))


def _names(points: Sequence[Point], x: _Axis, y: _Axis, colours: Sequence[str]) -> list[str]:
    """The points' names in their colours, each beside its point at the first place that nothing else has, or else the
    emptiest one.
    """
    places = [(x.at(p.x), y.at(p.y)) for p in points]
    taken = [(left - _RADIUS, top - _RADIUS, left + _RADIUS, top + _RADIUS) for left, top in places]
    taken += [_bar_box(p, x, y) for p in points if p.error]
    named: list[str] = []
    for point, (left, top), colour in zip(points, places, colours, strict=True):
        wide = _LETTER * len(point.name)
        boxes: list[_Box] = []
        for middle in (-8, 8, -20, 20, -32, 32):  # heights of the name's middle beside the point's
            for start in (left + 8, left - 8 - wide):
                boxes.append((start, top + middle - 6, start + wide, top + middle + 6))
        box = min(boxes, key=lambda b: sum(_overlap(b, t) for t in taken) + _outside(b))
        taken.append(box)
        at, anchor = (box[0], "start") if box[0] > left else (box[2], "end")
        named.append(
            f'<text x="{at:.1f}" y="{box[3] - 2:.1f}" text-anchor="{anchor}" fill="{colour}" stroke="white" '
            f'stroke-width="3" paint-order="stroke">{html.escape(point.name)}</text>'
        )
    return named


def _overlap(a: _Box, b: _Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: _Box) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return area - _overlap(box, (_LEFT, 0, _WIDTH, _HEIGHT - _BOTTOM))
