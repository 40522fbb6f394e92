# SPDX-License-Identifier: Apache-2.0
"""Where the action joints are, as measured: what a robot holds, and where its first motion starts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ros_vdd.runtime.intake import JointStateIntake
from ros_vdd.streams.resample import Sample
from ros_vdd.streams.spec import RobotSpec


class MeasuredPosition:
    """Reads the joint-state streams of a robot file and gives the positions of its action joints.

    Called from one thread only, the one that receives.

    Args:
        robot: its states and action; a joint counts as measured where its position comes in the unit of the action
        real_time: whether stamps are of the clock that `push` and `at` are given: one that is farther than its stream's `max_age_s`
            from the time of receipt is refused then, since of a clock that is ahead an old sample looks fresh
    """

    def __init__(self, robot: RobotSpec, real_time: bool = False):
        skews = {name: spec.max_age_s if real_time else 0.0 for name, spec in robot.states.items()}
        self.intakes = {
            name: JointStateIntake(spec, f"states.{name}", max_skew_s=skews[name]) for name, spec in robot.states.items()
        }
        self._joints, self._unit = robot.action.joints, robot.action.unit
        self._sources = [self._source(joint, robot.action.unit) for joint in robot.action.joints]

    @property
    def complete(self) -> bool:
        """Whether the robot file has all action joints among its states, in the unit of the action."""
        return None not in self._sources

    def push(self, stream: str, message: Any, receive_ns: int) -> bool:
        """Take a joint state; return whether it could be used."""
        intake = self.intakes[stream]
        if usable := intake.push(message, receive_ns):
            intake.forget_refusal()
        return usable

    def at(self, now_ns: int, since_ns: int = 0) -> np.ndarray | None:
        """Return the positions of the action joints, (A,) [action unit], or None unless all are measured, fresh, and of `since_ns` or later."""
        if None in self._sources:
            return None
        samples = {name: self.intakes[name].at(now_ns) for name, _ in self._sources}
        if not all(isinstance(sample, Sample) and now_ns - sample.age_ns >= since_ns for sample in samples.values()):
            return None
        return np.array([samples[name].value[column] for name, column in self._sources], dtype=np.float64)

    def missing(self, now_ns: int, since_ns: int = 0) -> str:
        """Return why `at` has nothing, as a sentence; "" where it has."""
        for joint, source in zip(self._joints, self._sources):
            if source is None:
                return f"no stream of the robot file has the position of joint '{joint}' in {self._unit}"
        for name in dict(self._sources):
            sample = self.intakes[name].at(now_ns)
            if not isinstance(sample, Sample):
                return sample.detail
            if now_ns - sample.age_ns < since_ns:
                return f"states.{name}: nothing was measured yet since the robot came to rest"
        return ""

    def _source(self, joint: str, unit: str) -> tuple[str, int] | None:
        """Return the stream and column that hold the position of a joint."""
        for name, intake in self.intakes.items():
            if intake.spec.unit == unit and (joint, "position") in intake.spec.features:
                return name, intake.spec.features.index((joint, "position"))
        return None
