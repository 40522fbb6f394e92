# SPDX-License-Identifier: Apache-2.0
"""The page of an episode store: which demonstrations to keep, to look at, and to drop."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np

from ros_vdd.data.episode_quality_columns import Columns
from ros_vdd.data.episode_quality_survey import Review
from ros_vdd.data.episode_quality_verdict import FEWEST, FIGURES, LEVELS, UNUSUAL, Figure
from ros_vdd.offline import inspect_page as parts
from ros_vdd.offline.inspect_html import Markup, table, tag
from ros_vdd.offline.inspect_numbers import clock, milliseconds, number, share
from ros_vdd.offline.inspect_page_episode import episode_card
from ros_vdd.offline.inspect_pictures import thumbnail
from ros_vdd.offline.inspect_store import StoreView
from ros_vdd.offline.inspect_svg import Line, histogram, plot

THUMBS = 300  # episodes above which the table has no pictures
OVERLAID, ODD, OVERLAID_JOINTS = 100, 12, 8  # lines in a drawing, those that stand out, and drawings
TITLES = {
    "duration": ("Duration", "from the first to the last tick"),
    "path": ("Path length", "way of all joints together; a joint's range in this store counts 1"),
    "jerk": ("Jerk", "as a frequency, median over the joints: smooth is low, shaky is high"),
    "idle": ("Idle", "share of ticks in which nothing moves for half a second or longer"),
    "lag": ("Lag", "how long after the action the state follows"),
    "start": ("Start", "how far the first position is from the median one"),
    "end": ("End", "how far the last position is from the median one"),
}


def store_page(view: StoreView, content: dict[str, Any], full: list[int]) -> str:
    """Return the page.

    Args:
        content: as `describe_store` returns it.
        full: which episodes are shown with pictures and plots.
    """
    shown = [_overview(view, content), _spread(view), _together(view), _table(view, set(full))]
    shown += [_cards(view, full), _leave_out(view), _arrays(content), _robot(view), _words(view)]
    return parts.document("episode store", view.store.root.resolve().name, [part for part in shown if part])


def choose_full(reviews: list[Review], most: int) -> list[int]:
    """Return which episodes to show in full: those to drop or look at first, the rest evenly spread, in their order."""
    asked = [i for i, r in enumerate(reviews) if r.verdict == "drop"] + [i for i, r in enumerate(reviews) if r.verdict == "look"]
    kept = [i for i, r in enumerate(reviews) if r.verdict == "keep"]
    room = max(most - len(asked), 0)
    if kept and room:
        asked += [kept[i] for i in sorted(set(np.linspace(0, len(kept) - 1, min(room, len(kept))).round().astype(int).tolist()))]
    return sorted(asked[:most])


def _overview(view: StoreView, content: dict[str, Any]) -> list[Markup]:
    counts, total = view.verdicts, len(view.reviews)
    facts = {
        "robot": view.robot.name,
        "rate": number(view.robot.rate_hz, "Hz", 4),
        "episodes": str(total),
        "frames": f"{content['frames']:,}".replace(",", " "),
        "duration": clock(content["duration_s"]),
        "fingerprint": tag("code", content["fingerprint"][:16], title=content["fingerprint"]) if content["fingerprint"] else None,
        "path": tag("code", view.store.root),
    }
    says = {"keep": "nothing unusual found", "look": "worth a look, with reasons", "drop": "no use for training, with reasons"}
    tiles = [
        tag("div", parts.verdict(level), tag("b", counts[level]), tag("span", f"{share(counts[level] / (total or 1))} · {says[level]}"), class_=f"tile {level}")
        for level in LEVELS
    ]
    split = tag("div", [tag("i", class_=level, style=f"width:{100 * counts[level] / (total or 1):.3f}%") for level in LEVELS], class_="split", aria_hidden="true")
    notes = [tag("li", remark) for remark in view.remarks]
    return [parts.facts(facts), tag("div", tiles, class_="tiles"), split, tag("ul", notes, class_="remarks") if notes else None]


def _spread(view: StoreView) -> Markup | None:
    charts = [_chart(view, figure) for figure in FIGURES]
    charts = [chart for chart in charts if chart]
    lead = f"How the episodes spread in each figure; the dashed line is the median. A robust z-score above {UNUSUAL} is unusual"
    lead += f" and worth a look; goals with fewer than {FEWEST} episodes aren't compared."
    return parts.section("Figures", lead, tag("div", charts, class_="grid")) if charts else None


def _chart(view: StoreView, figure: Figure) -> Markup | None:
    known = [(r.comparison.values[figure.name], r) for r in view.reviews if r.comparison and r.comparison.values[figure.name] is not None]
    if not known:
        return None
    values = [value for value, _ in known]
    title, what = TITLES[figure.name]
    odd = sum(_is_odd(r, figure) for _, r in known)
    percent = not figure.unit
    middle = share(float(np.median(values))) if percent else number(float(np.median(values)), figure.unit)
    told = f"median {middle}" + (f" · {odd} unusual" if odd else "")
    drawn = histogram(values, [r.verdict for _, r in known], figure.unit, f"{title} of {len(values)} episodes", percent)
    return tag("div", tag("h3", title, tag("small", told)), drawn, tag("p", what), class_="chart")


def _oddness(review: Review) -> float:
    """Return the largest robust z-score of an episode's figures, in the direction that counts."""
    scores = [(f, review.comparison.z[f.name]) for f in FIGURES if review.comparison and review.comparison.z[f.name] is not None]
    return max((abs(z) if f.low else z for f, z in scores), default=0.0)


def _is_odd(review: Review, figure: Figure) -> bool:
    z = review.comparison.z[figure.name] if review.comparison else None
    return z is not None and (z > UNUSUAL or bool(figure.low) and z < -UNUSUAL)


def _together(view: StoreView) -> Markup | None:
    """All episodes over each other, joint by joint; the most unusual ones stand out."""
    columns = Columns.of(view.robot)
    readable = [i for i, r in enumerate(view.reviews) if r.figures]
    if not columns.state or len(readable) < 2:
        return None
    odd = sorted((i for i in readable if _oddness(view.reviews[i]) > UNUSUAL), key=lambda i: -_oddness(view.reviews[i]))[:ODD]
    even = {readable[i] for i in np.linspace(0, len(readable) - 1, min(len(readable), OVERLAID)).round().astype(int)}
    chosen = sorted(even - set(odd)) + odd
    lines: list[list[Line]] = [[] for _ in columns.state]
    for index in chosen:
        positions = columns.positions(view.store[index], view.robot)
        at = np.linspace(0, len(positions) - 1, min(len(positions), 64)).round().astype(int)
        for column in range(len(columns.state)):
            lines[column].append(Line(at / max(len(positions) - 1, 1) * 100, positions[at, column], "odd" if index in odd else "many"))
    drawn = [
        (name, "" if unit == "1" else f"[{unit}]", plot(lines[i], unit, f"{name} of all episodes", x_unit="%"))
        for i, (name, unit) in enumerate(zip(columns.names, columns.units))
        if any(np.ptp(line.values) > 0 for line in lines[i])
    ]
    more = len(drawn) - OVERLAID_JOINTS
    lead = f"Each line is an episode, from its beginning (0 %) to its end (100 %); {len(chosen)} of {len(readable)} are drawn."
    lead += f" The first {OVERLAID_JOINTS} measured positions; {more} more are in the episodes below." if more > 0 else ""
    key = parts.line_key(("line state", "an episode"), ("line odd", "one with an unusual figure")) if odd else None
    return parts.section("All episodes at once", lead, key, parts.plots(drawn[:OVERLAID_JOINTS]))


def _table(view: StoreView, full: set[int]) -> Markup:
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
    buttons += [tag("button", f"{parts.SIGNS[level]} {level} {view.verdicts[level]}", type="button", data_level=level, aria_pressed="false") for level in LEVELS]
    find = tag("input", type="search", id="words", placeholder="find a name, task or reason", aria_label="find")
    tools = tag("div", buttons, find, tag("span", id="shown"), class_="tools")
    lead = "Click a heading to sort. Bold figures are unusual in this set. A number leads to the episode's pictures and plots."
    return parts.section("Episodes", lead, tools, tag("div", table(head, rows, id="episodes"), class_="tall"))


def _row(view: StoreView, index: int, camera: str | None, goals: bool, ages: bool, places: dict[str, int], full: bool) -> Markup:
    review = view.reviews[index]
    name = tag("a", review.name.removeprefix("episode_"), href=f"#{review.name}") if full else review.name.removeprefix("episode_")
    cells = [tag("td", name, class_="mono", data_value=index), tag("td", parts.verdict(review.verdict), data_value=LEVELS.index(review.verdict))]
    if camera:
        cells.append(tag("td", _ends(view, index, camera) if review.figures else None, class_="thumbs"))
    if goals:
        cells.append(tag("td", review.goal, class_="goal"))
    for figure in (f for f in FIGURES if f.name in places):
        value = review.comparison.values[figure.name] if review.comparison else None
        told = "–" if value is None else f"{value:.{places[figure.name]}f}" if figure.unit else f"{100 * value:.1f}"
        cells.append(_number(value, told, "odd" if _is_odd(review, figure) else ""))
    at_limit = review.figures.at_limit_share if review.figures else None
    cells.append(_number(at_limit, "–" if at_limit is None else f"{100 * at_limit:.1f}"))
    if ages:
        oldest = max((a.p95_s for a in review.figures.ages.values()), default=None) if review.figures else None
        cells.append(_number(oldest, "–" if oldest is None else f"{oldest * 1e3:.0f}"))
    cells.append(tag("td", "; ".join(review.reasons), class_="why"))
    return tag("tr", cells, data_verdict=review.verdict)


def _places(view: StoreView, figure: Figure) -> int:
    """Return how many decimals give the middle episode three digits."""
    values = [abs(r.comparison.values[figure.name]) for r in view.reviews if r.comparison and r.comparison.values[figure.name] is not None]
    middle = float(np.median(values))
    return min(max(2 - int(np.floor(np.log10(middle))), 0), 4) if middle > 0 else 2


def _ends(view: StoreView, index: int, camera: str) -> list[Markup]:
    frames = view.store[index][f"images.{camera}"]
    return [thumbnail(frames[i], f"{camera}, {where} picture", 40) for i, where in ((0, "first"), (len(frames) - 1, "last"))]


def _sorted(name: str, number: bool = False) -> Markup:
    return tag("th", tag("button", name, type="button"), data_sort=True, class_="n" if number else None)


def _number(value: float | None, told: str, style: str = "") -> Markup:
    return tag("td", told, class_=f"n {style}".strip(), data_value="" if value is None else f"{value:.6g}")


def _cards(view: StoreView, full: list[int]) -> Markup:
    cards = [episode_card(view, index) for index in full]
    lead = f"{len(full)} of {len(view.reviews)} episodes with pictures and plots"
    lead += "." if len(full) == len(view.reviews) else ": those to drop or to look at first, then an even choice of the rest; --episodes A:B shows others."
    key = parts.line_key(("line state", "state, measured"), ("line action", "action, commanded"), ("limit", "limits of the robot file"), ("idle", "idle"))
    return parts.section("Episodes in full", lead, key, cards)


def _leave_out(view: StoreView) -> Markup | None:
    names = [r.name for r in view.reviews if r.verdict == "drop"]
    if not names:
        return None
    root = shlex.quote(str(view.store.root))
    some = "{" + ",".join(names) + "}" if len(names) > 1 else names[0]
    text = f"mkdir -p {root}/.dropped\nmv {root}/{some} {root}/.dropped/"
    lead = "An episode is a folder, and a folder that is moved away isn't read any more. This moves what is to be dropped; moving it back undoes it."
    return parts.section("Leave out", lead, tag("pre", text))


def _arrays(content: dict[str, Any]) -> Markup:
    def told(values: list[float] | None) -> str:
        return "–" if values is None else ", ".join(number(v, digits=5) if isinstance(v, float) else str(v) for v in values[:8]) + (", …" if len(values) > 8 else "")

    rows = [
        (tag("code", name), a["dtype"], "×".join(map(str, a["shape"])) or "one number", told(a["min"]), told(a["max"])) for name, a in content["arrays"].items()
    ]
    return parts.section("Arrays", "What each frame holds, and the smallest and largest value of each column.", table(("array", "type", "per frame", "smallest", "largest"), rows))


def _robot(view: StoreView) -> Markup:
    head, *rows = parts.robot_table(view.robot)
    return parts.section("Action", "Joints and limits of the robot file inside the store.", table(head, rows))


def _words(view: StoreView) -> Markup:
    quality = view.robot.quality
    return parts.section(
        "What the words mean",
        "docs/inspecting.md tells it at length.",
        parts.words({
            "keep, look, drop": "nothing found; something that a person should look at; of no use: too short, nothing moves, a copy, rejected by recorder or operator, unreadable",
            "idle": "a tick in a stretch of 0.5 s or more in which no joint leaves a band of 0.5 % of its range; "
            f"above {share(quality.max_idle)} (quality.max_idle) worth a look, above 95 % of no use",
            "range": "how far a joint goes in all episodes of this store together",
            "jerk": "third against first derivative, told as a frequency: of a sine its frequency, of noise near half the rate",
            "lag": "where the velocities of action and state correlate best; below a correlation of 0.5 it isn't counted",
            "offset": "median of action minus the state that follows it, by the lag; more than 5 % between the limits is worth a look",
            "at limit": "share of ticks with an action within 0.1 % of a limit or beyond",
            "age": "how old a stream's newest sample was at a tick; p95 above 80 % of max_age_s is worth a look",
            "twin": "the nearest other motion; below 1 % of the range it is nearly the same",
            "too short": f"below {milliseconds(quality.min_duration_s) if quality.min_duration_s < 1 else number(quality.min_duration_s, 's')} (quality.min_duration_s)",
        }),
    )
