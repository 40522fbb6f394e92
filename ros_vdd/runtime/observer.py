# SPDX-License-Identifier: Apache-2.0
"""Messages in, one observation per tick out, or the reason why not; nothing is zero-filled, guessed or looked ahead.

At the first tick, and after a gap, the history is filled by repeating the first observation, as the simulator
protocol of Diffusion Policy does (arXiv 2303.04137) and as training data are padded at the start of an episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ros_vdd.errors import StreamError, suggest
from ros_vdd.runtime.goal import GoalIntake
from ros_vdd.runtime.intake import CameraIntake, Intake, JointStateIntake, NotReady
from ros_vdd.runtime.reasons import Reason
from ros_vdd.streams.resample import Sample
from ros_vdd.streams.spec import RobotSpec


@dataclass(frozen=True)
class Observation:
    """What the policy sees at one tick.

    Attributes:
        arrays: "images.NAME" (T, H, W, 3) uint8 and "state" (T, S) float32, oldest first; "goal" (G,) float32
        stamp_ns: the tick, [ns]
        ages_ns: by stream, the largest age of its samples at their ticks, [ns]
    """

    arrays: Mapping[str, np.ndarray]
    stamp_ns: int
    ages_ns: Mapping[str, int]


class Observer:
    """Collects the streams of a robot file and aligns them at ticks.

    Called from one thread only, the node's executor: callbacks push, then ask for a snapshot. What a snapshot
    returns is a copy and may go to another thread.

    Args:
        robot: the streams
        n_obs_steps: T, ticks in an observation, one policy period apart
        equal_stamps: accept a tick only if every sample has exactly its stamp (lock-step simulation)
        max_skew_s: refuse header stamps farther than this from the time of receipt, [s]; 0, and lock-step, compare nothing

    Attributes:
        clock_jumps: how often a clock was set, upon which the history is dropped
        last_jump: the newest of these as a sentence, or None
        goal: what the robot was told to do, or None where its file has no goal
    """

    def __init__(self, robot: RobotSpec, n_obs_steps: int, equal_stamps: bool = False, max_skew_s: float = 0.0):
        self._n_obs_steps, self._dt_ns, self._equal_stamps = n_obs_steps, robot.dt_ns, equal_stamps
        clocks = (equal_stamps, max_skew_s)
        self._cameras = {name: CameraIntake(spec, f"images.{name}", *clocks) for name, spec in robot.cameras.items()}
        self._states = {name: JointStateIntake(spec, f"states.{name}", *clocks) for name, spec in robot.states.items()}
        self.clock_jumps, self.last_jump = 0, None
        self._jump: NotReady | None = None  # why there is no history, until there is one again
        self.goal = GoalIntake(robot.goal) if robot.goal else None
        self._reference = self.intakes[0]
        self._first_tick_ns: int | None = None  # where the history begins

    def reset(self) -> None:
        """Forget every sample, for example at the start of an episode; the counters go on, and the goal stays."""
        for intake in self.intakes:
            intake.clear()
        self._first_tick_ns = self._jump = None

    @property
    def intakes(self) -> list[Intake]:
        """Every stream that is sampled at ticks, cameras first, with its counters."""
        return [*self._cameras.values(), *self._states.values()]

    @property
    def tick_ns(self) -> int | None:
        """[ns] newest stamp of the reference stream, the first camera or else the first state; None before it."""
        return self._reference.newest_stamp_ns

    def push_image(self, camera: str, message: Any, receive_ns: int, steady_s: float | None = None) -> bool:
        """Take an image; return whether it could be used. `steady_s` is a clock that nobody sets."""
        return self._push(_named(self._cameras, camera), message, receive_ns, steady_s)

    def push_joint_state(self, stream: str, message: Any, receive_ns: int, steady_s: float | None = None) -> bool:
        """Take a joint state; return whether it could be used. `steady_s` is a clock that nobody sets."""
        return self._push(_named(self._states, stream), message, receive_ns, steady_s)

    def push_goal(self, message: Any) -> bool:
        """Take a goal; return whether it could be used. It counts from the next snapshot on.

        Raises:
            StreamError: the robot file has no goal.
        """
        if self.goal is None:
            raise StreamError("no section 'goal' in the robot file")
        return self.goal.push(message)

    def snapshot(self, tick_ns: int) -> Observation | NotReady:
        """Return the observation at a tick, or the first reason why there is none."""
        first_ns = tick_ns if self._first_tick_ns is None else min(self._first_tick_ns, tick_ns)
        ticks = [max(tick_ns - back * self._dt_ns, first_ns) for back in reversed(range(self._n_obs_steps))]
        samples: dict[str, list[Sample]] = {}
        for intake in self.intakes:
            found = [intake.at(tick) for tick in ticks]
            if missing := next((f for f in found if isinstance(f, NotReady)), None):
                return missing
            samples[intake.name] = found
        ages = {name: max(sample.age_ns for sample in found) for name, found in samples.items()}
        if self._equal_stamps and any(ages.values()):
            late = max(ages, key=ages.__getitem__)
            return NotReady(Reason.UNEQUAL_STAMPS, late, f"{late}: no sample with the stamp of the tick yet")
        if self.goal and (missing := self.goal.missing()):
            return missing
        for intake in self.intakes:
            intake.forget_refusal()
        self._jump = None
        return Observation(self._arrays(samples), tick_ns, ages)

    def settled(self, tick_ns: int) -> bool:
        """Tell whether every stream has brought a sample from the tick or later: none that belongs to it is still to come."""
        return all((intake.newest_stamp_ns or 0) >= tick_ns for intake in self.intakes)

    def silence(self, now_ns: int) -> NotReady | None:
        """Return the first stream that has brought nothing usable lately, judged by receive times, or None."""
        problem = next((problem for intake in self.intakes if (problem := intake.silence(now_ns))), None)
        if problem is None or self._jump is None or problem.code is not Reason.NEVER_RECEIVED:
            return problem
        return self._jump._replace(detail=f"{self._jump.detail}; {problem.stream} hasn't sent since")

    def _push(self, intake: Intake, message: Any, receive_ns: int, steady_s: float | None) -> bool:
        before_ns, restarts, jumps = intake.newest_stamp_ns, intake.restarts, intake.jumps
        usable = intake.push(message, receive_ns, steady_s)
        if intake.jumps > jumps:
            self._begin_anew(intake)
        elif intake.restarts > restarts:
            self._first_tick_ns = None
        if not usable:
            return False
        if intake is self._reference and before_ns is not None:
            if intake.newest_stamp_ns - before_ns > self._n_obs_steps * self._dt_ns:
                self._first_tick_ns = None  # what came before the gap is no history of what comes after it
        if self._first_tick_ns is None and self._complete(self.tick_ns):
            self._first_tick_ns = self.tick_ns
        return True

    def _begin_anew(self, jumped: Intake) -> None:
        """Drop what the other streams hold as well, since a clock was set: nothing of before goes with what comes."""
        for intake in self.intakes:
            if intake is not jumped:
                intake.clear()
        self._first_tick_ns = None
        self.clock_jumps += 1
        self.last_jump = f"{jumped.name}: {jumped.jump}; what was held of every stream was dropped"
        self._jump = NotReady(Reason.CLOCK_JUMPED, "clock", self.last_jump)

    def _complete(self, tick_ns: int | None) -> bool:
        return tick_ns is not None and all(isinstance(intake.at(tick_ns), Sample) for intake in self.intakes)

    def _arrays(self, samples: Mapping[str, list[Sample]]) -> dict[str, np.ndarray]:
        stacked = {name: np.stack([sample.value for sample in found]) for name, found in samples.items()}
        arrays = {camera.name: stacked[camera.name] for camera in self._cameras.values()}
        if self._states:
            arrays["state"] = np.concatenate([stacked[state.name] for state in self._states.values()], axis=1)
        if self.goal:
            arrays["goal"] = self.goal.value.copy()
        return arrays


def _named(intakes: Mapping[str, Intake], name: str) -> Intake:
    if name not in intakes:
        raise StreamError(f"no stream '{name}' in the robot file; {suggest(name, intakes)}")
    return intakes[name]
