# SPDX-License-Identifier: Apache-2.0
"""How long after the action the state follows, by cross-correlation of their velocities; our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ros_vdd.data.episode_quality_motion import short_way

EARLIEST_S, LATEST_S = -0.5, 1.0  # [s] lags looked at: before zero the state moves before it is told to
FEWEST = 10  # ticks that must be left to compare at the largest lag


class Lag(NamedTuple):
    """When the state does what the action said.

    Attributes:
        lag_s: [s] later; None where nothing moves, the episode is too short, or the best lag is at the end of those looked at.
        correlation: of the velocities at that lag, -1 to 1; below 0.5 the lag means little.
    """

    lag_s: float | None
    correlation: float


def measure_lag(action: np.ndarray, state: np.ndarray, dt_s: float) -> Lag:
    """Return the lag at which the velocities of all columns together correlate best, between ticks by a parabola.

    Args:
        action, state: (N, C), positions of the same joints, in units that make the columns comparable.
        dt_s: [s] between two ticks.
    """
    lags = np.arange(round(EARLIEST_S / dt_s), round(LATEST_S / dt_s) + 1)
    commanded, measured = np.diff(action, axis=0), np.diff(state, axis=0)
    lags = lags[np.abs(lags) <= len(commanded) - FEWEST]
    if not len(lags):
        return Lag(None, 0.0)
    found = np.array([_correlation(commanded, measured, lag) for lag in lags])
    best = int(found.argmax())
    if best in (0, len(found) - 1) or found[best] <= 0:
        return Lag(None, float(found[best]))
    before, peak, after = found[best - 1 : best + 2]
    bend = before - 2 * peak + after
    return Lag(float((lags[best] + (0.5 * (before - after) / bend if bend else 0.0)) * dt_s), float(peak))


def offset(action: np.ndarray, state: np.ndarray, lag_ticks: int, turning: Sequence[int] = ()) -> np.ndarray:
    """Return `(C,)` the median of action minus the state `lag_ticks` later [unit]: how far apart leader and follower are.

    Args:
        turning: columns [rad] in which whole turns are nothing; theirs is in (-pi, pi].
    """
    ahead, behind = max(lag_ticks, 0), max(-lag_ticks, 0)
    count = len(action) - ahead - behind
    apart = action[behind : behind + count] - state[ahead : ahead + count]
    for column in turning:
        middle = np.angle(np.exp(1j * apart[:, column]).mean())
        apart[:, column] = middle + short_way(apart[:, column] - middle)
    found = np.median(apart, axis=0)
    found[list(turning)] = short_way(found[list(turning)])
    return found


def _correlation(commanded: np.ndarray, measured: np.ndarray, lag: int) -> float:
    """Return Pearson's r of the parts that overlap when `measured` is taken `lag` ticks later; 0 where one stands still."""
    count = len(commanded) - abs(lag)
    ours = commanded[max(-lag, 0) :][:count]
    theirs = measured[max(lag, 0) :][:count]
    ours, theirs = ours - ours.mean(axis=0), theirs - theirs.mean(axis=0)
    size = np.sqrt((ours**2).sum() * (theirs**2).sum())
    return float((ours * theirs).sum() / size) if size > 1e-12 else 0.0
