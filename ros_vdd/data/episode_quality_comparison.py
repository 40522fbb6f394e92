# SPDX-License-Identifier: Apache-2.0
"""Each demonstration among those of its goal: which of its figures are unusual, and what it is a copy of; our own.

Unusual is a figure whose robust z-score is above 3.5 (Iglewicz and Hoaglin, How to detect and handle outliers, 1993):

    z = (x - median) / max(1.4826 MAD, floor)

with durations, ways and jerk compared by their logarithm. The floor is the least spread worth a person's time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ros_vdd.data.episode_quality import EpisodeFigures

UNUSUAL = 3.5
FEWEST = 8  # episodes that say what is usual
CLEAR = 0.5  # correlation from which a lag counts


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
    Figure("idle", "", False, 0.05, "", "high"),
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


def robust_z(values: np.ndarray, floor: float) -> np.ndarray:
    """Return `(E,)` the robust z-score of each value; NaN stays NaN and isn't counted."""
    if np.isnan(values).all():
        return values
    median = np.nanmedian(values)
    return (values - median) / max(1.4826 * np.nanmedian(np.abs(values - median)), floor)


def show(value: float | None, figure: Figure) -> str:
    """Return a figure's value with its unit, a share in percent."""
    if value is None:
        return "-"
    return f"{value:.3g} {figure.unit}" if figure.unit else f"{value:.0%}"


def compare(
    names: Sequence[str], goals: Sequence[str], figures: Sequence[EpisodeFigures], twins: Mapping[int, tuple[int, float]]
) -> list[Comparison]:
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
        scores = {
            f.name: robust_z(np.log(np.maximum(values[f.name], 1e-12)) if f.log else values[f.name], f.floor) for f in FIGURES
        }
        for place, i in enumerate(members):
            mine = {name: _number(v[place]) for name, v in values.items()}
            z = {name: _number(v[place]) if len(members) >= FEWEST else None for name, v in scores.items()}
            twin = (names[twins[i][0]], twins[i][1]) if i in twins else None
            found[i] = Comparison(len(members), mine, medians, z, twin, copies[i], usual)
    return found


def _values(figures: Sequence[EpisodeFigures]) -> dict[str, np.ndarray]:
    """Return the figures (E,) of one group by name; NaN where an episode has none."""
    lags = [f.lag_s if f.lag_s is not None and f.lag_correlation >= CLEAR else None for f in figures]
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
