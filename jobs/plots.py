"""Plots as inline SVG: no script, no file beside the page."""

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 460, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 30, 34
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#0a7ea4", "#bf3989", "#57606a")
_TICKS = 4
_BAR, _NAME = 24, 130
_NAME_CHARS = 20

Line = Sequence[tuple[float, float]]


def line_plot(
    title: str,
    lines: Mapping[str, Line],
    levels: Mapping[str, float],
    logarithmic: bool = False,
    across_what: str = "step",
) -> str:
    """An SVG element.

    Args:
        lines: points (x, y) by name; y above 0 where the axis is logarithmic. One without points
            keeps its colour, so that a name has the same in all plots of a page.
        levels: values drawn as dashed horizontal lines, by name.
        across_what: what x counts, for who points at a value.
    """
    ys = [y for line in lines.values() for _, y in line] + list(levels.values())
    xs = [x for line in lines.values() for x, _ in line]
    if not xs:
        return ""
    across = _Axis(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    up = _Axis(*_padded(ys, logarithmic), _HEIGHT - _BOTTOM, _TOP, logarithmic)
    parts = [f'<text x="{_LEFT}" y="16" class="title">{escape(title)}</text>']
    parts += _grid(across, up)
    shown = [
        (name, _colour(i))
        for i, name in enumerate([*lines, *levels])
        if name in levels or lines[name]
    ]
    for i, (name, line) in enumerate(lines.items()):
        points = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{_colour(i)}"/>')
        parts += [
            f'<circle cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="2" fill="{_colour(i)}">'
            f"<title>{escape(name)}, {across_what} {x:g}: {y:.5g}</title></circle>"
            for x, y in line
        ]
    for i, y in enumerate(levels.values(), len(lines)):
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up.at(y):.1f}" y2="{up.at(y):.1f}" '
            f'stroke="{_colour(i)}" stroke-dasharray="4 3"/>'
        )
    return _figure(title, parts, _HEIGHT, _legend(shown))


def bar_plot(title: str, bars: Mapping[str, tuple[float, str]]) -> str:
    """An SVG element of horizontal bars, one below the other.

    Args:
        bars: length, none below 0, and what is written beside it, by name.
    """
    most = max((length for length, _ in bars.values()), default=0.0)
    if not most:
        return ""
    parts = [f'<text x="8" y="16" class="title">{escape(title)}</text>']
    for i, (name, (length, says)) in enumerate(bars.items()):
        y, width = _TOP + i * _BAR, length / most * (_WIDTH - 2 * _NAME)
        short = name if len(name) <= _NAME_CHARS else f"{name[: _NAME_CHARS - 1]}…"
        parts.append(
            f'<text x="{_NAME - 6}" y="{y + 13}" text-anchor="end">{escape(short)}'
            f"<title>{escape(name)}</title></text>"
        )
        parts.append(
            f'<rect x="{_NAME}" y="{y}" width="{max(width, 1):.1f}" height="{_BAR - 6}" '
            f'fill="{_colour(0)}"/>'
        )
        parts.append(f'<text x="{_NAME + width + 5:.1f}" y="{y + 13}">{escape(says)}</text>')
    return _figure(title, parts, _TOP + len(bars) * _BAR, "")


def _figure(title: str, parts: Sequence[str], height: int, caption: str) -> str:
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg><figcaption>{caption}</figcaption></figure>"
    )


class _Axis:
    """From values to pixels."""

    def __init__(
        self, low: float, high: float, start: float, end: float, logarithmic: bool = False
    ) -> None:
        self._scale = math.log10 if logarithmic else float
        self._low, self._high = self._scale(low), self._scale(high)
        self._start, self._end = start, end
        self.logarithmic = logarithmic

    def at(self, value: float) -> float:
        span = (self._high - self._low) or 1.0
        return self._start + (self._scale(value) - self._low) / span * (self._end - self._start)

    def ticks(self) -> list[float]:
        steps = [self._low + (self._high - self._low) * i / _TICKS for i in range(_TICKS + 1)]
        return [10**step for step in steps] if self.logarithmic else steps


def _padded(values: Sequence[float], logarithmic: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if logarithmic:
        return low / 1.1, high * 1.1
    margin = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


def _grid(across: _Axis, up: _Axis) -> list[str]:
    lines = []
    for value in up.ticks():
        y = up.at(value)
        lines.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        )
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for value in across.ticks():
        x, y = across.at(value), _HEIGHT - _BOTTOM + 16
        lines.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{value:.0f}</text>')
    return lines


def _legend(shown: Sequence[tuple[str, str]]) -> str:
    return " ".join(
        f'<span style="color:{colour}">&#9632;</span> {escape(name)}' for name, colour in shown
    )


def _colour(i: int) -> str:
    return _COLOURS[i % len(_COLOURS)]
