# SPDX-License-Identifier: Apache-2.0
"""Arrays and words into ROS messages, and the QoS each kind of topic travels with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float32MultiArray, Float64MultiArray, Int32, String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.drive import Motion
from ros_vdd.streams.codecs import encode_array, encode_goal, encode_joint_state, encode_trajectory, refill_trajectory
from ros_vdd.streams.spec import ActionSpec, GoalSpec

CLASSES = {
    "sensor_msgs/msg/Image": Image,
    "sensor_msgs/msg/CompressedImage": CompressedImage,
    "sensor_msgs/msg/JointState": JointState,
    "std_msgs/msg/Float32MultiArray": Float32MultiArray,
    "std_msgs/msg/Float64MultiArray": Float64MultiArray,
    "std_msgs/msg/Int32": Int32,
    "std_msgs/msg/String": String,
    "trajectory_msgs/msg/JointTrajectory": JointTrajectory,
}

# A best-effort reader matches every writer; a reliable one would get nothing from a best-effort camera.
CAMERA_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
JOINT_STATE_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
COMMAND_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
LATCHED_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def time_message(stamp_ns: int) -> Time:
    """Return a stamp as a message."""
    sec, nanosec = divmod(stamp_ns, 1_000_000_000)
    return Time(sec=sec, nanosec=nanosec)


def chunk_message(chunk: ActionChunk) -> JointTrajectory:
    """Return a chunk as a trajectory whose point k stands at (k+1)*dt after the observation's stamp."""
    message = JointTrajectory()
    message.header.stamp = time_message(chunk.stamp_ns)
    points = [JointTrajectoryPoint() for _ in chunk.actions]
    encode_trajectory(message, points, chunk.joints, chunk.actions, chunk.dt_ns)
    return message


class ChunkMessage:
    """A trajectory that is filled again for each chunk: making its points takes longer than sending them.

    What `fill` returns is good until it is called again.
    """

    def __init__(self):
        self._message, self._layout = JointTrajectory(), None

    def fill(self, chunk: ActionChunk) -> JointTrajectory:
        """Return the chunk as `chunk_message` does."""
        layout = (len(chunk.actions), chunk.joints, chunk.dt_ns)
        if layout != self._layout:
            self._message, self._layout = chunk_message(chunk), layout
            return self._message
        refill_trajectory(self._message, chunk.actions)
        self._message.header.stamp = time_message(chunk.stamp_ns)
        return self._message


def command_message(action: ActionSpec, motion: Motion, stamp_ns: int) -> Any:
    """Return a motion in the type of the robot file; only a trajectory has room for more than its first point.

    Args:
        action: type, joints and command rate; a trajectory's points stand one command period apart
        motion: where to be, [action unit]
        stamp_ns: the instant it is for, where the type has a header
    """
    message = CLASSES[action.type]()
    if action.type == "std_msgs/msg/Float64MultiArray":
        encode_array(message, motion.positions[0], len(action.joints))
        return message
    message.header.stamp = time_message(stamp_ns)
    if action.type == "sensor_msgs/msg/JointState":
        encode_joint_state(message, action.joints, motion.positions[0])
        if motion.velocities is not None:
            message.velocity = motion.velocities[0].tolist()
        return message
    period_ns = round(1e9 / action.command_rate_hz)
    points = [JointTrajectoryPoint() for _ in motion.positions]
    encode_trajectory(message, points, action.joints, motion.positions, period_ns)
    for point, velocities in zip(points, () if motion.velocities is None else motion.velocities):
        point.velocities = velocities.tolist()
    return message


def goal_message(spec: GoalSpec, goal: np.ndarray) -> Any:
    """Return a goal (G,) in the type of the robot file."""
    message = CLASSES[spec.type]()
    encode_goal(message, spec, goal)
    return message


def json_message(content: Mapping[str, Any]) -> String:
    """Return plain values as one line of JSON."""
    return String(data=json.dumps(content, allow_nan=False))


def diagnostics_message(
    node: str, task: str, hardware_id: str, stamp_ns: int, problem: str | None, values: Mapping[str, Any]
) -> DiagnosticArray:
    """Return one diagnostic status: OK, or WARN with the problem in words (REP 107: "<node>: <task>")."""
    status = DiagnosticStatus(
        level=DiagnosticStatus.OK if problem is None else DiagnosticStatus.WARN,
        name=f"{node}: {task}",
        hardware_id=hardware_id,
        message=problem or "running",
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )
    message = DiagnosticArray(status=[status])
    message.header.stamp = time_message(stamp_ns)
    return message
