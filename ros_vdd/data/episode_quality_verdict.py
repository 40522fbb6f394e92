# SPDX-License-Identifier: Apache-2.0
"""Keep, look or drop: which demonstrations of a set are unlike the others or have something wrong, with reasons; our own.

Bounds that are a matter of the robot stand in its file, section `quality`; the others here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ros_vdd.data.episode_quality import EpisodeFigures
from ros_vdd.data.episode_quality_comparison import CLEAR, FIGURES, UNUSUAL, Comparison, show
from ros_vdd.streams.spec import RobotSpec

Level = Literal["keep", "look", "drop"]
LEVELS: tuple[Level, ...] = ("keep", "look", "drop")  # from good to bad


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
    age: float = 0.8
    frozen_s: float = 0.5
    blank: float = 0.1


class Finding(NamedTuple):
    """How bad it is, and what, in words."""

    level: Level
    text: str


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


def _following(figures: EpisodeFigures, robot: RobotSpec, bounds: Bounds) -> list[Finding]:
    findings = []
    clear = figures.lag_s is not None and figures.lag_correlation >= CLEAR
    if clear and figures.lag_s < -0.5 / robot.rate_hz:
        early_ms = -figures.lag_s * 1000
        findings.append(
            Finding("look", f"the state moves {early_ms:.0f} ms before the action: compare stamps and the action's source")
        )
    for (joint, action), low, high in zip(figures.actions.items(), robot.action.lower, robot.action.upper):
        if action.offset is not None and abs(action.offset) > bounds.offset * (high - low):
            findings.append(Finding("look", f"{joint}: action and state are {action.offset:+.3g} {action.unit} apart"))
    return findings


def _limits(figures: EpisodeFigures, comparison: Comparison, bounds: Bounds) -> list[Finding]:
    findings = []
    if figures.at_limit_share > comparison.usual_at_limit + bounds.at_limit:
        worst = max(figures.actions, key=lambda j: figures.actions[j].at_lower_share + figures.actions[j].at_upper_share)
        usual = f"usual is {comparison.usual_at_limit:.0%}"
        findings.append(
            Finding("look", f"at a limit in {figures.at_limit_share:.0%} of the ticks, most of all {worst} ({usual})")
        )
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
        findings.append(
            Finding(
                "look",
                f"{figures.uneven_share:.1%} of the steps between ticks are off by more than half a period",
            )
        )
    return findings
