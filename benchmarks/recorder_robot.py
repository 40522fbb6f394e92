# SPDX-License-Identifier: Apache-2.0
"""The robot that the recorder is measured with: cameras of 640x480 rgb8 at 30 Hz, joint states and commands."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_typestore

from ros_vdd.streams.spec import RobotSpec, robot_from_mapping

WIDTH, HEIGHT, CAMERA_HZ, JOINT_HZ = 640, 480, 30.0, 100.0
JOINTS = ("j1", "j2", "j3", "j4", "j5", "j6", "j7")
DIGITS = 12  # of the number in a header's frame_id
STORE = get_typestore(Stores.ROS2_KILTED)


def robot(cameras: int) -> RobotSpec:
    """Return the robot file."""
    picture = {"width": WIDTH, "height": HEIGHT, "max_age_s": 0.5}
    return robot_from_mapping(
        {
            "name": "bench",
            "rate_hz": 10.0,
            "cameras": {f"c{i}": {"topic": f"camera_{i}", **picture} for i in range(cameras)},
            "states": {"arm": {"topic": "joint_states", "joints": list(JOINTS), "unit": "rad", "max_age_s": 0.5}},
            "action": {
                "topic": "command",
                "joints": list(JOINTS),
                "unit": "rad",
                "lower": [-3.0] * 7,
                "upper": [3.0] * 7,
                "command_rate_hz": 100.0,
                "source": {"topic": "joint_states"},
            },
            "safe_action": {"kind": "stop", "stale_chunk_s": 1.0},
        }
    )


def image_bytes(width: int = WIDTH, height: int = HEIGHT) -> bytearray:
    """Return a serialized image of noise, whose number and stamp `number` changes."""
    pixels = np.random.default_rng(0).integers(0, 256, width * height * 3, dtype=np.uint8)
    fields = {"height": height, "width": width, "encoding": "rgb8", "is_bigendian": 0, "step": 3 * width, "data": pixels}
    return _serialize("sensor_msgs/msg/Image", header=_header(), **fields)


def joint_bytes() -> bytearray:
    """Return a serialized joint state, whose number and stamp `number` changes."""
    values = np.linspace(-1, 1, len(JOINTS))
    fields = {"name": list(JOINTS), "position": values, "velocity": values, "effort": values}
    return _serialize("sensor_msgs/msg/JointState", header=_header(), **fields)


def number(data: bytearray, value: int, stamp_ns: int) -> None:
    """Write a number into the frame_id of a serialized message, and its stamp."""
    struct.pack_into("<iI", data, 4, stamp_ns // 10**9, stamp_ns % 10**9)
    data[16 : 16 + DIGITS] = b"%0*d" % (DIGITS, value)


def number_of(data: bytes) -> int:
    """Return the number in the frame_id of a serialized message."""
    return int(data[16 : 16 + DIGITS])


def _header() -> Any:
    types = STORE.types
    return types["std_msgs/msg/Header"](stamp=types["builtin_interfaces/msg/Time"](sec=0, nanosec=0), frame_id="0" * DIGITS)


def _serialize(type_name: str, **fields: Any) -> bytearray:
    return bytearray(STORE.serialize_cdr(STORE.types[type_name](**fields), type_name))
