# SPDX-License-Identifier: Apache-2.0
"""How chunks are executed: the executor's settings and the commander they make, for the node and for a replay alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.command import FIRST_JUMP, Command, Commander
from ros_vdd.runtime.limits import MARGIN
from ros_vdd.runtime.measurement import MeasuredPosition
from ros_vdd.runtime.reasons import Reason, Refusal
from ros_vdd.runtime.splicing import SpliceConfig
from ros_vdd.streams.spec import RobotSpec


@dataclass(frozen=True)
class ExecutionConfig:
    """The parameters of `chunk_executor_node` by their names there, with its defaults.

    Args:
        replan_steps: how many actions of a chunk are used; 0 for all.
        clamp_margin: overshoot that is clamped, not refused; fraction of a joint's range.
        splicing: how plans are joined; "auto": blend with `max_acceleration`, else replace.
        splice_s: how long a blend takes at least, [s].
        ensemble_decay: of splicing "ensemble".
        lookahead_s: of a JointTrajectory with `max_acceleration`: how much of the plan stands before its stop, [s].
        first_jump: farthest first action from where the robot is; fraction of a joint's range.
        watch: move only while fresh joint states come, where all action joints are measured.
    """

    replan_steps: int = 0
    clamp_margin: float = MARGIN
    splicing: str = "auto"
    splice_s: float = 0.2
    ensemble_decay: float = 0.01
    lookahead_s: float = 0.1
    first_jump: float = FIRST_JUMP
    watch: bool = True

    def commander(self, robot: RobotSpec, measured: bool, real_time: bool = True) -> Commander:
        """Return what commands the robot; see `Execution`. `measured` tells whether all its action joints are measured.

        Raises:
            ConfigError: a setting has no meaning.
        """
        smooth = robot.action.max_acceleration is not None
        method = ("blend" if smooth else "replace") if self.splicing == "auto" else self.splicing
        return Commander(
            robot,
            self.replan_steps or None,
            self.clamp_margin,
            SpliceConfig(method, self.splice_s, self.ensemble_decay),
            max(1, round(self.lookahead_s * robot.action.command_rate_hz)),
            self.first_jump,
            measured and self.watch,
            None if real_time else max(robot.dt_ns, round(1e9 / robot.action.command_rate_hz)),
        )


class Execution:
    """Chunks and joint states in, commands out, counted. Not for several threads at once: its caller guards it.

    Args:
        robot: limits, rates, states and safe action.
        config: the settings.
        real_time: whether commands are asked for once a period by the clock that joint states are stamped with. A simulation's time leaps:
            one command may then go as far as in a policy period, and stamps are compared with no clock.

    Attributes:
        commander: what commands the robot.
        counts: chunks, chunks_refused, chunks_late, commands and safe_actions so far.
        leaps: whether the safe position is commanded in one jump, as the robot file limits neither velocity nor acceleration.
        asked_ns: newest joint-state stamp, [ns], or None; in lock-step its command may have to wait for a chunk.
    """

    def __init__(self, robot: RobotSpec, config: ExecutionConfig, real_time: bool = True):
        self._measured = MeasuredPosition(robot, real_time)
        self.commander = config.commander(robot, self._measured.complete, real_time)
        unbound = robot.action.max_velocity is None and robot.action.max_acceleration is None
        self.leaps = robot.safe_action.kind == "position" and self._measured.complete and unbound
        self.counts = dict.fromkeys(("chunks", "chunks_refused", "chunks_late", "commands", "safe_actions"), 0)
        self.asked_ns: int | None = None
        self._answered_ns: int | None = None  # newest joint-state stamp that got its command

    @property
    def due_ns(self) -> int | None:
        """In lock-step: the joint-state stamp to be commanded, once, as soon as a chunk covers it, [ns]; None else."""
        if self.asked_ns in (None, self._answered_ns) or self.commander.awaits_chunk(self.asked_ns):
            return None
        return self.asked_ns

    def take_chunk(self, chunk: ActionChunk | Refusal) -> None:
        """Take a plan, or that it couldn't be read."""
        refusal = self.commander.receive(chunk)
        late = refusal is not None and refusal.code is Reason.SUPERSEDED
        self.counts["chunks"] += 1
        self.counts["chunks_late"] += late
        self.counts["chunks_refused"] += refusal is not None and not late

    def take_joint_state(self, stream: str, message: Any, now_ns: int) -> bool:
        """Take a joint state; return whether it could be used."""
        usable = self._measured.push(stream, message, now_ns)
        if usable:
            self.asked_ns = self._measured.intakes[stream].newest_stamp_ns
        return usable

    def command(self, now_ns: int) -> Command:
        """Decide for one instant, see `Commander.command`."""
        rested_ns = self.commander.rested_ns
        command = self.commander.command(now_ns, self._measured.at(now_ns, rested_ns))
        if command.refusal and command.refusal.code is Reason.NO_MEASUREMENT:
            why = f"{command.refusal.detail}; {self._measured.missing(now_ns, rested_ns)}"
            command = command._replace(refusal=Refusal(Reason.NO_MEASUREMENT, why))
        if command.motion is not None:
            self._answered_ns = self.asked_ns
            self.counts["safe_actions" if command.refusal else "commands"] += 1
        return command
