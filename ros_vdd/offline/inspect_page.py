# SPDX-License-Identifier: Apache-2.0
"""The parts that the inspection pages of bags, stores and policies share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ros_vdd import __version__
from ros_vdd.offline.inspect_html import Markup, page, tag
from ros_vdd.offline.inspect_numbers import number
from ros_vdd.offline.inspect_style import SCRIPT, STYLE
from ros_vdd.streams.spec import RobotSpec

SIGNS = {"keep": "✓", "look": "◆", "drop": "✕", "accept": "✓", "warn": "◆", "reject": "✕"}


def document(kind: str, name: str, parts: Iterable[Any]) -> str:
    """Return the page: what it is about, its parts, and by what it was made."""
    head = tag("header", tag("div", f"ros-vdd inspect · {kind}", class_="kind"), tag("h1", name))
    foot = tag("footer", f"ros_vdd {__version__}. This file is complete in itself and loads nothing.")
    return page(f"{name} · {kind}", [tag("main", head, list(parts), foot)], STYLE, SCRIPT)


def facts(pairs: Mapping[str, Any]) -> Markup:
    """Return names and values in one flowing line; None is left out."""
    shown = [tag("div", tag("dt", key), tag("dd", value)) for key, value in pairs.items() if value is not None]
    return tag("dl", shown, class_="facts")


def section(title: str, lead: str, *parts: Any) -> Markup:
    """Return a section: heading, a sentence that says how to read it, and its parts."""
    return tag("section", tag("h2", title), tag("p", lead, class_="lead") if lead else None, list(parts))


def verdict(level: str) -> Markup:
    """Return a verdict as sign, word and colour."""
    return tag("span", f"{SIGNS[level]} {level}", class_=f"verdict {level}")


def reasons(lines: Iterable[str]) -> Markup | None:
    """Return reasons as a list, None without any."""
    shown = [tag("li", line) for line in lines]
    return tag("ul", shown) if shown else None


def plots(drawn: Iterable[tuple[str, str, Markup]]) -> Markup:
    """Return plots in a grid: name, small print and drawing of each; a few are drawn larger."""
    figures = [tag("figure", tag("figcaption", name, " ", tag("small", note)), svg) for name, note, svg in drawn]
    return tag("div", figures, class_="plots few" if len(figures) <= 3 else "plots")


def line_key(*entries: tuple[str, str]) -> Markup:
    """Return the key of a plot: style class and meaning of each line or area."""
    drawn = []
    for style, meaning in entries:
        if style in ("idle", "gap", "seen"):
            mark = tag("rect", x=0, y=0, width=26, height=10, class_=style)
        else:
            mark = tag("line", x1=0, x2=26, y1=5, y2=5, class_=style)
        drawn.append(tag("span", tag("svg", mark, viewBox="0 0 26 10", aria_hidden="true"), meaning))
    return tag("div", drawn, class_="key")


def words(meanings: Mapping[str, str]) -> Markup:
    """Return what each word on the page means."""
    return tag("dl", [[tag("dt", word), tag("dd", meaning)] for word, meaning in meanings.items()], class_="words")


def robot_table(robot: RobotSpec) -> list[tuple[str, ...]]:
    """Return the rows of a robot's action: joint, unit, limits, fastest, head first."""
    action = robot.action
    fastest = action.max_velocity or [None] * len(action.joints)
    rows = [("joint", "unit", "lower limit", "upper limit", "max. velocity [unit/s]")]
    return rows + [
        (j, action.unit, number(low), number(high), number(v))
        for j, low, high, v in zip(action.joints, action.lower, action.upper, fastest)
    ]


def spans_of(mask: np.ndarray, dt_s: float) -> list[tuple[float, float]]:
    """Return the runs of True in `(N,)` as spans of time [s]."""
    change = np.diff(np.concatenate([[0], mask.astype(int), [0]]))
    return [(s * dt_s, (e - 1) * dt_s) for s, e in zip(np.flatnonzero(change == 1), np.flatnonzero(change == -1))]
