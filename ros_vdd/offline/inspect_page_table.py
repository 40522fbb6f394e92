# SPDX-License-Identifier: Apache-2.0
"""The table of a store's episodes: one row each, to sort and to filter."""

from __future__ import annotations

import shlex
from typing import NamedTuple

import numpy as np

from ros_vdd.data.episode_quality_comparison import FIGURES, UNUSUAL, Figure
from ros_vdd.data.episode_quality_survey import Review
from ros_vdd.data.episode_quality_verdict import LEVELS
from ros_vdd.offline import inspect_page as parts
from ros_vdd.offline.inspect_html import Markup, table, tag
from ros_vdd.offline.inspect_pictures import thumbnail
from ros_vdd.offline.inspect_store import StoreView

THUMBS = 300  # episodes above which the table has no pictures


class Shown(NamedTuple):
    """Which columns the table has: the camera of its pictures, goals, ages, and each figure's number of decimals."""

    camera: str | None
    goals: bool
    ages: bool
    places: dict[str, int]

    @classmethod
    def of(cls, view: StoreView) -> Shown:
        """Leave out what no episode has, and pictures where there are too many."""
        figures = [r.figures for r in view.reviews if r.figures]
        used = [f for f in FIGURES if any(r.comparison and r.comparison.values[f.name] is not None for r in view.reviews)]
        return cls(
            camera=next(iter(view.robot.cameras), None) if len(view.reviews) <= THUMBS else None,
            goals=any(r.goal for r in view.reviews),
            ages=any(f.ages for f in figures),
            places={f.name: _places(view, f) for f in used},
        )


def episode_table(view: StoreView, full: set[int]) -> Markup:
    """Return the section with the table; a number leads to the card of an episode that is shown in full.

    Args:
        full: which episodes are.
    """
    shown = Shown.of(view)
    rows = [_row(view, i, shown, i in full) for i in range(len(view.reviews))]
    buttons = [tag("button", "all", type="button", data_level="", aria_pressed="true")]
    for level in LEVELS:
        told = f"{parts.SIGNS[level]} {level} {view.verdicts[level]}"
        buttons.append(tag("button", told, type="button", data_level=level, aria_pressed="false"))
    find = tag("input", type="search", id="words", placeholder="find a name, task or reason", aria_label="find")
    tools = tag("div", buttons, find, tag("span", id="shown"), class_="tools")
    lead = "Click a heading to sort. Bold figures are unusual in this set. A number leads to the episode's pictures and plots."
    whole = tag("div", table(_head(shown), rows, id="episodes"), class_="tall")
    return parts.section("Episodes", lead, tools, whole)


def _head(shown: Shown) -> list[Markup]:
    head = [tag("th", "leave", tag("br"), "out"), _sorted("#"), _sorted("verdict"), tag("th", "reasons")]
    head += [tag("th", "first, last")] if shown.camera else []
    head += [tag("th", "goal")] if shown.goals else []
    head += [_sorted(f.name, f.unit or "%") for f in FIGURES if f.name in shown.places]
    return head + [_sorted("at limit", "%")] + ([_sorted("age p95", "ms")] if shown.ages else [])


def _row(view: StoreView, index: int, shown: Shown, full: bool) -> Markup:
    review = view.reviews[index]
    figures, comparison, number = review.figures, review.comparison, review.name.removeprefix("episode_")
    cells = [
        tag("td", leave_out_box(review), class_="box"),
        tag("td", tag("a", number, href=f"#{review.name}") if full else number, class_="mono", data_value=index),
        tag("td", parts.verdict(review.verdict), data_value=LEVELS.index(review.verdict)),
        tag("td", _first(review.reasons), class_="why"),
    ]
    if shown.camera:
        cells.append(tag("td", _ends(view, index, shown.camera) if figures else None, class_="thumbs"))
    if shown.goals:
        cells.append(tag("td", review.goal, class_="goal"))
    for figure in (f for f in FIGURES if f.name in shown.places):
        value = comparison.values[figure.name] if comparison else None
        factor, decimals = (1, shown.places[figure.name]) if figure.unit else (100, 1)
        cells.append(_number(value, factor, decimals, "odd" if is_odd(review, figure) else ""))
    cells.append(_number(figures.at_limit_share if figures else None, 100, 1))
    if shown.ages:
        oldest = max((a.p95_s for a in figures.ages.values()), default=None) if figures else None
        cells.append(_number(oldest, 1000, 0))
    return tag("tr", cells, data_verdict=review.verdict)


def _first(reasons: tuple[str, ...]) -> list[Markup | str]:
    """Return the first reason and how many more there are; the others are there to be found, and on the card."""
    more = len(reasons) - 1
    if more < 1:
        return list(reasons)
    return [
        reasons[0],
        tag("small", f" and {more} more", title="\n".join(reasons[1:])),
        tag("span", " ".join(reasons[1:]), hidden=True),
    ]


def _places(view: StoreView, figure: Figure) -> int:
    """Return how many decimals give the middle episode three digits."""
    values = [
        abs(r.comparison.values[figure.name])
        for r in view.reviews
        if r.comparison and r.comparison.values[figure.name] is not None
    ]
    middle = float(np.median(values))
    return min(max(2 - int(np.floor(np.log10(middle))), 0), 4) if middle > 0 else 2


def _ends(view: StoreView, index: int, camera: str) -> list[Markup]:
    frames = view.store[index][f"images.{camera}"]
    return [thumbnail(frames[i], f"{camera}, {where} picture", 40) for i, where in ((0, "first"), (len(frames) - 1, "last"))]


def _sorted(name: str, unit: str = "") -> Markup:
    """Return a heading to sort by; one with a unit is of numbers."""
    small = [tag("br"), tag("small", unit)] if unit else None
    return tag("th", tag("button", name, type="button"), small, data_sort=True, class_="n" if unit else None)


def _number(value: float | None, factor: float, decimals: int, style: str = "") -> Markup:
    told = "–" if value is None else f"{factor * value:.{decimals}f}"
    return tag("td", told, class_=f"n {style}".strip(), data_value="" if value is None else f"{value:.6g}")


def leave_out_box(review: Review) -> Markup:
    """Return the box by which a person decides; what is to be dropped has it ticked."""
    about = f"leave {review.name} out"
    return tag("input", type="checkbox", data_name=shlex.quote(review.name), checked=review.verdict == "drop", aria_label=about)


def oddness(review: Review) -> float:
    """Return the largest robust z-score of an episode's figures, in the direction that counts."""
    scores = [(f, review.comparison.z[f.name]) for f in FIGURES if review.comparison and review.comparison.z[f.name] is not None]
    return max((abs(z) if f.low else z for f, z in scores), default=0.0)


def is_odd(review: Review, figure: Figure) -> bool:
    """Return whether a figure of an episode is unusual."""
    z = review.comparison.z[figure.name] if review.comparison else None
    return z is not None and (z > UNUSUAL or bool(figure.low) and z < -UNUSUAL)
