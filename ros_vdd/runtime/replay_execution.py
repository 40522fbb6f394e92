# SPDX-License-Identifier: Apache-2.0
"""The executor of a replay: chunks and joint states in, the commands it would have given counted, by the log's clock."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.execution import ExecutionConfig
from ros_vdd.runtime.measurement import MeasuredPosition
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
        self._measured, self._lock_step = MeasuredPosition(robot), lock_step
        self._commander = config.commander(robot, self._measured.complete)
        self._period_ns = round(1e9 / robot.action.command_rate_hz)
        self._asked_ns: int | None = None  # newest joint-state stamp
        self._answered_ns: int | None = None  # newest joint-state stamp that got its command
        self._code: str | None = Reason.NO_CHUNK.value  # why nothing of a plan is commanded now
        self._interventions: Counter[str] = Counter()
        self._counts = dict.fromkeys(("chunks", "chunks_refused", "chunks_late", "commands", "safe_actions"), 0)
        self.due_ns: int | None = None
        """When the next command is due, [ns]; None in lock-step, and before `begin`."""

    def begin(self, now_ns: int) -> None:
        """Command from now on."""
        self.due_ns = None if self._lock_step else now_ns

    def take_chunk(self, chunk: ActionChunk) -> None:
        """Take a plan."""
        refusal = self._commander.receive(chunk)
        late = refusal is not None and refusal.code is Reason.SUPERSEDED
        self._counts["chunks"] += 1
        self._counts["chunks_late"] += late
        self._counts["chunks_refused"] += refusal is not None and not late
        self._answer()

    def take_joint_state(self, stream: str, message: Any, now_ns: int) -> None:
        """Take a joint state."""
        if self._measured.push(stream, message, now_ns):
            self._asked_ns = self._measured.intakes[stream].newest_stamp_ns
            self._answer()

    def wake(self) -> None:
        """Give the command that is due."""
        self._command(self.due_ns)
        self.due_ns += self._period_ns

    def figures(self) -> dict[str, Any]:
        """Return the counters of the executor's diagnostics by their names there, and the interventions by reason."""
        gate = self._commander.gate
        counts = {**self._counts, "chunks_clamped": gate.clamped, "commands_slowed": gate.slowed}
        return {**counts, "seams": self._commander.splicer.seams, "interventions": dict(self._interventions.most_common())}

    def _answer(self) -> None:
        if not self._lock_step or self._asked_ns in (None, self._answered_ns) or self._commander.awaits_chunk(self._asked_ns):
            return
        self._command(self._asked_ns)

    def _command(self, now_ns: int) -> None:
        motion, refusal = self._commander.command(now_ns, self._measured.at(now_ns, self._commander.rested_ns))
        if motion is not None:
            self._answered_ns = self._asked_ns
            self._counts["safe_actions" if refusal else "commands"] += 1
        code = refusal.code.value if refusal else None
        if code not in (None, self._code):
            self._interventions[code] += 1
        self._code = code
