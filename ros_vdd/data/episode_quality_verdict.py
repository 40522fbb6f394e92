# SPDX-License-Identifier: Apache-2.0
"""Keep, look or drop: which demonstrations of a set are unlike the others or have something wrong, with reasons; our own.

Unusual is a figure whose robust z-score is above 3.5 (Iglewicz and Hoaglin, How to detect and handle outliers, 1993):

    z = (x - median) / max(1.4826 MAD, floor)

with lengths, ways and jerk compared by their logarithm. The floor is the least spread worth a person's time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ros_vdd.data.episode_quality import EpisodeFigures
from ros_vdd.streams.spec import RobotSpec

Level = Literal["keep", "look", "drop"]
LEVELS: tuple[Level, ...] = ("keep", "look", "drop")  # from good to bad
UNUSUAL = 3.5
FEWEST = 8  # episodes that say what is usual


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """When an episode is worth a look, or none at all; `quality` of the robot file adds its own.

    Attributes:
        no_motion: idle share from which nothing was demonstrated: drop.
        idle_edge_s: [s] idle before or after the motion.
        twin: [scale] root mean square distance below which two motions are nearly the same.
        at_limit: share of ticks at a limit, above what is usual in the set.
        too_fast: share of steps faster than max_velocity.
        offset: of a joint's limits, between action and the state that follows it.
        clear: correlation from which a lag counts.
        age: p95 of a stream's age, of its max_age_s.
        frozen_s: [s] a camera repeats its picture while the robot moves.
        blank: share of pictures that show nothing.
    """

    no_motion: float = 0.95
    idle_edge_s: float = 2.0
    twin: float = 0.01
    at_limit: float = 0.2
    too_fast: float = 0.05
    offset: float = 0.05
    clear: float = 0.5
    age: float = 0.8
    frozen_s: float = 0.5
    blank: float = 0.1


class Figure(NamedTuple):
    """One figure by which episodes are compared: its name, unit, whether by logarithm, least spread, which sides are unusual."""

    name: str
    unit: str
    log: bool
    floor: float
    low: str  # what an unusually small one is called, "" where small is good
    high: str


FIGURES = (
    Figure("duration", "s", True, 0.05, "short", "long"),
    Figure("path", "ranges", True, 0.05, "short", "long"),
    Figure("jerk", "Hz", True, 0.05, "", "shaky"),
    Figure("idle", "", False, 0.03, "", "high"),
    Figure("lag", "s", False, 0.02, "early", "late"),
    Figure("start", "ranges", False, 0.03, "", "far from the others"),
    Figure("end", "ranges", False, 0.03, "", "far from the others"),
)


@dataclass(frozen=True)
class Comparison:
    """One episode among those of its goal: its value of each figure, and how unusual that is.

    Attributes:
        group: how many episodes it is compared with, itself included.
        values: by figure, in its unit; None where it has none.
        medians: of the group.
        z: robust z-scores; None in a group of fewer than 8.
        twin: the nearest other motion of the set, and how far it is [scale]; None without another.
        copy_of: an earlier episode with the same content, byte by byte; None without one.
        usual_at_limit: median of the group's share of ticks at a limit.
    """

    group: int
    values: dict[str, float | None]
    medians: dict[str, float | None]
    z: dict[str, float | None]
    twin: tuple[str, float] | None
    copy_of: str | None
    usual_at_limit: float


class Finding(NamedTuple):
    """How bad it is, and what, in words."""

    level: Level
    text: str


def robust_z(values: np.ndarray, floor: float) -> np.ndarray:
    """Return `(E,)` the robust z-score of each value; NaN stays NaN and isn't counted."""
    if np.isnan(values).all():
        return values
    median = np.nanmedian(values)
    return (values - median) / max(1.4826 * np.nanmedian(np.abs(values - median)), floor)


def judge_episode(
    figures: EpisodeFigures, comparison: Comparison, meta: Mapping[str, Any], robot: RobotSpec, bounds: Bounds
) -> tuple[Level, tuple[str, ...]]:
    """Return the verdict and its reasons, the worst first."""
    findings = [
        *_duration(figures, robot),
        *_recorded(meta),
        *_copies(comparison, bounds),
        *_stillness(figures, robot, bounds),
        *_unusual(comparison),
        *_following(figures, robot, bounds),
        *_limits(figures, comparison, bounds),
        *_streams(figures, bounds),
    ]
    level = max((f.level for f in findings), key=LEVELS.index, default="keep")
    return level, tuple(f.text for f in sorted(findings, key=lambda f: -LEVELS.index(f.level)))


def _duration(figures: EpisodeFigures, robot: RobotSpec) -> list[Finding]:
    quality, lasted = robot.quality, figures.duration_s
    if lasted < quality.min_duration_s:
        return [Finding("drop", f"lasts {lasted:.2f} s; the robot file asks for {quality.min_duration_s:g} s")]
    if quality.max_duration_s is not None and lasted > quality.max_duration_s:
        return [Finding("drop", f"lasts {lasted:.2f} s; the robot file allows {quality.max_duration_s:g} s")]
    return []


def _recorded(meta: Mapping[str, Any]) -> list[Finding]:
    """What recorder, operator and converter said."""
    findings = []
    levels = {"reject": "drop", "warn": "look"}
    if (level := levels.get(str(meta.get("verdict")))) is not None:
        reasons = str(meta.get("reasons") or "no reason given").splitlines()
        findings += [Finding(level, f"recorder: {reason}") for reason in reasons]
    if str(meta.get("success")).lower() == "false":
        findings.append(Finding("drop", "the operator marked it as failed"))
    if around := meta.get("left_out_around"):
        findings.append(Finding("look", f"cut beside a gap: {around}"))
    refused = meta.get("refused") or {}
    findings += [Finding("look", f"messages of {k} were refused: {v}") for k, v in refused.items()]
    return findings + [Finding("look", f"converter: {warning}") for warning in meta.get("warnings") or []]


def _copies(comparison: Comparison, bounds: Bounds) -> list[Finding]:
    if comparison.copy_of is not None:
        return [Finding("drop", f"the same, byte by byte, as {comparison.copy_of}")]
    if comparison.twin is not None and comparison.twin[1] < bounds.twin:
        name, apart = comparison.twin
        return [Finding("look", f"nearly the same motion as {name}: {apart:.2%} of the range apart")]
    return []


def _stillness(figures: EpisodeFigures, robot: RobotSpec, bounds: Bounds) -> list[Finding]:
    share = figures.idle_share
    if share >= bounds.no_motion:
        return [Finding("drop", f"nothing moves in {share:.0%} of the ticks")]
    findings = []
    if share > robot.quality.max_idle:
        findings.append(Finding("look", f"nothing moves in {share:.0%} of the ticks; limit {robot.quality.max_idle:.0%}"))
    for where, idle_s in (("begins", figures.idle_start_s), ("ends", figures.idle_end_s)):
        if idle_s > bounds.idle_edge_s:
            findings.append(Finding("look", f"{where} with {idle_s:.1f} s of standing still"))
    return findings


def _unusual(comparison: Comparison) -> list[Finding]:
    findings = []
    for figure in FIGURES:
        z, value, median = (d[figure.name] for d in (comparison.z, comparison.values, comparison.medians))
        word = None if z is None else figure.high if z > UNUSUAL else figure.low if z < -UNUSUAL else None
        if word:
            told, usual = show(value, figure), show(median, figure)
            findings.append(Finding("look", f"{figure.name} {told} is unusual: {word} (median {usual}, z {z:.1f})"))
    return findings


def show(value: float | None, figure: Figure) -> str:
    """Return a figure's value with its unit, a share in percent."""
    if value is None:
        return "-"
    return f"{value:.3g} {figure.unit}" if figure.unit else f"{value:.0%}"


def _following(figures: EpisodeFigures, robot: RobotSpec, bounds: Bounds) -> list[Finding]:
    findings = []
    clear = figures.lag_s is not None and figures.lag_correlation >= bounds.clear
    if clear and figures.lag_s < -0.5 / robot.rate_hz:
        early_ms = -figures.lag_s * 1000
        findings.append(Finding("look", f"the state moves {early_ms:.0f} ms before the action: compare stamps and the action's source"))
    for (joint, action), low, high in zip(figures.actions.items(), robot.action.lower, robot.action.upper):
        if action.offset is not None and abs(action.offset) > bounds.offset * (high - low):
            findings.append(Finding("look", f"{joint}: action and state are {action.offset:+.3g} {action.unit} apart"))
    return findings


def _limits(figures: EpisodeFigures, comparison: Comparison, bounds: Bounds) -> list[Finding]:
    findings = []
    if figures.at_limit_share > comparison.usual_at_limit + bounds.at_limit:
        worst = max(figures.actions, key=lambda j: figures.actions[j].at_lower_share + figures.actions[j].at_upper_share)
        usual = f"usual is {comparison.usual_at_limit:.0%}"
        findings.append(Finding("look", f"at a limit in {figures.at_limit_share:.0%} of the ticks, most of all {worst} ({usual})"))
    for joint, action in figures.actions.items():
        if action.beyond > 1e-3 * max(action.high - action.low, 1e-9):
            findings.append(Finding("look", f"{joint}: commanded {action.beyond:.3g} {action.unit} outside its limits"))
        if action.too_fast_share is not None and action.too_fast_share > bounds.too_fast:
            findings.append(Finding("look", f"{joint}: faster than max_velocity in {action.too_fast_share:.0%} of the steps"))
    return findings


def _streams(figures: EpisodeFigures, bounds: Bounds) -> list[Finding]:
    findings = []
    for stream, age in figures.ages.items():
        if age.limit_s is not None and age.p95_s > bounds.age * age.limit_s:
            findings.append(Finding("look", f"{stream}: {age.p95_s * 1e3:.0f} ms old (p95); limit {age.limit_s * 1e3:.0f} ms"))
    for camera, pictures in figures.cameras.items():
        if pictures.frozen_s >= bounds.frozen_s:
            findings.append(Finding("look", f"camera {camera}: one picture for {pictures.frozen_s:.1f} s while the robot moves"))
        if pictures.blank_share > bounds.blank:
            findings.append(Finding("look", f"camera {camera}: nothing to see in {pictures.blank_share:.0%} of the pictures"))
    if figures.uneven_share:
        findings.append(Finding("look", f"{figures.uneven_share:.1%} of the steps between ticks are shorter than half a period or longer than one and a half"))
    return findings


def compare(names: Sequence[str], goals: Sequence[str], figures: Sequence[EpisodeFigures], twins: Mapping[int, tuple[int, float]]) -> list[Comparison]:
    """Compare each episode with those of the same goal.

    Args:
        names, goals, figures: of E episodes.
        twins: by episode, the nearest other one and how far it is.
    """
    copies = _first_of_content(names, figures)
    found: list[Comparison | None] = [None] * len(figures)
    for goal in dict.fromkeys(goals):
        members = [i for i, other in enumerate(goals) if other == goal]
        values = _values([figures[i] for i in members])
        usual = float(np.median([figures[i].at_limit_share for i in members]))
        medians = {name: float(np.nanmedian(v)) if not np.isnan(v).all() else None for name, v in values.items()}
        scores = {f.name: robust_z(np.log(np.maximum(values[f.name], 1e-12)) if f.log else values[f.name], f.floor) for f in FIGURES}
        for place, i in enumerate(members):
            mine = {name: _number(v[place]) for name, v in values.items()}
            z = {name: _number(v[place]) if len(members) >= FEWEST else None for name, v in scores.items()}
            twin = (names[twins[i][0]], twins[i][1]) if i in twins else None
            found[i] = Comparison(len(members), mine, medians, z, twin, copies[i], usual)
    return found


def _values(figures: Sequence[EpisodeFigures]) -> dict[str, np.ndarray]:
    """Return the figures (E,) of one group by name; NaN where an episode has none."""
    lags = [f.lag_s if f.lag_s is not None and f.lag_correlation >= Bounds().clear else None for f in figures]
    begins, ends = np.stack([f.begin for f in figures]), np.stack([f.end for f in figures])
    plain = {
        "duration": [f.duration_s for f in figures],
        "path": [f.path_length if f.path_length > 0 else None for f in figures],
        "jerk": [f.jerk_hz for f in figures],
        "idle": [f.idle_share for f in figures],
        "lag": lags,
        "start": np.linalg.norm(begins - np.median(begins, axis=0), axis=1),
        "end": np.linalg.norm(ends - np.median(ends, axis=0), axis=1),
    }
    return {name: np.array(values, dtype=np.float64) for name, values in plain.items()}


def _first_of_content(names: Sequence[str], figures: Sequence[EpisodeFigures]) -> list[str | None]:
    first: dict[str, str] = {}
    return [None if first.setdefault(f.digest, name) == name else first[f.digest] for name, f in zip(names, figures)]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
