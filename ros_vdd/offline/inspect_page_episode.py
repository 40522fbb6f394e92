# SPDX-License-Identifier: Apache-2.0
"""One episode on the page of a store: verdict and reasons, contact sheets, plots of each joint, figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ros_vdd.data.episode_quality import EpisodeFigures
from ros_vdd.data.episode_quality_columns import Columns, Scales
from ros_vdd.data.episode_quality_survey import Review
from ros_vdd.offline import inspect_page as parts
from ros_vdd.offline.inspect_html import Markup, table, tag
from ros_vdd.offline.inspect_numbers import milliseconds, number, share
from ros_vdd.offline.inspect_page_table import leave_out_box
from ros_vdd.offline.inspect_pictures import contact_sheet, spread
from ros_vdd.offline.inspect_svg import Line, plot
from ros_vdd.streams.spec import RobotSpec

if TYPE_CHECKING:
    from ros_vdd.offline.inspect_store import StoreView

LEAST = 0.1  # of a joint's scale: what an axis spans at least
OPEN_PLOTS = 8  # an episode to keep with more of them has them folded
_QUIET = (
    "source_format",
    "mapped",
    "warnings",
    "refused",
    "left_out_around",
    "verdict",
    "reasons",
    "source_sha256",
    "last_segment",
)  # told elsewhere or of no use here


def episode_card(view: StoreView, index: int) -> Markup:
    """Return the card of one episode; plots of one to keep are folded."""
    review = view.reviews[index]
    head = tag("header", parts.verdict(review.verdict), tag("h3", review.name), tag("small", _about(review)), _tick(review))
    if review.figures is None:
        return tag("article", head, parts.reasons(review.reasons), class_=f"card {review.verdict}", id=review.name)
    episode = view.store[index]
    sheets = [camera_sheet(name, episode[f"images.{name}"], view.robot.rate_hz) for name in view.robot.cameras]
    drawn = joint_plots(episode, view.robot, review.figures.idle, view.scales)
    opened = review.verdict != "keep" or len(drawn) <= OPEN_PLOTS
    folded = tag("details", tag("summary", "joints over time"), parts.plots(drawn), open=opened)
    tables = tag("details", tag("summary", "figures of each joint, stream and camera"), _details(review))
    body = [head, parts.reasons(review.reasons), _facts(review), sheets, folded, tables]
    return tag("article", body, class_=f"card {review.verdict}", id=review.name)


def _tick(review: Review) -> Markup:
    return tag("label", leave_out_box(review), " leave out", class_="tick")


def camera_sheet(name: str, frames: np.ndarray, rate_hz: float) -> Markup:
    """Return eight pictures (N, H, W, 3) of one camera, evenly spread over the episode."""
    shown = [(number(i / rate_hz, "s"), np.asarray(frames[i])) for i in spread(len(frames))]
    return tag(
        "div", tag("small", f"camera {name}, {frames.shape[2]}×{frames.shape[1]} px"), contact_sheet(shown, f"camera {name}")
    )


def joint_plots(
    arrays: Mapping[str, np.ndarray], robot: RobotSpec, still: np.ndarray, scales: Scales
) -> list[tuple[str, str, Markup]]:
    """Return a plot of each joint over time: action over state where both are of one joint, with the limits of the action.

    Idle ticks, True in `still` (N,), are shaded. An axis spans at least a tenth of what the joint goes in all episodes.
    """
    columns, dt_s = Columns.of(robot), 1 / robot.rate_hz
    positions, actions = columns.positions(arrays), columns.actions(arrays)
    times = np.arange(len(actions)) * dt_s
    idle = parts.spans_of(still, dt_s)
    measured = dict(columns.pairs)
    drawn = []
    for i, joint in enumerate(robot.action.joints):
        lines = [Line(times, positions[:, measured[i]], "state")] if i in measured else []
        endless = i in columns.turning_actions  # its limits are those of one turn, and whole turns are nothing
        turns = round((actions[0, i] - positions[0, measured[i]]) / (2 * np.pi)) if endless and i in measured else 0
        lines.append(Line(times, actions[:, i] - 2 * np.pi * turns, "action"))
        limits = None if endless else (robot.action.lower[i], robot.action.upper[i])
        what = "state and action" if i in measured else "action"
        svg = plot(lines, robot.action.unit, f"{joint} over time", limits, idle, least=LEAST * scales.actions[i])
        drawn.append((joint, _note(what, robot.action.unit), svg))
    for place, (name, unit) in enumerate(zip(columns.names, columns.units)):
        if place not in measured.values():
            line = Line(times, positions[:, place], "state")
            svg = plot([line], unit, f"{name} over time", shade=idle, least=LEAST * scales.positions[place])
            drawn.append((name, _note("state", unit), svg))
    return drawn


def _note(what: str, unit: str) -> str:
    return what if unit == "1" else f"{what} [{unit}]"


def _about(review: Review) -> str:
    told = [
        review.goal or review.meta.get("task") or "",
        *(f"{k} {v}" for k, v in review.meta.items() if k not in (*_QUIET, "task") and v not in ("", None)),
    ]
    return " · ".join(str(t) for t in told if t)


def _facts(review: Review) -> Markup:
    figures, comparison = review.figures, review.comparison
    told = {
        "frames": f"{figures.frames} ({number(figures.duration_s, 's')})",
        "idle": share(figures.idle_share) + _edges(figures),
        "path": number(figures.path_length, "ranges"),
        "jerk": number(figures.jerk_hz, "Hz"),
        "lag": lag_words(figures),
        "at a limit": share(figures.at_limit_share),
        "nearest": None if comparison.twin is None else f"{comparison.twin[0]}, {share(comparison.twin[1])} of the range apart",
    }
    return parts.facts(told)


def lag_words(figures: EpisodeFigures) -> str | None:
    """Return the lag with its correlation, "–" where none was found, None where no joint is commanded and measured."""
    if figures.lag_correlation is None:
        return None
    if figures.lag_s is None:
        return "–"
    return f"{milliseconds(figures.lag_s)} (correlation {number(figures.lag_correlation, digits=2)})"


def _edges(figures: EpisodeFigures) -> str:
    spans = [f"{number(s, 's')} at the {w}" for s, w in ((figures.idle_start_s, "start"), (figures.idle_end_s, "end")) if s > 0]
    return f" ({', '.join(spans)})" if spans else ""


def _details(review: Review) -> list[Markup]:
    figures = review.figures
    tables = []
    rows = [
        (
            joint,
            a.unit,
            number(a.low),
            number(a.high),
            share(a.at_lower_share),
            share(a.at_upper_share),
            share(a.too_fast_share),
            number(a.offset),
        )
        for joint, a in figures.actions.items()
    ]
    tables.append(
        table(("action", "unit", "smallest", "largest", "at lower limit", "at upper limit", "too fast", "offset to state"), rows)
    )
    if figures.joints:
        rows = [
            (name, j.unit, number(j.low), number(j.high), number(j.rms_jerk), number(j.jerk_hz))
            for name, j in figures.joints.items()
        ]
        tables.append(table(("state", "unit", "smallest", "largest", "rms jerk [unit/s³]", "jerk [Hz]"), rows))
    if figures.ages:
        rows = [(s, *map(milliseconds, (a.median_s, a.p95_s, a.max_s, a.limit_s))) for s, a in figures.ages.items()]
        tables.append(table(("stream", "age, median", "age, p95", "age, oldest", "max_age_s"), rows))
    if figures.cameras:
        rows = [(n, share(c.repeated_share), number(c.frozen_s, "s"), share(c.blank_share)) for n, c in figures.cameras.items()]
        tables.append(table(("camera", "same picture as before", "frozen while moving, longest", "nothing to see"), rows))
    return tables
