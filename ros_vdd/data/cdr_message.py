# SPDX-License-Identifier: Apache-2.0
"""Arrays into the CDR bytes of standard messages, without ROS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_typestore

from ros_vdd.streams.goal import GoalSpec

_STORE = get_typestore(Stores.ROS2_KILTED)
_NONE = np.zeros(0)
JOINT_STATE = "sensor_msgs/msg/JointState"
IMAGE = "sensor_msgs/msg/Image"


def image(stamp_ns: int, pixels: np.ndarray) -> bytes:
    """Return an Image, rgb8, of uint8 (H, W, 3)."""
    height, width, _ = pixels.shape
    data = np.ascontiguousarray(pixels).reshape(-1)
    return _serialize(
        IMAGE, header=_header(stamp_ns), height=height, width=width, encoding="rgb8", is_bigendian=0, step=width * 3, data=data
    )


def joint_state(stamp_ns: int, joints: Sequence[str], **fields: np.ndarray) -> bytes:
    """Return a JointState with any of position, velocity and effort, each (J,)."""
    arrays = {name: np.asarray(fields.get(name, _NONE), np.float64) for name in ("position", "velocity", "effort")}
    return _serialize(JOINT_STATE, header=_header(stamp_ns), name=list(joints), **arrays)


def action(type_name: str, stamp_ns: int, joints: Sequence[str], values: np.ndarray, dt_ns: int) -> bytes:
    """Return one action (A,) as a JointTrajectory of one point, due after dt, a JointState or a Float64MultiArray."""
    if type_name == JOINT_STATE:
        return joint_state(stamp_ns, joints, position=values)
    values = np.asarray(values, np.float64)
    if type_name == "std_msgs/msg/Float64MultiArray":
        return _serialize(type_name, layout=_layout(), data=values)
    due = _make("builtin_interfaces/msg/Duration", sec=dt_ns // 1_000_000_000, nanosec=dt_ns % 1_000_000_000)
    still = {"velocities": _NONE, "accelerations": _NONE, "effort": _NONE}
    point = _make("trajectory_msgs/msg/JointTrajectoryPoint", positions=values, time_from_start=due, **still)
    return _serialize(type_name, header=_header(stamp_ns), joint_names=list(joints), points=[point])


def goal(spec: GoalSpec, vector: np.ndarray) -> bytes:
    """Return a goal (G,) as the robot file's String, Int32 or Float32MultiArray."""
    if spec.type == "std_msgs/msg/Float32MultiArray":
        return _serialize(spec.type, layout=_layout(), data=np.asarray(vector, np.float32))
    place = int(np.argmax(vector))
    return _serialize(spec.type, data=spec.tasks[place] if spec.type == "std_msgs/msg/String" else place)


def _header(stamp_ns: int) -> Any:
    sec, nanosec = divmod(int(stamp_ns), 1_000_000_000)
    return _make("std_msgs/msg/Header", stamp=_make("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec), frame_id="")


def _layout() -> Any:
    return _make("std_msgs/msg/MultiArrayLayout", dim=[], data_offset=0)


def _make(type_name: str, **fields: Any) -> Any:
    return _STORE.types[type_name](**fields)


def _serialize(type_name: str, **fields: Any) -> bytes:
    return bytes(_STORE.serialize_cdr(_make(type_name, **fields), type_name))
