# SPDX-License-Identifier: Apache-2.0
"""Writes down what went over the topics during a demo, as JSON lines; draws nothing, so it takes no time from others.

Ends once the last episode's result has come and the diagnostics after it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from ros_vdd.errors import ConfigError
from ros_vdd.nodes.messages import COMMAND_QOS
from ros_vdd.nodes.parameters import Parameter, declare, read
from ros_vdd.nodes.process import run
from ros_vdd.streams.codecs import stamp_ns

PARAMETERS = (Parameter("path", "", "file the lines are written to"),)
POLICY_TOPICS = ("action_chunk", "policy_node/prediction")
LAST_DIAGNOSTICS_S = 2.5  # diagnostics come once a second
LATCHED_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class DemoObserverNode(Node):
    """Subscribes to chunks, predictions, results and diagnostics; each message becomes a line."""

    def __init__(self, **options: Any):
        super().__init__("demo_observer_node", **options)
        declare(self, PARAMETERS)
        path = read(self, PARAMETERS).path
        if not path:
            raise ConfigError("demo_observer_node: parameter 'path' is empty; give the file to write")
        self.create_subscription(JointTrajectory, POLICY_TOPICS[0], self._take_chunk, COMMAND_QOS)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._take_diagnostics, COMMAND_QOS)
        self.create_subscription(String, POLICY_TOPICS[1], self._take_prediction, COMMAND_QOS)
        self._file = Path(path).open("w", encoding="utf-8")
        self._matching = self.create_timer(0.05, self._listen_to_simulator)

    def destroy_node(self) -> None:
        """Close the file, then the node."""
        if hasattr(self, "_file"):
            self._file.close()
        super().destroy_node()

    def _listen_to_simulator(self) -> None:
        """Subscribe to results once the policy's topics have matched, and the executor's: the simulator waits for that reader."""
        topics = [self.resolve_topic_name(topic) for topic in POLICY_TOPICS]
        if all(map(self.count_publishers, topics)) and self.count_subscribers(topics[0]) > 1:  # the executor listens, too
            self._matching.cancel()
            self.create_subscription(String, "sim_bridge_node/result", self._take_result, LATCHED_QOS)

    def _take_chunk(self, message: JointTrajectory) -> None:
        actions = [list(point.positions) for point in message.points]
        self._write("chunk", {"stamp_ns": stamp_ns(message), "actions": actions})

    def _take_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {value.key: value.value for value in status.values}
            self._write("diagnostics", {"name": status.name, "message": status.message, "values": values})

    def _take_prediction(self, message: String) -> None:
        self._write("prediction", json.loads(message.data))

    def _take_result(self, message: String) -> None:
        result = json.loads(message.data)
        self._write("result", result)
        if result["episode"] + 1 == result["of"]:
            self.create_timer(LAST_DIAGNOSTICS_S, self._leave)

    def _write(self, kind: str, content: dict[str, Any]) -> None:
        self._file.write(json.dumps({"kind": kind, **content}) + "\n")
        self._file.flush()

    def _leave(self) -> None:
        raise ExternalShutdownException


def main(args: list[str] | None = None) -> int:
    """Run the node; see `ros_vdd.nodes.process.run`."""
    return run(DemoObserverNode, args)
