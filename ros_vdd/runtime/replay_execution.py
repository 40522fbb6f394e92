# SPDX-License-Identifier: Apache-2.0
"""The executor of a replay: chunks and joint states in, the commands it would have given counted, by the log's clock."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.execution import Execution, ExecutionConfig
from ros_vdd.runtime.reasons import Reason
from ros_vdd.streams.spec import RobotSpec


class ReplayedExecution:
    """The commander of `chunk_executor_node`, asked at the command rate, or in lock-step at each joint state.

    The robot in the recording didn't do what is commanded here, so what is counted says what the gate, the limits and the start
    would have done to the plans, not where they lead.

    Args:
        robot: limits, rates and safe action.
        config: the executor's settings.
        lock_step: command the newest joint-state stamp, once a chunk covers it, instead of by time.
    """

    def __init__(self, robot: RobotSpec, config: ExecutionConfig, lock_step: bool):
        self._execution, self._lock_step = Execution(robot, config, not lock_step), lock_step
        self._period_ns = round(1e9 / robot.action.command_rate_hz)
        self._code: str | None = Reason.NO_CHUNK.value  # why nothing of a plan is commanded now
        self._interventions: Counter[str] = Counter()
        self.due_ns: int | None = None
        """When the next command is due, [ns]; None in lock-step, and before `begin`."""

    def begin(self, now_ns: int) -> None:
        """Command from now on."""
        self.due_ns = None if self._lock_step else now_ns

    def take_chunk(self, chunk: ActionChunk) -> None:
        """Take a plan."""
        self._execution.take_chunk(chunk)
        self._answer()

    def take_joint_state(self, stream: str, message: Any, now_ns: int) -> None:
        """Take a joint state."""
        if self._execution.take_joint_state(stream, message, now_ns):
            self._answer()

    def wake(self) -> None:
        """Give the command that is due."""
        self._command(self.due_ns)
        self.due_ns += self._period_ns

    def figures(self) -> dict[str, Any]:
        """Return the counters of the executor's diagnostics by their names there, and the interventions by reason."""
        commander = self._execution.commander
        counts = {**self._execution.counts, "chunks_clamped": commander.gate.clamped, "commands_slowed": commander.gate.slowed}
        return {**counts, "seams": commander.splicer.seams, "interventions": dict(self._interventions.most_common())}

    def _answer(self) -> None:
        if self._lock_step and (due_ns := self._execution.due_ns) is not None:
            self._command(due_ns)

    def _command(self, now_ns: int) -> None:
        refusal = self._execution.command(now_ns).refusal
        code = refusal.code.value if refusal else None
        if code not in (None, self._code):
            self._interventions[code] += 1
        self._code = code
