# SPDX-License-Identifier: Apache-2.0
"""How the commanded position moves from one command to the next: within velocities, or within accelerations too.

    SteppingDrive   the robot file declares no `max_acceleration`: each command goes to the plan, no farther than `max_velocity` allows
    SmoothDrive     it does: commands are continuous in velocity, and to stop is to decelerate
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from ros_vdd.runtime.limits import SafetyGate
from ros_vdd.runtime.motion import MotionLimiter, MotionState
from ros_vdd.runtime.reference import Reference
from ros_vdd.runtime.splicing import Splicer
from ros_vdd.streams.spec import RobotSpec


_ARRIVED = 1e-9  # [action unit]
_BEHIND = 1e-12  # [action unit^2]; rounding leaves less


class Motion(NamedTuple):
    """What to command: where to be after one period, then after two and so on, `(N, A)` [action unit].

    With `velocities` `(N, A)` [action unit/s] of a trajectory the last point is one of rest: a robot that hears nothing more stops.
    """

    positions: np.ndarray
    velocities: np.ndarray | None = None


class Drive(Protocol):
    """The commanded position; one thread may call it."""

    moving: bool
    """Whether the last command was a motion, or the start of one."""
    position: np.ndarray | None
    """(A,) [action unit] commanded last, or where it is to start; None while the robot is left alone."""

    def start(self, measured: np.ndarray | None) -> bool:
        """Begin to move from where the robot is, `(A,)`; return whether it can: None may be no place to start from."""

    def follow(self, splicer: Splicer, chunks: list, now_ns: int, elapsed_ns: int) -> Motion:
        """Follow chunks that reach `now_ns`; `elapsed_ns` since the command before."""

    def skip(self, periods: int) -> None:
        """Be where the robot is that was told nothing for some command periods after the last motion."""

    def hold(self, measured: np.ndarray | None) -> Motion | None:
        """Come to rest where the robot is; None when nothing is to be commanded any more."""

    def approach(self, target: np.ndarray, elapsed_ns: int) -> Motion | None:
        """Go to a position `(A,)`, at most as fast as allowed, and rest there."""

    def leave(self) -> None:
        """Command nothing more."""


class SteppingDrive:
    """One position a command, at most `max_velocity` away from the one before.

    Args:
        gate: limits and counts.
    """

    def __init__(self, gate: SafetyGate):
        self._gate = gate
        self._previous: np.ndarray | None = None
        self._velocity: np.ndarray | None = None

    @property
    def moving(self) -> bool:
        return self._previous is not None

    @property
    def position(self) -> np.ndarray | None:
        return self._previous

    def start(self, measured: np.ndarray | None) -> bool:
        self._previous = None if measured is None else np.asarray(measured, dtype=np.float64)
        self._velocity = None
        return self.moving or not self._gate.limits_velocity

    def follow(self, splicer: Splicer, chunks: list, now_ns: int, elapsed_ns: int) -> Motion:
        if self._previous is None:  # nowhere to come from: as it is
            target = splicer.alone(chunks[-1], now_ns)
        else:
            still = np.zeros_like(self._previous)
            splicer.join(chunks, now_ns, Reference(self._previous, still if self._velocity is None else self._velocity))
            target = self._gate.inside(splicer.at(now_ns).position)  # a blend may swing beyond
            target = self._gate.limit_step(target, self._previous, elapsed_ns)
            self._velocity = (target - self._previous) / (elapsed_ns / 1e9) if elapsed_ns else self._velocity
        self._previous = target
        return Motion(target[None])

    def skip(self, periods: int) -> None:
        pass  # it stays at the position that was commanded last

    def hold(self, measured: np.ndarray | None) -> Motion | None:
        self.leave()
        return None if measured is None else Motion(np.asarray(measured, dtype=np.float64)[None])

    def approach(self, target: np.ndarray, elapsed_ns: int) -> Motion | None:
        if self._previous is None:
            return None
        step = self._gate.limit_step(target, self._previous, elapsed_ns)
        self._previous = None if np.array_equal(step, target) else step
        return Motion(step[None])

    def leave(self) -> None:
        self._previous = self._velocity = None


class SmoothDrive:
    """Commands continuous in velocity, each with the stop that follows if nothing else is heard.

    Args:
        robot: its action declares `max_acceleration`.
        gate: counts.
        lookahead: commands of the plan in each motion before its stop begins, at least 1.
    """

    def __init__(self, robot: RobotSpec, gate: SafetyGate, lookahead: int = 1):
        period_s = 1.0 / robot.action.command_rate_hz
        self._gate, self._limiter, self._lookahead = gate, MotionLimiter(robot.action, period_s), lookahead
        self._period_ns = round(1e9 * period_s)
        self._lag_ns = round(self._limiter.lag_s * 1e9)
        self._whole = robot.action.type == "trajectory_msgs/msg/JointTrajectory"
        self._state: MotionState | None = None
        self._ahead: list[MotionState] = []  # what the last motion held beyond that, before its stop

    @property
    def moving(self) -> bool:
        return self._state is not None

    @property
    def position(self) -> np.ndarray | None:
        return None if self._state is None else self._state.position

    def start(self, measured: np.ndarray | None) -> bool:
        self._state, self._ahead = None if measured is None else self._limiter.at_rest(measured), []
        return measured is not None

    def follow(self, splicer: Splicer, chunks: list, now_ns: int, elapsed_ns: int) -> Motion:
        begun_ns = now_ns + self._lag_ns  # what is commanded now was asked for so long ago
        used = [chunk for chunk in splicer.used(chunks) if begun_ns < chunk.end_ns]
        end_ns = max((chunk.end_ns for chunk in used), default=begun_ns)
        if used:
            splicer.join(used, begun_ns, self._limiter.reference(self._state))
        state, states = self._state, []
        for k in range(1, self._lookahead + 1):
            then_ns = begun_ns + k * self._period_ns
            wanted = splicer.at(then_ns) if then_ns < end_ns else None
            state = self._limiter.brake(state) if wanted is None else self._limiter.follow(state, *wanted)
            if k == 1 and wanted is not None:
                behind = wanted.position - state.recent[-1]
                self._gate.slowed += bool(behind @ behind > _BEHIND)
            states.append(state)
        self._state, self._ahead = states[0], states[1:]
        return self._motion(states)

    def skip(self, periods: int) -> None:
        if not periods:
            return
        if not self._whole:
            if periods >= len(self._limiter.stop(self._state)[0]):  # it has stood at the position that was commanded last
                self._state = self._limiter.at_rest(self._state.position)
            return
        for _ in range(periods):
            if not self._ahead and self._state.resting:
                return
            self._state = self._ahead.pop(0) if self._ahead else self._limiter.brake(self._state)

    def hold(self, measured: np.ndarray | None) -> Motion | None:
        if self._state.resting:
            self._state = None
            return None
        self._state, self._ahead = self._limiter.brake(self._state), []
        return self._motion([self._state])

    def approach(self, target: np.ndarray, elapsed_ns: int) -> Motion | None:
        self._state, self._ahead = self._limiter.follow(self._state, target), []
        state = self._state
        motion = self._motion([state])
        if state.resting and np.allclose(state.position, target, rtol=0.0, atol=_ARRIVED):
            self._state = None
        return motion

    def leave(self) -> None:
        self._state = None

    def _motion(self, states: list[MotionState]) -> Motion:
        """Return states and, where a motion is heard as a whole, the stop after the last."""
        positions, velocities = ([getattr(s, name) for s in states] for name in ("position", "velocity"))
        if not self._whole:
            return Motion(np.array(positions), np.array(velocities))
        further, slower = self._limiter.stop(states[-1])
        return Motion(np.concatenate([positions, further]), np.concatenate([velocities, slower]))
