# SPDX-License-Identifier: Apache-2.0
"""What the robot is commanded now: the motion of a valid chunk, the declared safe action, or nothing.

Before the first valid chunk nothing is commanded. A robot fails towards stillness: from the first instant without a valid chunk on it
is brought to its safe action, and then nothing is commanded until a valid chunk arrives. Where the robot file declares
`max_acceleration` it decelerates; else a hold is one command, and a safe position is approached at `max_velocity`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ros_vdd.errors import ConfigError
from ros_vdd.runtime.chunking import ActionChunk, ChunkBuffer
from ros_vdd.runtime.drive import Motion, SmoothDrive, SteppingDrive
from ros_vdd.runtime.limits import MARGIN, SafetyGate
from ros_vdd.runtime.reasons import Reason, Refusal
from ros_vdd.runtime.splicing import TURN, SpliceConfig, Splicer
from ros_vdd.runtime.statistics import Window
from ros_vdd.streams.spec import RobotSpec

FIRST_JUMP = 0.5
"""Share of a joint's range that the first action may be away from where the joint is: more is a wrong unit or a wrong joint."""
_ENSEMBLE = 64  # chunks that a mean may be of


class Command(NamedTuple):
    """What to publish, if anything, and why it isn't the motion of a chunk, if it isn't."""

    motion: Motion | None
    refusal: Refusal | None

    @property
    def positions(self) -> np.ndarray | None:
        """Return where to be after one period, (A,) [action unit]."""
        return None if self.motion is None else self.motion.positions[0]


class Commander:
    """Turns chunks and the measured position into commands.

    Called from one thread only, the executor's. The first motion after stillness starts from the measured position where the
    robot file declares `max_velocity` or `max_acceleration`: never a jump. Without them there is no such guard.
    Joints that the robot file calls `switched`, such as grippers, are held where they were commanded, and start from there until plans are
    forgotten: a gripper that holds something is measured farther open, and would let go.

    Args:
        robot: limits, interpolation, velocities and safe action
        use_steps: how many actions of a chunk are used; None for all of them
        margin: overshoot of a limit that is clamped instead of refused, as a fraction of a joint's range
        splicing: how chunks that overlap are joined
        lookahead: commands of the plan in each motion before its stop begins
        first_jump: how far the first action may be away from the measured position, as a fraction of a joint's range
        measured: whether a motion needs a fresh measurement all the time; only where all action joints are measured
        longest_ns: of a robot without `max_acceleration`, the time that one command may make up for, [ns]; None for a command period:
            after a pause no command goes farther than any other
    """

    def __init__(
        self,
        robot: RobotSpec,
        use_steps: int | None = None,
        margin: float = MARGIN,
        splicing: SpliceConfig = SpliceConfig(),
        lookahead: int = 1,
        first_jump: float = FIRST_JUMP,
        measured: bool = False,
        longest_ns: int | None = None,
    ):
        if lookahead < 1:
            raise ConfigError(f"'lookahead' is {lookahead}; expected at least 1 command")
        self.gate = SafetyGate(robot, margin)
        self.splicer = Splicer(robot.action, splicing)
        self._smooth = robot.action.max_acceleration is not None
        self._drive = SmoothDrive(robot, self.gate, lookahead) if self._smooth else SteppingDrive(self.gate)
        self._safe, self._needs_measurement = robot.safe_action, measured
        self._joints = robot.action.joints
        self._reach = first_jump * np.subtract(robot.action.upper, robot.action.lower)
        self._endless = np.array([joint in robot.action.continuous for joint in robot.action.joints])
        self._switched = np.array([joint in robot.action.switched for joint in robot.action.joints])
        self._dt_ns = robot.dt_ns
        self._period_ns = round(1e9 / robot.action.command_rate_hz)
        self._longest_ns = longest_ns or self._period_ns
        kept = _ENSEMBLE if splicing.method == "ensemble" else 2
        self._buffer = ChunkBuffer(round(robot.safe_action.stale_chunk_s * 1e9), use_steps, kept)
        self._refused: Refusal | None = None  # why the newest chunk was refused, until a valid one arrives
        self._forbidden: Refusal | None = None  # why nobody may move the robot
        self._now_ns: int | None = None
        self._due_ns = 0  # when the next command is, if none is missed
        self._rests_ns = 0  # when the last motion is over
        self._followed_ns: int | None = None  # stamp of the chunk in force
        self._left: np.ndarray | None = None  # (A,) commanded last, unless all was forgotten since
        self.latency_ms = Window()
        """From the stamp of an observation to the first command of its chunk, [ms]."""

    @property
    def moving(self) -> bool:
        """Whether the last command came from a chunk, or was a step towards the safe action."""
        return self._drive.moving

    @property
    def rested_ns(self) -> int:
        """Return since when a robot that was moved rests [ns], 0 while it moves: what was measured before isn't where it is now."""
        return 0 if self._drive.moving else self._rests_ns

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
        if late := self._buffer.push(self.splicer.prepare(checked)):
            return late
        self._refused = None
        return None

    def forget(self) -> None:
        """Forget every plan, for example at the start of an episode."""
        self._buffer.clear()
        self._refused = None
        if not self._drive.moving:
            self._now_ns, self._rests_ns, self._left = None, 0, None  # the clock may begin anew, and hands may have been at work

    def forbid(self, refusal: Refusal | None) -> None:
        """Bring the robot to its safe action and keep it there, whatever chunks arrive, until None is given; plans are forgotten."""
        self._forbidden = refusal
        self.forget()

    def awaits_chunk(self, now_ns: int) -> bool:
        """Whether no chunk covers `now_ns` though none was refused; in lock-step one then waits instead of stopping.

        A clock that ran backwards voids every plan, also one that is waited with.
        """
        if self._now_ns is not None and now_ns < self._now_ns:
            self._buffer.clear()
            self._now_ns = now_ns
        return not (self._forbidden or self._refused) and isinstance(self._buffer.reaching(now_ns), Refusal)

    def command(self, now_ns: int, measured: np.ndarray | None) -> Command:
        """Decide for one instant.

        Args:
            now_ns: time of this command on the clock of the chunk stamps, [ns]
            measured: fresh measured position of the action joints, (A,), or None where there is none
        """
        command = self._decide(now_ns, measured)
        if command.motion is not None:
            self._left = command.motion.positions[-1]
            if self._smooth:
                self._rests_ns = now_ns + len(command.motion.positions) * self._period_ns
        return command

    def _decide(self, now_ns: int, measured: np.ndarray | None) -> Command:
        elapsed_ns = self._advance(now_ns)
        chunks = self._forbidden or self._refused or self._buffer.reaching(now_ns)
        if not isinstance(chunks, Refusal) and measured is None and self._needs_measurement:
            chunks = Refusal(Reason.NO_MEASUREMENT, "no fresh measured position of all action joints")
        if not isinstance(chunks, Refusal) and not self._drive.moving:
            chunks = self._start(chunks, now_ns, measured) or chunks
        if isinstance(chunks, Refusal):
            return self._stop(chunks, measured, elapsed_ns)
        if chunks[-1].stamp_ns != self._followed_ns:
            self._followed_ns = chunks[-1].stamp_ns
            self.latency_ms.add((now_ns - self._followed_ns) / 1e6)
        return Command(self._drive.follow(self.splicer, chunks, now_ns, elapsed_ns), None)

    def _start(self, chunks: list[ActionChunk], now_ns: int, measured: np.ndarray | None) -> Refusal | None:
        """Begin to move from the measured position, or say why that is refused."""
        self.splicer.reset()
        begun = measured if measured is None or self._left is None else np.where(self._switched, self._left, measured)
        if not self._drive.start(begun):
            return Refusal(Reason.NO_MEASUREMENT, "the first command must start where the robot is")
        if measured is None:
            return None
        distance = self.splicer.alone(chunks[-1], now_ns) - measured
        distance = np.where(self._endless, np.remainder(distance + np.pi, 2 * np.pi) - np.pi, distance)
        beyond = np.abs(distance) > self._reach
        if not beyond.any():
            return None
        self._drive.leave()
        worst = int(np.argmax(beyond))
        given = f"the first action of '{self._joints[worst]}' is {abs(distance[worst]):.3g} away from where it is"
        return Refusal(Reason.FIRST_JUMP, f"{given}; at most {self._reach[worst]:.3g} is accepted")

    def _check(self, chunk: ActionChunk) -> ActionChunk | Refusal:
        if chunk.dt_ns != self._dt_ns:
            expected = f"the robot file asks for {self._dt_ns / 1e9} s"
            return Refusal(Reason.WRONG_TIMING, f"dt is {chunk.dt_ns / 1e9} s; {expected}")
        return self.gate.check(chunk)

    def _advance(self, now_ns: int) -> int:
        """Return the time a step may take: since the previous command, but a pause of this process isn't made up for.

        A clock that ran backwards voids every plan. Periods without a command are those in which a robot went on by itself.
        """
        previous_ns, self._now_ns = self._now_ns, now_ns
        if previous_ns is not None and now_ns < previous_ns:
            self._buffer.clear()
            self._rests_ns = 0
        if previous_ns is None or not self._drive.moving or now_ns < previous_ns:
            self._due_ns = now_ns + self._period_ns
            return self._period_ns
        missed = max(0, (now_ns - self._due_ns) // self._period_ns)
        self._due_ns = min(self._due_ns + missed * self._period_ns, now_ns) + self._period_ns
        self._drive.skip(missed)
        return min(now_ns - previous_ns, self._longest_ns)

    def _stop(self, refusal: Refusal, measured: np.ndarray | None, elapsed_ns: int) -> Command:
        """Return the safe action while the robot moves, else nothing."""
        if not self._drive.moving:
            return Command(None, refusal)
        if self._safe.kind == "stop" and not self._smooth:
            self._drive.leave()
            return Command(None, refusal)
        if self._safe.kind == "position" and refusal.code is not Reason.PROTECTIVE_STOP:
            target = np.asarray(self._safe.positions, dtype=np.float64)
            turns = np.rint((self._drive.position - target) / TURN) * TURN
            return Command(self._drive.approach(np.where(self._endless, target + turns, target), elapsed_ns), refusal)
        motion = self._drive.hold(measured if measured is None else np.where(self._switched, self._drive.position, measured))
        if motion is None and measured is None and not self._smooth:  # an old or invented position would be a motion
            refusal = Refusal(refusal.code, f"{refusal.detail}; no fresh measured position to hold")
        return Command(motion, refusal)
