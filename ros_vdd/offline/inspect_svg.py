# SPDX-License-Identifier: Apache-2.0
"""Small drawings as inline SVG: lines over time, histograms, strips of a timeline. Colours come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ros_vdd.offline.inspect_html import Markup, tag
from ros_vdd.offline.inspect_numbers import number, ticks

WIDTH, HEIGHT = 360, 132  # [px] of a drawing, before the page stretches it
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 18
POINTS = 240  # of a line; of more samples the extremes of each piece are kept
SHOW_LIMITS = 0.25  # of the range between the limits: what moves less would be squashed by drawing them


class Line(NamedTuple):
    """Samples (N,) over time (N,) [s], and the style class of the line."""

    times: np.ndarray
    values: np.ndarray
    style: str


class Frame(NamedTuple):
    """The rectangle that data is drawn in, and what it spans."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = WIDTH
    height: int = HEIGHT

    def across(self, x: np.ndarray | float) -> np.ndarray | float:
        """Return [px] of a place on the x axis."""
        return LEFT + (x - self.x[0]) / (self.x[1] - self.x[0] or 1) * (self.width - LEFT - RIGHT)

    def up(self, y: np.ndarray | float) -> np.ndarray | float:
        """Return [px] of a place on the y axis."""
        return self.height - BOTTOM - (y - self.y[0]) / (self.y[1] - self.y[0] or 1) * (self.height - TOP - BOTTOM)


def plot(
    lines: Sequence[Line],
    unit: str,
    label: str,
    limits: tuple[float, float] | None = None,
    shade: Iterable[tuple[float, float]] = (),
    x_unit: str = "s",
    least: float = 0.0,
) -> Markup:
    """Return lines over time with axes.

    Args:
        unit: of the values, for the limits told in words.
        label: what it shows, for those who can't see it.
        limits: drawn dashed where the lines use a quarter of what lies between them; else told in the corner.
        shade: [x_unit] spans to shade: idle.
        x_unit: of the times.
        least: [unit] the axis spans at least this, so that noise looks like noise.
    """
    low = min((float(line.values.min()) for line in lines if len(line.values)), default=0.0)
    high = max((float(line.values.max()) for line in lines if len(line.values)), default=1.0)
    drawn = limits is not None and high - low >= SHOW_LIMITS * (limits[1] - limits[0])
    if drawn:
        low, high = min(low, limits[0]), max(high, limits[1])
    middle, half = (low + high) / 2, max(high - low, least) / 2
    low, high = middle - half, middle + half
    margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.05
    end = max((float(line.times[-1]) for line in lines if len(line.times)), default=1.0)
    begin = min((float(line.times[0]) for line in lines if len(line.times)), default=0.0)
    told = limits is not None and not drawn
    frame = Frame((begin, end), (low - margin, high + margin * (4 if told else 1)))
    marks = [_shade(frame, *span) for span in shade]
    marks += _axes(frame, x_unit)
    marks += [_across(frame, limit, "limit") for limit in (limits or ()) if drawn]
    if told:
        words = f"limits {number(limits[0])} to {number(limits[1], unit)} lie outside"
        marks.append(tag("text", words, x=frame.width - RIGHT, y=TOP + 8, class_="note end"))
    marks += [
        tag("path", d=path(frame, line.times, line.values), class_=f"line {line.style}") for line in lines if len(line.values)
    ]
    return _svg(frame, label, marks)


def path(frame: Frame, times: np.ndarray, values: np.ndarray) -> str:
    """Return the `d` of a line, thinned to some hundred points without losing a peak."""
    times, values = thinned(np.asarray(times, np.float64), np.asarray(values, np.float64))
    points = zip(np.atleast_1d(frame.across(times)), np.atleast_1d(frame.up(values)))
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def thinned(times: np.ndarray, values: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `points` + 2 samples: of each piece the smallest and the largest, and both ends."""
    if len(values) <= points:
        return times, values
    pieces = np.array_split(np.arange(len(values)), points // 2)
    kept = sorted({0, len(values) - 1} | {int(p[f(values[p])]) for p in pieces for f in (np.argmin, np.argmax)})
    return times[kept], values[kept]


def histogram(
    values: Sequence[float], groups: Sequence[str], unit: str, label: str, percent: bool = False, bins: int = 24
) -> Markup:
    """Return a histogram, stacked by group; the dashed line is the median.

    Args:
        values, groups: of each item its value and the style class of its group.
        percent: values are shares.
    """
    data = np.asarray(values, np.float64) * (100 if percent else 1)
    low, high = float(data.min()), float(data.max())
    if high - low < 1e-9 * max(abs(high), 1):
        low, high = low - max(abs(low), 1) * 0.05, high + max(abs(high), 1) * 0.05
    low = max(low, 0.0) if percent else low
    edges = np.linspace(low, high, bins + 1)
    names = list(dict.fromkeys(groups))
    where = np.array([names.index(g) for g in groups])
    counts = np.stack([np.histogram(data[where == i], edges)[0] for i in range(len(names))])
    frame = Frame((low, high), (0, float(counts.sum(axis=0).max())))
    marks = _axes(frame, "%" if percent else unit)
    base = np.zeros(bins)
    for name, count in zip(names, counts):
        for left, right, start, n in zip(edges, edges[1:], base, count):
            if n:
                x, width = frame.across(left) + 0.5, frame.across(right) - frame.across(left) - 1
                y, tall = frame.up(start + n), frame.up(start) - frame.up(start + n)
                marks.append(
                    tag("rect", x=f"{x:.1f}", y=f"{y:.1f}", width=f"{width:.1f}", height=f"{tall:.1f}", class_=f"bar {name}")
                )
        base = base + count
    middle = f"{frame.across(float(np.median(data))):.1f}"
    marks.append(tag("line", x1=middle, x2=middle, y1=TOP, y2=frame.height - BOTTOM, class_="median"))
    return _svg(frame, label, marks)


def strip(
    spans: Iterable[tuple[float, float, str]], points: np.ndarray, duration_s: float, label: str, width: int = 640
) -> Markup:
    """Return one row of a timeline.

    Args:
        spans: [s] from, to and style class of each coloured part, drawn over the messages.
        points: [s] of each message; of a dense stream neighbours melt together.
        duration_s: [s] that the row spans.
    """
    scale = width / (duration_s or 1)
    columns = np.unique(np.clip((np.asarray(points) * scale * 2).astype(int), 0, 2 * width - 1))  # half pixels
    marks = [tag("rect", x=0, y=0, width=width, height=14, class_="track")]
    if len(columns):
        breaks = np.flatnonzero(np.diff(columns) > 1)
        starts, ends = columns[np.r_[0, breaks + 1]], columns[np.r_[breaks, len(columns) - 1]]
        drawn = "".join(f"M{a / 2:g} 2h{(b - a + 1) / 2:g}v10h-{(b - a + 1) / 2:g}z" for a, b in zip(starts, ends))
        marks.append(tag("path", d=drawn, class_="seen"))
    for begin, end, style in spans:
        x, wide = begin * scale, max((end - begin) * scale, 2.0)
        marks.append(tag("rect", x=f"{x:.1f}", y=0, width=f"{wide:.1f}", height=14, class_=style))
    return tag(
        "svg", tag("title", label), marks, viewBox=f"0 0 {width} 14", preserveAspectRatio="none", role="img", class_="strip"
    )


def _axes(frame: Frame, x_unit: str) -> list[Markup]:
    """Return grid and numbers; the unit of x stands with its last number, that of y in the caption."""
    across, up = ticks(*frame.x, 5), ticks(*frame.y, 3)
    marks = [_across(frame, y, "grid") for y in up]
    for y in up:
        told = number(y, digits=4)
        marks.append(tag("text", told, x=LEFT - 5, y=f"{frame.up(y) + 3.5:.1f}", class_="end"))
    for x in across:
        told = number(x, x_unit if x == across[-1] else "", digits=4)
        place = frame.across(x)
        anchor = "end" if place > frame.width - 24 else "middle"
        marks.append(tag("text", told, x=f"{min(place, frame.width - 1):.1f}", y=frame.height - 5, class_=anchor))
    return marks


def _across(frame: Frame, y: float, style: str) -> Markup:
    place = f"{frame.up(y):.1f}"
    return tag("line", x1=LEFT, x2=frame.width - RIGHT, y1=place, y2=place, class_=style)


def _shade(frame: Frame, begin: float, end: float) -> Markup:
    x, wide = frame.across(begin), frame.across(end) - frame.across(begin)
    return tag("rect", x=f"{x:.1f}", y=TOP, width=f"{max(wide, 1):.1f}", height=frame.height - TOP - BOTTOM, class_="idle")


def _svg(frame: Frame, label: str, marks: Iterable[Markup]) -> Markup:
    return tag("svg", tag("title", label), marks, viewBox=f"0 0 {frame.width} {frame.height}", role="img", class_="plot")
