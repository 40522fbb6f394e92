# SPDX-License-Identifier: Apache-2.0
"""Small bags for the tests, written by two libraries that are not ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mcap.writer import CompressionType, Writer as McapWriter
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_HUMBLE)
T = STORE.types
SECOND = 1_000_000_000


def header(stamp_ns: int):
    stamp = T["builtin_interfaces/msg/Time"](sec=stamp_ns // SECOND, nanosec=stamp_ns % SECOND)
    return T["std_msgs/msg/Header"](stamp=stamp, frame_id="")


def joint_state(stamp_ns: int, names=("x", "y"), position=(0.0, 0.0), velocity=(), effort=()):
    arrays = {"position": position, "velocity": velocity, "effort": effort}
    arrays = {k: np.asarray(v, dtype=np.float64) for k, v in arrays.items()}
    return T["sensor_msgs/msg/JointState"](header=header(stamp_ns), name=list(names), **arrays)


def image(stamp_ns: int, pixels: np.ndarray, encoding: str = "rgb8"):
    rows, columns = pixels.shape[:2]
    return T["sensor_msgs/msg/Image"](
        header=header(stamp_ns), height=rows, width=columns, encoding=encoding, is_bigendian=0,
        step=pixels[0].size, data=pixels.reshape(-1).astype(np.uint8),
    )


def trajectory(stamp_ns: int, names=("x", "y"), positions=(0.0, 0.0)):
    none = np.zeros(0)
    point = T["trajectory_msgs/msg/JointTrajectoryPoint"](
        positions=np.asarray(positions, dtype=np.float64), velocities=none, accelerations=none, effort=none,
        time_from_start=T["builtin_interfaces/msg/Duration"](sec=0, nanosec=100_000_000),
    )
    return T["trajectory_msgs/msg/JointTrajectory"](header=header(stamp_ns), joint_names=list(names), points=[point])


def text(data: str):
    return T["std_msgs/msg/String"](data=data)


def floats(data):
    layout = T["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
    return T["std_msgs/msg/Float32MultiArray"](layout=layout, data=np.asarray(data, np.float32))


def serialize(message) -> bytes:
    return bytes(STORE.serialize_cdr(message, message.__msgtype__))


def write_bag(folder: Path, messages, storage: str = "mcap", custom_data=None) -> Path:
    """Write (topic, log_time_ns, message) triples with the `rosbags` library."""
    plugin = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}[storage]
    writer = Writer(folder, version=9, storage_plugin=plugin)
    for key, value in (custom_data or {}).items():
        writer.set_custom_data(key, value)
    with writer:
        connections = {}
        for topic, log_time_ns, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message.__msgtype__, typestore=STORE)
            writer.write(connections[topic], log_time_ns, serialize(message))
    return folder


def write_mcap(path: Path, messages, profile="ros2", encoding="cdr", chunk_size=512, **options) -> Path:
    """Write one .mcap with the `mcap` library: many small chunks, uncompressed, with checksums."""
    with path.open("wb") as stream:
        options = {"compression": CompressionType.NONE, **options}
        writer = McapWriter(stream, chunk_size=chunk_size, **options)
        writer.start(profile=profile)
        channels = {}
        for topic, log_time_ns, message in messages:
            if topic not in channels:
                definition = STORE.generate_msgdef(message.__msgtype__, ros_version=2)[0].encode()
                schema = writer.register_schema(message.__msgtype__, "ros2msg", definition)
                channels[topic] = writer.register_channel(topic, encoding, schema)
            writer.add_message(channels[topic], log_time_ns, serialize(message), log_time_ns)
        writer.finish()
    return path


def write_raw(path: Path, topics, messages) -> Path:
    """Write one .mcap of bytes: `topics` are name -> (type, definition), `messages` (topic, log_time_ns, data)."""
    with path.open("wb") as stream:
        writer = McapWriter(stream)
        writer.start(profile="ros2")
        channels = {}
        for topic, (type_name, definition) in topics.items():
            schema = writer.register_schema(type_name, "ros2msg", definition.encode())
            channels[topic] = writer.register_channel(topic, "cdr", schema)
        for topic, log_time_ns, data in messages:
            writer.add_message(channels[topic], log_time_ns, data, log_time_ns)
        writer.finish()
    return path
