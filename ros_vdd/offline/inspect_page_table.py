# SPDX-License-Identifier: Apache-2.0
"""The table of a store's episodes: one row each, to sort and to filter."""

from __future__ import annotations

import numpy as np

from ros_vdd.data.episode_quality_comparison import FIGURES, UNUSUAL, Figure
from ros_vdd.data.episode_quality_survey import Review
from ros_vdd.data.episode_quality_verdict import LEVELS
from ros_vdd.offline import inspect_page as parts
from ros_vdd.offline.inspect_html import Markup, table, tag
from ros_vdd.offline.inspect_pictures import thumbnail
from ros_vdd.offline.inspect_store import StoreView

THUMBS = 300  # episodes above which the table has no pictures


def episode_table(view: StoreView, full: set[int]) -> Markup:
    """Return the section with the table; a number leads to the card of an episode that is shown in full.

    Args:
        full: which episodes are.
    """
    camera = next(iter(view.robot.cameras), None) if len(view.reviews) <= THUMBS else None
    goals = any(r.goal for r in view.reviews)
    ages = any(r.figures and r.figures.ages for r in view.reviews)
    head = [_sorted("#"), _sorted("verdict")]
    head += [tag("th", "first, last")] if camera else []
    head += [tag("th", "goal")] if goals else []
    used = [f for f in FIGURES if any(r.comparison and r.comparison.values[f.name] is not None for r in view.reviews)]
    head += [_sorted(f.name + (f" [{f.unit}]" if f.unit else " [%]"), number=True) for f in used]
    head += [_sorted("at limit [%]", number=True)] + ([_sorted("age p95 [ms]", number=True)] if ages else [])
    head += [tag("th", "reasons")]
    places = {f.name: _places(view, f) for f in used}
    rows = [_row(view, i, camera, goals, ages, places, i in full) for i in range(len(view.reviews))]
    buttons = [tag("button", "all", type="button", data_level="", aria_pressed="true")]
    buttons += [
        tag(
            "button",
            f"{parts.SIGNS[level]} {level} {view.verdicts[level]}",
            type="button",
            data_level=level,
            aria_pressed="false",
        )
        for level in LEVELS
    ]
    find = tag("input", type="search", id="words", placeholder="find a name, task or reason", aria_label="find")
    tools = tag("div", buttons, find, tag("span", id="shown"), class_="tools")
    lead = "Click a heading to sort. Bold figures are unusual in this set. A number leads to the episode's pictures and plots."
    return parts.section("Episodes", lead, tools, tag("div", table(head, rows, id="episodes"), class_="tall"))


def _row(view: StoreView, index: int, camera: str | None, goals: bool, ages: bool, places: dict[str, int], full: bool) -> Markup:
    review = view.reviews[index]
    name = (
        tag("a", review.name.removeprefix("episode_"), href=f"#{review.name}") if full else review.name.removeprefix("episode_")
    )
    cells = [
        tag("td", name, class_="mono", data_value=index),
        tag("td", parts.verdict(review.verdict), data_value=LEVELS.index(review.verdict)),
    ]
    if camera:
        cells.append(tag("td", _ends(view, index, camera) if review.figures else None, class_="thumbs"))
    if goals:
        cells.append(tag("td", review.goal, class_="goal"))
    for figure in (f for f in FIGURES if f.name in places):
        value = review.comparison.values[figure.name] if review.comparison else None
        told = "–" if value is None else f"{value:.{places[figure.name]}f}" if figure.unit else f"{100 * value:.1f}"
        cells.append(_number(value, told, "odd" if is_odd(review, figure) else ""))
    at_limit = review.figures.at_limit_share if review.figures else None
    cells.append(_number(at_limit, "–" if at_limit is None else f"{100 * at_limit:.1f}"))
    if ages:
        oldest = max((a.p95_s for a in review.figures.ages.values()), default=None) if review.figures else None
        cells.append(_number(oldest, "–" if oldest is None else f"{oldest * 1e3:.0f}"))
    cells.append(tag("td", "; ".join(review.reasons), class_="why"))
    return tag("tr", cells, data_verdict=review.verdict)


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


def _sorted(name: str, number: bool = False) -> Markup:
    return tag("th", tag("button", name, type="button"), data_sort=True, class_="n" if number else None)


def _number(value: float | None, told: str, style: str = "") -> Markup:
    return tag("td", told, class_=f"n {style}".strip(), data_value="" if value is None else f"{value:.6g}")


def oddness(review: Review) -> float:
    """Return the largest robust z-score of an episode's figures, in the direction that counts."""
    scores = [(f, review.comparison.z[f.name]) for f in FIGURES if review.comparison and review.comparison.z[f.name] is not None]
    return max((abs(z) if f.low else z for f, z in scores), default=0.0)


def is_odd(review: Review, figure: Figure) -> bool:
    """Return whether a figure of an episode is unusual."""
    z = review.comparison.z[figure.name] if review.comparison else None
    return z is not None and (z > UNUSUAL or bool(figure.low) and z < -UNUSUAL)
