# SPDX-License-Identifier: Apache-2.0
"""How chunks are executed: the executor's settings and the commander they make, for the node and for a replay alike."""

from __future__ import annotations

from dataclasses import dataclass

from ros_vdd.runtime.command import FIRST_JUMP, Commander
from ros_vdd.runtime.limits import MARGIN
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

    def commander(self, robot: RobotSpec, measured: bool) -> Commander:
        """Return what commands the robot; `measured` tells whether all its action joints are measured.

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
        )
