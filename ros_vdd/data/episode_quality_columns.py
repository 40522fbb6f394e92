# SPDX-License-Identifier: Apache-2.0
"""Which columns of "state" and "action" show the motion, which of them are of one joint, and how far each goes in a store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ros_vdd.data.episode_quality_motion import unwrapped
from ros_vdd.streams.spec import RobotSpec

USUAL = 3.0  # times what a joint goes in nine of ten episodes: one glitch of a sensor mustn't make all others look still
NOISE = 2e-3  # of the range between its limits: a joint that goes no further in the whole store doesn't move


@dataclass(frozen=True)
class Columns:
    """What the columns of a robot's arrays are.

    Attributes:
        state: index in "state" of each position, in order.
        names, units: of those, "STREAM.JOINT" and the stream's unit.
        pairs: (action column, place in `state`) of each joint that is commanded and measured under one name in one unit.
        turning: places in `state` of joints that turn without end; turning_actions: such action columns.
    """

    state: tuple[int, ...]
    names: tuple[str, ...]
    units: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    turning: tuple[int, ...]
    turning_actions: tuple[int, ...]

    @classmethod
    def of(cls, robot: RobotSpec) -> Columns:
        """Find the columns by the robot file; of a joint that several streams measure the first one counts."""
        features = [(n, s.unit, joint, field) for n, s in robot.states.items() for joint, field in s.features]
        found = [(i, n, u, joint) for i, (n, u, joint, field) in enumerate(features) if field == "position"]
        first: dict[str, int] = {}
        for place, (_, _, unit, joint) in enumerate(found):
            if unit == robot.action.unit:
                first.setdefault(joint, place)
        pairs = tuple((i, first[joint]) for i, joint in enumerate(robot.action.joints) if joint in first)
        names, units = tuple(f"{f[1]}.{f[3]}" for f in found), tuple(f[2] for f in found)
        turning = tuple(place for place, f in enumerate(found) if f[0] in robot.angles)
        commanded = tuple(robot.action.joints.index(joint) for joint in robot.action.continuous)
        return cls(tuple(f[0] for f in found), names, units, pairs, turning, commanded)

    def positions(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the measured positions `(N, C)` of an episode, float64, angles continuous; C = 0 without any."""
        if not self.state:
            return np.zeros((len(arrays["action"]), 0))
        return unwrapped(np.asarray(arrays["state"])[:, list(self.state)], self.turning)

    def actions(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the actions `(N, A)` of an episode, float64, angles continuous."""
        return unwrapped(arrays["action"], self.turning_actions)


@dataclass(frozen=True)
class Scales:
    """How far each column goes in the episodes that are compared [unit]; 0 where it doesn't move.

    The range of all episodes together, at most three times the one that nine of ten episodes stay below.

    Attributes:
        positions: (C,) of the measured positions.
        actions: (A,) of the actions.
    """

    positions: np.ndarray
    actions: np.ndarray

    @classmethod
    def of(cls, episodes: Iterable[Mapping[str, np.ndarray]], robot: RobotSpec) -> Scales:
        """Look through state and action of all episodes.

        What goes less than 0.2 % of the range between its limits is noise and counts as not moving.
        """
        columns = Columns.of(robot)
        measured, commanded = _Range(len(columns.state)), _Range(robot.action_size)
        for arrays in episodes:
            measured.widen(columns.positions(arrays))
            commanded.widen(columns.actions(arrays))
        limits = np.array(robot.action.upper) - np.array(robot.action.lower)
        positions, actions = measured.width, commanded.width
        for action, place in columns.pairs:
            if positions[place] < NOISE * limits[action]:
                positions[place] = 0.0
        return cls(positions, np.where(actions < NOISE * limits, 0.0, actions))


class _Range:
    """The range of each column over all episodes, from the range of each episode."""

    def __init__(self, size: int):
        self._lows, self._highs = [np.zeros((0, size))], [np.zeros((0, size))]

    def widen(self, values: np.ndarray) -> None:
        self._lows.append(values.min(axis=0)[None])
        self._highs.append(values.max(axis=0)[None])

    @property
    def width(self) -> np.ndarray:
        lows, highs = np.concatenate(self._lows), np.concatenate(self._highs)
        if not len(lows):
            return np.zeros(lows.shape[1])
        usual = np.sort(highs - lows, axis=0)[int(0.9 * (len(lows) - 1))]
        whole = highs.max(axis=0) - lows.min(axis=0)
        return np.where(usual > 0, np.minimum(whole, USUAL * usual), whole)
