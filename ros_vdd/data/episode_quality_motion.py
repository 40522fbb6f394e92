# SPDX-License-Identifier: Apache-2.0
"""How a demonstration moves: idle stretches, jerk, path length, limits. Closed forms on plain arrays; our own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

AT_LIMIT = 1e-3  # of the range between two limits: as near as this is at the limit


def unwrapped(values: np.ndarray, angles: Sequence[int]) -> np.ndarray:
    """Return `(N, C)` in float64 with the columns `angles` [rad] made continuous: a step over pi is one the short way round."""
    values = np.array(values, dtype=np.float64)
    for column in angles:
        values[:, column] = np.unwrap(values[:, column])
    return values


def short_way(angles: np.ndarray) -> np.ndarray:
    """Return angles [rad] without their whole turns, in (-pi, pi]."""
    return np.pi - (np.pi - angles) % (2 * np.pi)


def around(values: np.ndarray, scale: np.ndarray, angles: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return `(N, C)` and scales `(C,)` with each column of `angles` [rad] as cosine and sine: whole turns are nothing."""
    others = [column for column in range(values.shape[1]) if column not in angles]
    turning, angles = values[:, list(angles)], list(angles)
    parts = [values[:, others], np.cos(turning), np.sin(turning)]
    return np.concatenate(parts, axis=1), np.concatenate([scale[others], scale[angles], scale[angles]])


def idle(values: np.ndarray, tolerance: np.ndarray, ticks: int) -> np.ndarray:
    """Return `(N,)` bool: the tick lies in a stretch of `ticks` or more in which no column leaves a band of its tolerance.

    A turning point, at which the motion stands for a moment, isn't idle; nor is any tick of an episode shorter than `ticks`.

    Args:
        values: (N, C), [unit].
        tolerance: (C,), [unit].
        ticks: 2 or more.
    """
    count = len(values)
    if count < ticks or not values.shape[1]:
        return np.zeros(count, dtype=bool)
    windows = np.lib.stride_tricks.sliding_window_view(values, ticks, axis=0)  # (N - ticks + 1, C, ticks)
    still = (windows.max(axis=2) - windows.min(axis=2) <= tolerance).all(axis=1)
    return np.convolve(still, np.ones(ticks, dtype=int)) > 0


def edges(mask: np.ndarray) -> tuple[int, int]:
    """Return how many True values `(N,)` begins and ends with; both are N where all are True."""
    moving = np.flatnonzero(~mask)
    return (int(moving[0]), len(mask) - 1 - int(moving[-1])) if len(moving) else (len(mask), len(mask))


def rms_jerk(values: np.ndarray, dt_s: float) -> np.ndarray:
    """Return `(C,)` the root mean square of the third derivative [unit/s^3], by third differences; NaN below four ticks."""
    return _rms(np.diff(values, n=3, axis=0) / dt_s**3)


def jerk_hz(values: np.ndarray, dt_s: float) -> np.ndarray:
    """Return `(C,)` jerk against speed as a frequency [Hz]: of a sine its frequency, of noise near half the rate.

        w^2 = rms(jerk) / rms(velocity),    f = asin(w dt / 2) / (pi dt)

    It depends neither on the unit nor on amplitude or duration, so that episodes compare (the dimensionless jerk of
    Hogan and Sternad, 2009, grows with the fifth power of the duration). The arc sine undoes what differences
    over dt take from a sine. NaN where a column doesn't move, or below four ticks.
    """
    velocity, jerk = _rms(np.diff(values, axis=0) / dt_s), rms_jerk(values, dt_s)
    with np.errstate(divide="ignore", invalid="ignore"):
        omega = np.sqrt(jerk / velocity)
    return np.arcsin(np.minimum(omega * dt_s / 2, 1)) / (np.pi * dt_s)


def path_length(values: np.ndarray, scale: np.ndarray) -> float:
    """Return the length of the way through `(N, C)`, each column counted in units of its scale `(C,)`; 0 of those without."""
    used = scale > 0
    return float(np.linalg.norm(np.diff(values[:, used] / scale[used], axis=0), axis=1).sum())


def at_limit(values: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Return `(N, A)` bool: the value is at one of its limits or beyond."""
    margin = AT_LIMIT * (upper - lower)
    return (values <= lower + margin) | (values >= upper - margin)


def beyond(values: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Return `(A,)` how far the values `(N, A)` go outside their limits at most [unit], 0 inside."""
    return np.maximum(np.maximum(lower - values, values - upper).max(axis=0), 0.0)


def too_fast(values: np.ndarray, max_velocity: np.ndarray, dt_s: float) -> np.ndarray:
    """Return `(N - 1, A)` bool: from one tick to the next the value changes faster than its limit `(A,)` [unit/s]."""
    return np.abs(np.diff(values, axis=0)) / dt_s > max_velocity * (1 + AT_LIMIT)


def _rms(values: np.ndarray) -> np.ndarray:
    return np.sqrt((values**2).mean(axis=0)) if len(values) else np.full(values.shape[1], np.nan)
