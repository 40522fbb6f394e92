# SPDX-License-Identifier: Apache-2.0
"""The gate between a predicted chunk and a robot: what it refuses, what it clamps, and what it counts.

| a chunk with                                     | becomes                                     |
|--------------------------------------------------|---------------------------------------------|
| NaN or Inf; wrong, missing or double joints      | refused whole                               |
| a position outside the limits, beyond the margin | refused whole: the prediction is implausible |
| a position outside the limits, within the margin | clamped to the limit and counted            |
| joints in another order                          | the same chunk in the order of the robot file |

This gate is not a safety function in the sense of ISO 10218; it never replaces the robot's own. Our own.
"""

from __future__ import annotations

import numpy as np

from ros_vdd.errors import suggest
from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.reasons import Reason, Refusal
from ros_vdd.streams.spec import RobotSpec

MARGIN = 0.05  # of a joint's range; a trained policy overshoots its data by a few percent, not by more


class SafetyGate:
    """Checks chunks and limits steps by what the robot file declares; holds counters and no other state.

    Called from one thread only: the one that receives chunks and commands the robot.

    Args:
        robot: its action joints, limits and, where given, largest velocities
        margin: overshoot that is clamped instead of refused, as a fraction of each joint's range
    """

    def __init__(self, robot: RobotSpec, margin: float = MARGIN):
        self._joints = tuple(robot.action.joints)
        self._lower = np.asarray(robot.action.lower, dtype=np.float64)
        self._upper = np.asarray(robot.action.upper, dtype=np.float64)
        self._slack = margin * (self._upper - self._lower)
        endless = np.array([joint in robot.action.continuous for joint in robot.action.joints])  # their limits are those of one turn
        self._floor, self._ceiling = np.where(endless, -np.inf, self._lower), np.where(endless, np.inf, self._upper)
        velocity = robot.action.max_velocity
        self._max_velocity = None if velocity is None else np.asarray(velocity, dtype=np.float64)
        self.clamped = 0  # chunks in which a position was clamped
        self.slowed = 0  # commands that the limits of motion keep behind the plan

    @property
    def limits_velocity(self) -> bool:
        """Whether the robot file declares largest velocities."""
        return self._max_velocity is not None

    def check(self, chunk: ActionChunk) -> ActionChunk | Refusal:
        """Return the chunk in the order and limits of the robot file, or why it is refused."""
        ordered = tuple(chunk.joints) == self._joints
        if not ordered and (refusal := self._check_joints(chunk)):
            return refusal
        actions = np.asarray(chunk.actions, dtype=np.float64)
        if actions.ndim != 2 or not len(actions) or actions.shape[1] != len(self._joints):
            return Refusal(Reason.WRONG_SHAPE, f"actions have shape {actions.shape}; expected (H, {len(self._joints)})")
        if not ordered:
            actions = actions[:, [chunk.joints.index(joint) for joint in self._joints]]
        inside = np.clip(actions, self._lower, self._upper)
        if not (inside == actions).all():  # NaN equals nothing
            if refusal := self._check_values(actions):
                return refusal
            self.clamped += 1
        return ActionChunk(chunk.stamp_ns, chunk.dt_ns, self._joints, inside)

    def inside(self, position: np.ndarray) -> np.ndarray:
        """Return the position within the limits that is nearest to one; (A,)."""
        return np.minimum(np.maximum(position, self._floor), self._ceiling)

    def limit_step(self, target: np.ndarray, previous: np.ndarray, elapsed_ns: int) -> np.ndarray:
        """Move from `previous` towards `target` no further than the largest velocity allows; (A,)."""
        if self._max_velocity is None:
            return target
        reach = self._max_velocity * (elapsed_ns / 1e9)
        step = np.clip(target - previous, -reach, reach)
        self.slowed += bool((step != target - previous).any())
        return previous + step

    def _check_joints(self, chunk: ActionChunk) -> Refusal | None:
        if sorted(chunk.joints) == sorted(self._joints):
            return None
        for joint in chunk.joints:
            if joint not in self._joints:
                return Refusal(Reason.WRONG_JOINTS, f"unknown joint '{joint}'; {suggest(joint, self._joints)}")
            if chunk.joints.count(joint) > 1:
                return Refusal(Reason.WRONG_JOINTS, f"joint '{joint}' stands twice")
        missing = [joint for joint in self._joints if joint not in chunk.joints]
        return Refusal(Reason.WRONG_JOINTS, f"missing joint '{missing[0]}'; given: {', '.join(chunk.joints) or 'none'}")

    def _check_values(self, actions: np.ndarray) -> Refusal | None:
        finite = np.isfinite(actions)
        if not finite.all():
            step, joint = np.argwhere(~finite)[0]
            return Refusal(Reason.NOT_FINITE, f"action {step} of '{self._joints[joint]}' is {actions[step, joint]}")
        beyond = (actions < self._lower - self._slack) | (actions > self._upper + self._slack)
        if beyond.any():
            step, joint = np.argwhere(beyond)[0]
            bounds = f"[{self._lower[joint]:g}, {self._upper[joint]:g}] with a margin of {self._slack[joint]:g}"
            given = f"action {step} of '{self._joints[joint]}' is {actions[step, joint]:g}"
            return Refusal(Reason.OUT_OF_LIMITS, f"{given}, outside {bounds}")
        return None
