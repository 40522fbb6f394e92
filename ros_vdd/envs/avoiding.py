# SPDX-License-Identifier: Apache-2.0
"""Avoiding: an end effector in a plane passes three rows of round obstacles on one of 24 ways.

Our own course after the definition of D3IL Avoiding (Jia et al. 2024, arXiv 2402.14606): rows of 1, 2 and 3 obstacles leave 2, 3
and 4 gaps, so 2 * 3 * 4 = 24 ways; success = the finish line y > 0.35 m without contact; 250 steps of 35 ms; observation =
desired and measured position, action = change of the desired one. No physics engine: a controller of first order is the arm.

                        finish y = 0.35        The measured position follows the desired one:
           o     o     o        y = 0.26           m += (1 - exp(-dt / tau)) (d - m),   tau = 0.07 s
              o     o           y = 0.08       Contact: the measured position is nearer to a centre
                 o              y = -0.10      than the radii of obstacle and end effector together.
                 x  start       y = -0.28
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

DT, TAU = 0.035, 0.07  # [s] policy period; time constant of the controller
FOLLOW = 1.0 - math.exp(-DT / TAU)
MAX_ACTION = 0.0125  # [m] an axis and step
START, FINISH = (0.5, -0.28), 0.35  # [m]
LOW, HIGH = (0.1, -0.35), (0.9, 0.45)  # [m] corners of the workspace
OBSTACLE_RADIUS, EFFECTOR_RADIUS = 0.03, 0.01  # [m]
CONTACT = OBSTACLE_RADIUS + EFFECTOR_RADIUS
SPACING = 0.15  # [m] between the obstacles of a row
ROWS = ((-0.10, (0.5,)), (0.08, (0.425, 0.575)), (0.26, (0.35, 0.5, 0.65)))  # y, x of each obstacle [m]
GAPS = tuple(len(xs) + 1 for _, xs in ROWS)
MODES = math.prod(GAPS)
_SHIFT = 3  # fractional bits of drawn coordinates


class Env:
    """The course with "state" `(4,)`: desired x, y, measured x, y [m]. Every episode starts in the same state.

    An action `(2,)` is the change of the desired x and y [m], cut to +-0.0125 an axis.
    """

    robot = "avoiding"
    max_steps = 250
    modes = MODES

    def __init__(self):
        self.reset(0)

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """Start an episode; the only start state there is, whatever the seed."""
        self._dx, self._dy = self._mx, self._my = START
        self._steps, self._best = 0, START[1]
        self._gaps: list[int | None] = [None] * len(ROWS)
        self._success = self._failed = False
        self._trace = [START]
        return self._observe()

    def step(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """Change the desired position by `(2,)` [m] and let the controller follow for 35 ms; nothing counts once it's done."""
        ax, ay = float(action[0]), float(action[1])
        self._dx += min(max(ax, -MAX_ACTION), MAX_ACTION)
        self._dy += min(max(ay, -MAX_ACTION), MAX_ACTION)
        x, y = self._mx, self._my
        self._mx = x + FOLLOW * (self._dx - x)
        self._my = y + FOLLOW * (self._dy - y)
        if not self.done:
            self._judge(x, y)
        self._steps += 1
        self._trace.append((self._mx, self._my))
        return self._observe()

    def _judge(self, x: float, y: float) -> None:
        """Note the rows crossed upwards since (x, y), then contact, leaving and finish."""
        for row, (row_y, centres) in enumerate(ROWS):
            if y < row_y <= self._my:
                crossing = x + (self._mx - x) * (row_y - y) / (self._my - y)
                self._gaps[row] = sum(crossing > centre for centre in centres)
        inside = LOW[0] <= self._mx <= HIGH[0] and LOW[1] <= self._my <= HIGH[1]
        self._failed = not inside or clearance(self._mx, self._my) < 0.0
        self._success = not self._failed and self._my > FINISH
        self._best = max(self._best, self._my)

    @property
    def score(self) -> float:
        """1 for success, else the farthest y as a share of the way to the finish line, below 1."""
        return 1.0 if self._success else min((self._best - START[1]) / (FINISH - START[1]), 0.99)

    @property
    def success(self) -> bool:
        return self._success

    @property
    def failed(self) -> bool:
        """Whether the end effector touched an obstacle or left the workspace."""
        return self._failed

    @property
    def done(self) -> bool:
        return self._success or self._failed or self._steps >= self.max_steps

    @property
    def mode(self) -> int | None:
        """Index 0 to 23 of the way taken, by the gap of each row's last upward crossing; None without success."""
        return way_index(self._gaps) if self._success else None

    @property
    def code(self) -> tuple[int, ...] | None:
        """The 9-bit side code of the way taken: one-hot gap of each row, 2 + 3 + 4 bits; None without success."""
        return side_code(self._gaps) if self._success else None

    def project(self, actions: np.ndarray) -> np.ndarray:
        """Return where a chunk (..., H, 2) of actions leads the desired position, as shares (right, down) of the picture."""
        moves = np.clip(actions, -MAX_ACTION, MAX_ACTION).cumsum(axis=-2)
        return _shares(np.array([self._dx, self._dy]) + moves)

    def render(self, size: int = 384) -> np.ndarray:
        """Return course, trace and end effector `(size, size, 3)` uint8, y upwards."""
        picture = _course(size)
        points = np.rint(_shares(np.array(self._trace)) * size * (1 << _SHIFT)).astype(np.int32)
        cv2.polylines(picture, [points], False, (70, 110, 170), 2, cv2.LINE_AA, _SHIFT)
        colour = (190, 50, 40) if self._failed else (40, 140, 70) if self._success else (25, 60, 120)
        _disc(picture, (self._mx, self._my), EFFECTOR_RADIUS, colour)
        return picture

    def _observe(self) -> dict[str, np.ndarray]:
        return {"state": np.array((self._dx, self._dy, self._mx, self._my), np.float32)}


def clearance(x: float, y: float) -> float:
    """Return the distance [m] between end effector and nearest obstacle; below 0 they overlap."""
    nearest = min(math.hypot(x - centre, y - row_y) for row_y, centres in ROWS for centre in centres)
    return nearest - CONTACT


def way_index(gaps: Sequence[int]) -> int:
    """Return the index of the way through `gaps`, one a row, counted from the left: 12 g1 + 4 g2 + g3."""
    index = 0
    for gap, count in zip(gaps, GAPS):
        index = index * count + gap
    return index


def way_gaps(way: int) -> tuple[int, ...]:
    """Return the gap of each row of a way 0 to 23; the inverse of `way_index`."""
    gaps = []
    for count in reversed(GAPS):
        way, gap = divmod(way, count)
        gaps.append(gap)
    return tuple(reversed(gaps))


def side_code(gaps: Sequence[int]) -> tuple[int, ...]:
    """Return the one-hot gap of each row, one row after the other: 2 + 3 + 4 bits."""
    return tuple(int(gap == bit) for gap, count in zip(gaps, GAPS) for bit in range(count))


def demonstrations(seed: int = 0, per_way: int = 4) -> Iterator[tuple[dict[str, np.ndarray], dict]]:
    """Yield (arrays, meta) of 24 * `per_way` successful episodes for an episode store; the same seed gives the same bytes."""
    from ros_vdd.envs._avoiding_demonstrator import demonstrate  # it steps this environment

    return demonstrate(seed, per_way)


def _shares(points: np.ndarray) -> np.ndarray:
    low, high = np.array(LOW), np.array(HIGH)
    shares = (points - low) / (high - low)
    shares[..., 1] = 1.0 - shares[..., 1]
    return shares


def _course(size: int) -> np.ndarray:
    picture = np.full((size, size, 3), 250, np.uint8)
    finish = round(float(_shares(np.array([0.0, FINISH]))[1]) * size)
    picture[:finish] = (226, 242, 228)
    cv2.line(picture, (0, finish), (size, finish), (60, 150, 80), 2)
    for row_y, centres in ROWS:
        for centre in centres:
            _disc(picture, (centre, row_y), OBSTACLE_RADIUS, (96, 96, 104))
    _disc(picture, START, EFFECTOR_RADIUS / 2, (180, 180, 180))
    return picture


def _disc(picture: np.ndarray, centre: tuple[float, float], radius: float, colour: tuple[int, int, int]) -> None:
    scale = len(picture) * (1 << _SHIFT)
    x, y = np.rint(_shares(np.array(centre)) * scale).astype(int).tolist()
    cv2.circle(picture, (x, y), round(radius / (HIGH[0] - LOW[0]) * scale), colour, -1, cv2.LINE_AA, _SHIFT)
