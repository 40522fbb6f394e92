# SPDX-License-Identifier: Apache-2.0
"""What the robot is commanded now: the action of a valid chunk, the declared safe action once, or nothing.

Before the first valid chunk nothing is commanded. A robot fails towards stillness: the first instant without a valid
chunk yields the safe action of the robot file, and every later one yields nothing until a valid chunk arrives. A safe
position is approached at `max_velocity`, which may take several commands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ros_vdd.runtime.chunking import ActionChunk, ChunkBuffer
from ros_vdd.runtime.limits import MARGIN, SafetyGate
from ros_vdd.runtime.reasons import Reason, Refusal
from ros_vdd.streams.spec import RobotSpec


class Command(NamedTuple):
    """What to publish, if anything, and why it isn't the action of a chunk, if it isn't."""

    positions: np.ndarray | None
    refusal: Refusal | None


class Commander:
    """Turns chunks and the measured position into commands.

    Called from one thread only, the executor node's. The first command after stillness starts from the measured
    position where the robot file declares `max_velocity`: a ramp, never a jump. Without it there is no such guard.

    Args:
        robot: limits, interpolation, velocities and safe action
        use_steps: how many actions of a chunk are used; None for all of them
        margin: overshoot of a limit that is clamped instead of refused, as a fraction of a joint's range
    """

    def __init__(self, robot: RobotSpec, use_steps: int | None = None, margin: float = MARGIN):
        self.gate = SafetyGate(robot, margin)
        self._safe = robot.safe_action
        self._dt_ns = robot.dt_ns
        self._period_ns = round(1e9 / robot.action.command_rate_hz)
        self._buffer = ChunkBuffer(robot.action.interpolation, round(robot.safe_action.stale_chunk_s * 1e9), use_steps)
        self._refused: Refusal | None = None  # why the newest chunk was refused, until a valid one arrives
        self._previous: np.ndarray | None = None  # last commanded position; None while the robot is left alone
        self._now_ns: int | None = None

    @property
    def moving(self) -> bool:
        """Whether the last command came from a chunk, or was a step towards the safe position."""
        return self._previous is not None

    def receive(self, chunk: ActionChunk | Refusal) -> Refusal | None:
        """Take a chunk, or note why it can't be taken.

        A refused chunk ends the plans before it too: a policy that sends NaN isn't believed about the past either.
        One that is merely older than the plan in force changes nothing.
        """
        checked = chunk if isinstance(chunk, Refusal) else self._check(chunk)
        if isinstance(checked, Refusal):
            self._buffer.clear()
            self._refused = checked
            return checked
        if late := self._buffer.push(checked):
            return late
        self._refused = None
        return None

    def forget(self) -> None:
        """Forget every plan, for example at the start of an episode."""
        self._buffer.clear()
        self._refused = None

    def awaits_chunk(self, now_ns: int) -> bool:
        """Whether no chunk covers `now_ns` though none was refused; in lock-step one then waits instead of stopping."""
        return self._refused is None and isinstance(self._buffer.at(now_ns), Refusal)

    def command(self, now_ns: int, measured: np.ndarray | None) -> Command:
        """Decide for one instant.

        Args:
            now_ns: time of this command on the clock of the chunk stamps, [ns]
            measured: fresh measured position of the action joints, (A,), or None where there is none
        """
        elapsed_ns = self._advance(now_ns)
        action = self._refused or self._buffer.at(now_ns)
        if isinstance(action, Refusal):
            return self._stop(action, measured, elapsed_ns)
        if self.gate.limits_velocity:
            start = measured if self._previous is None else self._previous
            if start is None:
                return Command(None, Refusal(Reason.NO_MEASUREMENT, "the first command must start where the robot is"))
            action = self.gate.limit_step(action, start, elapsed_ns)
        self._previous = action
        return Command(action, None)

    def _check(self, chunk: ActionChunk) -> ActionChunk | Refusal:
        if chunk.dt_ns != self._dt_ns:
            expected = f"the robot file asks for {self._dt_ns / 1e9} s"
            return Refusal(Reason.WRONG_TIMING, f"dt is {chunk.dt_ns / 1e9} s; {expected}")
        return self.gate.check(chunk)

    def _advance(self, now_ns: int) -> int:
        """Return the time a step may take: since the previous command, but a pause of this process isn't made up for.

        A clock that ran backwards voids every plan.
        """
        previous_ns, self._now_ns = self._now_ns, now_ns
        if previous_ns is not None and now_ns < previous_ns:
            self._buffer.clear()
        if previous_ns is None or self._previous is None or now_ns < previous_ns:
            return self._period_ns
        return min(now_ns - previous_ns, max(self._period_ns, self._dt_ns))

    def _stop(self, refusal: Refusal, measured: np.ndarray | None, elapsed_ns: int) -> Command:
        """Return the safe action if the robot was being moved, else nothing."""
        previous, self._previous = self._previous, None
        if previous is None or self._safe.kind == "stop":
            return Command(None, refusal)
        if self._safe.kind == "position":
            target = np.asarray(self._safe.positions, dtype=np.float64)
            step = self.gate.limit_step(target, previous, elapsed_ns)
            self._previous = None if np.array_equal(step, target) else step
            return Command(step, refusal)
        if measured is None:  # holding needs to know where; an old or invented position would be a motion
            return Command(None, Refusal(refusal.code, f"{refusal.detail}; no fresh measured position to hold"))
        return Command(measured, refusal)
