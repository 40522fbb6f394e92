# SPDX-License-Identifier: Apache-2.0
"""The page of an episode store: which demonstrations to keep, to look at, and to drop."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np

from ros_vdd.data.episode_quality_columns import Columns
from ros_vdd.data.episode_quality_comparison import FEWEST, FIGURES, UNUSUAL, Figure
from ros_vdd.data.episode_quality_survey import Review
from ros_vdd.data.episode_quality_verdict import LEVELS
from ros_vdd.data.episodes import LEFT_OUT
from ros_vdd.offline import inspect_page as parts
from ros_vdd.offline.inspect_html import Markup, table, tag
from ros_vdd.offline.inspect_numbers import clock, number, share
from ros_vdd.offline.inspect_page_episode import episode_card
from ros_vdd.offline.inspect_page_table import episode_table, is_odd, oddness
from ros_vdd.offline.inspect_store import StoreView
from ros_vdd.offline.inspect_svg import Line, histogram, plot

OVERLAID, ODD, OVERLAID_JOINTS = 100, 12, 8  # lines in a drawing, those that stand out, and drawings
TITLES = {
    "duration": ("Duration", "frames times the period"),
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
    shown = [_overview(view, content), _spread(view), _together(view), episode_table(view, set(full))]
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
        tag(
            "div",
            parts.verdict(level),
            tag("b", counts[level]),
            tag("span", f"{share(counts[level] / (total or 1))} · {says[level]}"),
            class_=f"tile {level}",
        )
        for level in LEVELS
    ]
    split = tag(
        "div",
        [tag("i", class_=level, style=f"width:{100 * counts[level] / (total or 1):.3f}%") for level in LEVELS],
        class_="split",
        aria_hidden="true",
    )
    notes = [tag("li", remark) for remark in view.remarks]
    return [parts.facts(facts), tag("div", tiles, class_="tiles"), split, tag("ul", notes, class_="remarks") if notes else None]


def _spread(view: StoreView) -> Markup | None:
    charts = [_chart(view, figure) for figure in FIGURES]
    charts = [chart for chart in charts if chart]
    lead = f"How the episodes spread in each figure; the dashed line is the median. A robust z-score above {UNUSUAL} is unusual"
    lead += f" and worth a look; goals with fewer than {FEWEST} episodes aren't compared."
    return parts.section("Figures", lead, tag("div", charts, class_="grid")) if charts else None


def _chart(view: StoreView, figure: Figure) -> Markup | None:
    known = [
        (r.comparison.values[figure.name], r)
        for r in view.reviews
        if r.comparison and r.comparison.values[figure.name] is not None
    ]
    if not known:
        return None
    values = [value for value, _ in known]
    title, what = TITLES[figure.name]
    odd = sum(is_odd(r, figure) for _, r in known)
    percent = not figure.unit
    middle = share(float(np.median(values))) if percent else number(float(np.median(values)), figure.unit)
    told = f"median {middle}" + (f" · {odd} unusual" if odd else "")
    drawn = histogram(values, [r.verdict for _, r in known], figure.unit, f"{title} of {len(values)} episodes", percent)
    return tag("div", tag("h3", title, tag("small", told)), drawn, tag("p", what), class_="chart")


def _together(view: StoreView) -> Markup | None:
    """All episodes over each other, joint by joint; the most unusual ones stand out."""
    columns = Columns.of(view.robot)
    readable = [i for i, r in enumerate(view.reviews) if r.figures]
    if not columns.state or len(readable) < 2:
        return None
    odd = sorted((i for i in readable if oddness(view.reviews[i]) > UNUSUAL), key=lambda i: -oddness(view.reviews[i]))[:ODD]
    even = {readable[i] for i in np.linspace(0, len(readable) - 1, min(len(readable), OVERLAID)).round().astype(int)}
    chosen = sorted(even - set(odd)) + odd
    lines: list[list[Line]] = [[] for _ in columns.state]
    for index in chosen:
        positions = columns.positions(view.store[index])
        at = np.linspace(0, len(positions) - 1, min(len(positions), 64)).round().astype(int)
        for column in range(len(columns.state)):
            lines[column].append(
                Line(at / max(len(positions) - 1, 1) * 100, positions[at, column], "odd" if index in odd else "many")
            )
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


def _cards(view: StoreView, full: list[int]) -> Markup:
    worst_first = sorted(full, key=lambda i: (-LEVELS.index(view.reviews[i].verdict), i))
    cards = [episode_card(view, index) for index in worst_first]
    lead = f"{len(full)} of {len(view.reviews)} episodes with pictures and plots, the worst verdict first."
    lead += "" if len(full) == len(view.reviews) else " --episodes A:B shows others, --full N more of them."
    key = parts.line_key(
        ("line state", "state, measured"),
        ("line action", "action, commanded"),
        ("limit", "limits of the robot file"),
        ("idle", "idle"),
    )
    return parts.section("Episodes in full", lead, key, cards)


def _leave_out(view: StoreView) -> Markup:
    """The command that moves away what is ticked; the page's script writes it anew when a box changes."""
    root = shlex.quote(str(view.store.root))
    names = [shlex.quote(r.name) for r in view.reviews if r.verdict == "drop"]
    lead = "Tick what to leave out, in the table or on a card; what is to be dropped is ticked. An episode is a folder,"
    lead += " and one that is moved away isn't read any more; moving it back undoes it."
    before, after = _around_names(root)
    pre = tag("pre", leave_out_command(root, names), id="command", data_before=before, data_after=after)
    return parts.section("Leave out", lead, pre)


def leave_out_command(root: str, names: list[str]) -> str:
    """Return the shell command that moves episodes out of a store; both are quoted for the shell."""
    return " ".join(names).join(_around_names(root)) if names else "# nothing is ticked"


def _around_names(root: str) -> tuple[str, str]:
    """Return the command's text before and after the names; the subshell leaves a person where they were."""
    return f"mkdir -p {root}/{LEFT_OUT}\n(cd {root} && mv ", f" {LEFT_OUT}/)"


def _arrays(content: dict[str, Any]) -> Markup:
    def told(values: list[float] | None) -> str:
        return (
            "–"
            if values is None
            else ", ".join(number(v, digits=5) if isinstance(v, float) else str(v) for v in values[:8])
            + (", …" if len(values) > 8 else "")
        )

    rows = [
        (tag("code", name), a["dtype"], "×".join(map(str, a["shape"])) or "one number", told(a["min"]), told(a["max"]))
        for name, a in content["arrays"].items()
    ]
    return parts.section(
        "Arrays",
        "What each frame holds, and the smallest and largest value of each column.",
        table(("array", "type", "per frame", "smallest", "largest"), rows),
    )


def _robot(view: StoreView) -> Markup:
    head, *rows = parts.robot_table(view.robot)
    return parts.section("Action", "Joints and limits of the robot file inside the store.", table(head, rows))


def _words(view: StoreView) -> Markup:
    quality = view.robot.quality
    meanings = {
        "keep": "nothing found",
        "look": "something that a person should look at; the reason says what",
        "drop": "of no use: too short, nothing moves, a copy, rejected by recorder or operator, or unreadable",
        "too short": f"below {number(quality.min_duration_s, 's')} (quality.min_duration_s)",
        "idle": "a tick in a stretch of 0.5 s or more in which no joint leaves a band of 0.5 % of its range,"
        f" nor its command one of 2 %; above {share(quality.max_idle)} (quality.max_idle) worth a look, from 95 % of no use",
        "range": "how far a joint goes in all episodes of this store together",
        "unusual": f"a robust z-score above {UNUSUAL}: distance from the median over 1.4826 times the median distance",
        "jerk": "third against first derivative, as a frequency: of a sine its own, of noise near half the rate",
        "lag": "where the velocities of action and state correlate best; below a correlation of 0.5 it isn't counted",
        "offset": "median of action minus the state that follows it; above 5 % of the way between the limits worth a look",
        "at a limit": "share of ticks with an action within 0.1 % of a limit, or beyond",
        "age": "how old a stream's newest sample was at a tick; worth a look where p95 is above 80 % of max_age_s",
        "nearest": "the most similar other motion; below 1 % of the range they are nearly the same",
    }
    return parts.section("What the words mean", "docs/inspecting.md tells it at length.", parts.words(meanings))
