# SPDX-License-Identifier: Apache-2.0
"""How a node says what it does and why not: a latched `~/status`, one log line per change, and `/diagnostics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from std_msgs.msg import String

from ros_vdd.nodes.messages import LATCHED_QOS, diagnostics_message, json_message
from ros_vdd.nodes.process import publish
from ros_vdd.runtime.reasons import Reason

State = Literal["unconfigured", "inactive", "waiting", "running", "stopped", "finalized"]


class Status:
    """The state of one node; called from its executor's thread only.

    Args:
        node: whose status it is
        task: what the node does, for the name of its diagnostics
    """

    def __init__(self, node: Node, task: str):
        self._node, self._task = node, task
        self.robot = ""
        """The hardware_id of the diagnostics."""
        self._said: tuple[str, str, str] | None = None
        self._problem: str | None = None
        self._status = node.create_publisher(String, "~/status", LATCHED_QOS)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def set(self, state: State, code: str = "", detail: str = "", about: str = "") -> bool:
        """Say the state, unless it was said last, and return whether it was said; a detail that changes with every tick isn't.

        Args:
            state: of a node that is active: running, waiting to run, or stopped after having run; else its lifecycle state
            code: reason code, empty while running
            detail: the reason as a sentence
            about: the stream the reason is about
        """
        self._problem = None if state == "running" else f"{state}: {code}: {detail}"
        if self._said == (state, code, about):
            return False
        self._said = (state, code, about)
        publish(self._node, self._status, json_message({"state": state, "code": code, "detail": detail}))
        if code in ("", Reason.INACTIVE.value):
            self._node.get_logger().info(f"{state}: {detail}" if detail else state)
        else:
            self._node.get_logger().warning(self._problem)
        return True

    def diagnose(self, values: Mapping[str, Any], warning: str | None = None) -> None:
        """Publish the state with figures beside it; a warning is told where there is no problem."""
        stamp_ns = self._node.get_clock().now().nanoseconds
        name, problem = self._node.get_fully_qualified_name().lstrip("/"), self._problem or warning
        self._diagnostics.publish(diagnostics_message(name, self._task, self.robot, stamp_ns, problem, values))
