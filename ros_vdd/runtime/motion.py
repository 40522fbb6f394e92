# SPDX-License-Identifier: Apache-2.0
"""Motion of joints within limits of velocity, acceleration and jerk, one command period T after the other.

    v' in [v - a T, v + a T],   |v'| <= v_max,   |v'| <= brake(way to the position limit),   q' = q + v' T

so no two commands differ in velocity by more than a T. brake(d) is the fastest velocity from which a stop fits into d: with u = a T and
k = ceil((sqrt(1 + 8 d / (u T)) - 1) / 2) periods to rest,

    brake(d) = (d / T + u k (k - 1) / 2) / k             d = T (v + (v - u) + ... + (v - (k - 1) u))

Jerk is limited by the mean of the newest n of these positions, n T >= 2 a / j: a mean stays within all limits above, its jerk is at most
2 a / (n T), and one n for all joints keeps them on their path, (n - 1) T / 2 later.

Source: moving-average smoothing is common in machine-tool control (Biagiotti & Melchiorri 2008, Trajectory Planning for Automatic
Machines and Robots, ch. 4); the rest our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ros_vdd.runtime.reference import Reference
from ros_vdd.streams.spec import ActionSpec

_FAR = 1e9  # [action unit]; the way to the limit of a joint without one
_NOTHING = 1e-9  # share of a limit that rounding leaves


class MotionState(NamedTuple):
    """Where joints are commanded to be and how fast they move there, each `(A,)`."""

    position: np.ndarray
    """[action unit]"""
    velocity: np.ndarray
    """[action unit/s]"""
    pace: np.ndarray
    """(A,) velocity before the mean, [action unit/s]."""
    recent: np.ndarray
    """(n, A) positions that the mean is of, oldest first, [action unit]."""

    @property
    def resting(self) -> bool:
        """Return whether nothing moves, nor will."""
        return not self.velocity.any() and not self.pace.any() and bool((self.recent == self.recent[-1]).all())


class MotionLimiter:
    """Moves joints towards targets within the limits of a robot file that declares `max_acceleration`.

    Args:
        action: limits per joint; `max_velocity` and `max_jerk` may be None.
        period_s: T, from one command to the next, [s].
    """

    def __init__(self, action: ActionSpec, period_s: float):
        self.period_s = period_s
        endless = np.array([joint in action.continuous for joint in action.joints])  # their limits are those of one turn
        self._lower = np.where(endless, -np.inf, np.asarray(action.lower, dtype=np.float64))
        self._upper = np.where(endless, np.inf, np.asarray(action.upper, dtype=np.float64))
        self._unit = np.asarray(action.max_acceleration, dtype=np.float64) * period_s  # u
        self._fastest = np.full(len(self._unit), np.inf) if action.max_velocity is None else np.asarray(action.max_velocity)
        self._count = 1 if action.max_jerk is None else _mean_of(action.max_acceleration, action.max_jerk, period_s)

    @property
    def lag_s(self) -> float:
        """Return by how much the mean follows behind, [s]."""
        return (self._count - 1) * self.period_s / 2

    def at_rest(self, position: np.ndarray) -> MotionState:
        """Return the state of joints that stand still at a position `(A,)`; one outside the limits is led back by motions."""
        position = np.array(position, dtype=np.float64)
        still = np.zeros_like(position)
        return MotionState(position, still, still, np.tile(position, (self._count, 1)))

    @staticmethod
    def reference(state: MotionState) -> Reference:
        """Return where a state is going, before the mean: what `follow` starts from."""
        return Reference(state.recent[-1], state.pace)

    def follow(self, state: MotionState, target: np.ndarray, velocity: np.ndarray | None = None) -> MotionState:
        """Return the state one period on: at the target where the limits allow it, else on the fastest way to it that doesn't overshoot.

        Args:
            state: of the command before.
            target: (A,), where to be at the end of the period.
            velocity: (A,), of the target at that instant; None for one that stands still.
        """
        moving = np.zeros_like(target) if velocity is None else velocity
        away = target - state.recent[-1] - moving * self.period_s  # in the frame of the target
        closing = np.minimum(np.abs(away) / self.period_s, self._brake(np.abs(away)))
        return self._move(state, moving + np.sign(away) * closing)

    def brake(self, state: MotionState) -> MotionState:
        """Return the state one period on of joints that come to rest as fast as they may."""
        return self._move(state, np.zeros_like(state.pace))

    def stop(self, state: MotionState) -> tuple[np.ndarray, np.ndarray]:
        """Return positions and velocities `(N, A)` of the periods in which all joints come to rest as fast as they may; N is 0 at rest."""
        if state.resting:
            return np.empty((0, len(state.pace))), np.empty((0, len(state.pace)))
        steps = int(np.ceil(np.abs(state.pace) / self._unit - _NOTHING).max())
        down = self._unit * np.arange(1, steps + 1)[:, None]
        paces = np.sign(state.pace) * np.maximum(np.abs(state.pace) - down, 0.0)
        paces[np.abs(paces) < _NOTHING * self._unit] = 0.0
        before = state.recent[-1]
        lower, upper = np.minimum(self._lower, before), np.maximum(self._upper, before)
        inner = np.clip(before + self.period_s * paces.cumsum(axis=0), lower, upper)
        rest = inner[-1] if steps else state.recent[-1]
        inner = np.concatenate([state.recent, inner, np.tile(rest, (self._count - 1, 1))])
        positions = inner[1:] if self._count == 1 else sliding_window_view(inner[1:], self._count, axis=0).mean(axis=-1)
        positions[-1] = rest
        return positions, np.diff(positions, axis=0, prepend=state.position[None]) / self.period_s * _moves(positions, state.position)

    def _move(self, state: MotionState, wanted: np.ndarray) -> MotionState:
        """Return the state after a period at the velocity nearest to the wanted one `(A,)` that the limits allow."""
        before = state.recent[-1]
        slowest, fastest = state.pace - self._unit, state.pace + self._unit
        pace = np.clip(np.clip(wanted, slowest, fastest), -self._fastest, self._fastest)
        ceiling, floor = self._brake(self._upper - before), -self._brake(before - self._lower)
        pace = np.clip(pace, np.minimum(floor, fastest), np.maximum(ceiling, slowest))
        pace = np.where(np.abs(pace) < _NOTHING * self._unit, 0.0, pace)  # what rounding leaves of a stop
        reached = before + pace * self.period_s
        inner = np.clip(reached, np.minimum(self._lower, before), np.maximum(self._upper, before))
        pace = np.where(inner == reached, pace, (inner - before) / self.period_s)
        recent = np.concatenate([state.recent[1:], inner[None]])
        position = inner if self._count == 1 else recent[-1] if (recent == inner).all() else recent.mean(axis=0)
        return MotionState(position, (position - state.position) / self.period_s, pace, recent)

    def _brake(self, way: np.ndarray) -> np.ndarray:
        """Return the fastest velocity `(A,)` from which a stop fits into a way `(A,)` that is left."""
        unit, period = self._unit, self.period_s
        way = np.clip(way, 0.0, _FAR)
        steps = np.maximum(np.ceil((np.sqrt(1.0 + 8.0 * way / (unit * period)) - 1.0) / 2.0 - 1e-9), 1.0)
        return (way / period + unit * steps * (steps - 1.0) / 2.0) / steps


def _moves(positions: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return 0 where rounding alone makes a difference to the position before, else 1; `(N, A)`."""
    before = np.concatenate([start[None], positions[:-1]])
    return np.abs(positions - before) > _NOTHING * np.maximum(np.abs(positions), 1e-3)


def _mean_of(acceleration: Sequence[float], jerk: Sequence[float], period_s: float) -> int:
    """Return n: of how many positions the mean keeps every joint within its jerk."""
    return max(1, *(math.ceil(2 * a / (j * period_s) - 1e-9) for a, j in zip(acceleration, jerk)))
