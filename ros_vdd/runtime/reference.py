# SPDX-License-Identifier: Apache-2.0
"""A chunk as a motion: where it wants the joints to be at an instant, and how fast they pass there.

    hold    the action in force, velocity 0
    linear  straight from trajectory point to trajectory point
    cubic   a curve through all points that overshoots none; at rest before the first and after the last (Fritsch & Butland 1984)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ros_vdd.runtime.chunking import ActionChunk


class Reference(NamedTuple):
    """Where joints should be at an instant, and how fast, each `(A,)`."""

    position: np.ndarray
    """[action unit]"""
    velocity: np.ndarray
    """[action unit/s]"""


def hold(chunk: ActionChunk, now_ns: int) -> Reference:
    """Return the action in force at `now_ns`."""
    return _still(chunk.hold(now_ns))


def linear(chunk: ActionChunk, now_ns: int) -> Reference:
    """Return the point on the lines between trajectory points at `now_ns`; before the first one, that one at rest."""
    step, _ = divmod(now_ns - chunk.stamp_ns, chunk.dt_ns)
    position = chunk.linear(now_ns)
    if step == 0:
        return _still(position)
    return Reference(position, (chunk.actions[step] - chunk.actions[step - 1]) * (1e9 / chunk.dt_ns))


def cubic(chunk: ActionChunk, now_ns: int) -> Reference:
    """Return the point on the curve through the trajectory points at `now_ns`; before the first one, that one at rest.

    Each slope is the harmonic mean of the neighbouring lines', 0 where they point apart, so the curve turns at points only.
    """
    step, within_ns = divmod(now_ns - chunk.stamp_ns, chunk.dt_ns)
    if step == 0:
        return _still(chunk.actions[0])
    share = within_ns / chunk.dt_ns
    start, end = chunk.actions[step - 1], chunk.actions[step]
    leaving, arriving = _slope(chunk.actions, step - 1), _slope(chunk.actions, step)
    way = end - start
    bent, turned = leaving + arriving - 2 * way, 3 * way - 2 * leaving - arriving
    position = start + share * (leaving + share * (turned + share * bent))
    velocity = leaving + share * (2 * turned + share * 3 * bent)
    return Reference(position, velocity * (1e9 / chunk.dt_ns))


INTERPOLATIONS: dict[str, Callable[[ActionChunk, int], Reference]] = {"hold": hold, "linear": linear, "cubic": cubic}


def _slope(points: np.ndarray, k: int) -> np.ndarray:
    """Return the slope `(A,)` a period of the curve at point k."""
    if k == 0 or k == len(points) - 1:
        return np.zeros(points.shape[1])
    before, after = points[k] - points[k - 1], points[k + 1] - points[k]
    product = before * after
    return np.where(product > 0, 2 * product / np.where(product > 0, before + after, 1.0), 0.0)


def _still(position: np.ndarray) -> Reference:
    position = np.asarray(position, dtype=np.float64)
    return Reference(position, np.zeros_like(position))
