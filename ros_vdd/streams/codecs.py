# SPDX-License-Identifier: Apache-2.0
"""Message fields to arrays and back, by attribute, so that live messages and those of a bag both fit.

Reading goes by joint name, whatever the order; writing fills a message object handed in. Images: `image_codec.py`.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from ros_vdd.errors import ConfigError, StreamError, suggest
from ros_vdd.streams.goal import GoalSpec
from ros_vdd.streams.image_codec import decode_image, encode_image
from ros_vdd.streams.stream_spec import ActionSpec, JointStateSpec

__all__ = [
    "decode_action",
    "decode_goal",
    "decode_image",
    "decode_joint_state",
    "encode_array",
    "encode_goal",
    "encode_image",
    "encode_joint_state",
    "encode_trajectory",
    "refill_trajectory",
    "stamp_ns",
]

_LARGEST = float(np.finfo(np.float32).max)  # what an array can hold; NaN compares false


def stamp_ns(msg: Any) -> int | None:
    """Return the header's stamp [ns], or None where there is no header or the stamp is zero (never set).

    Raises:
        StreamError: the stamp is negative or its nanoseconds are no fraction of a second.
    """
    header = getattr(msg, "header", None)
    if header is None:
        return None
    sec, nanosec = int(header.stamp.sec), int(header.stamp.nanosec)
    if sec < 0 or not 0 <= nanosec < 1_000_000_000:
        raise StreamError(f"stamp is {sec} s + {nanosec} ns; expected 0 s or more and less than 1e9 ns")
    return sec * 1_000_000_000 + nanosec or None


def decode_joint_state(msg: Any, spec: JointStateSpec) -> dict[tuple[str, str], float]:
    """Read what a JointState holds of a stream; the rest may come from other publishers.

    Returns:
        value by (joint, field). Joints the stream doesn't name are left out, as are fields the message leaves empty.

    Raises:
        StreamError: a name that stands twice, no names, a field with another length than the names, NaN or infinity.
    """
    if not hasattr(msg, "position"):
        raise StreamError(f"'{spec.topic}' gave a {type(msg).__name__}; the robot file says sensor_msgs/msg/JointState")
    index = _index(msg.name, "JointState")
    found = {}
    for field in spec.fields:
        values = np.asarray(getattr(msg, field), np.float64)
        if values.size == 0:
            continue
        if values.shape != (len(index),):
            raise StreamError(f"JointState has {values.size} values of {field} for {len(index)} names")
        found.update({(joint, field): float(values[index[joint]]) for joint in spec.joints if joint in index})
    for (joint, field), value in found.items():
        if not abs(value) <= _LARGEST:
            raise StreamError(f"JointState: {field} of joint '{joint}' is {value}; expected a finite number")
    return found


def decode_action(msg: Any, spec: ActionSpec) -> np.ndarray:
    """Read one commanded position per joint from a JointTrajectory of one point, JointState or Float64MultiArray.

    Returns:
        float32 (A,), [action unit], in the order of `spec.joints`.

    Raises:
        StreamError: a joint is missing or stands twice, another length, NaN or infinity, or several points: which
            of them is meant at a tick isn't said.
    """
    if hasattr(msg, "points"):
        if len(msg.points) != 1:
            raise StreamError(f"JointTrajectory has {len(msg.points)} points; one action is one point")
        index = _index(msg.joint_names, "JointTrajectory")
        return _by_name(index, msg.points[0].positions, spec.joints, "JointTrajectory")
    if hasattr(msg, "position"):
        return _by_name(_index(msg.name, "JointState"), msg.position, spec.joints, "JointState")
    if not hasattr(msg, "data"):
        raise StreamError(f"'{spec.topic}' gave a {type(msg).__name__}; the robot file says {spec.type}")
    return _by_name({joint: i for i, joint in enumerate(spec.joints)}, msg.data, spec.joints, "Float64MultiArray")


def decode_goal(msg: Any, spec: GoalSpec) -> np.ndarray:
    """Read a goal from a String (task), Int32 (task number) or Float32MultiArray (vector).

    Returns:
        float32 (G,).

    Raises:
        StreamError: an unknown task, a vector of another length, NaN or infinity, or a message of another type.
    """
    kind = {"std_msgs/msg/String": str, "std_msgs/msg/Int32": Integral}.get(spec.type, (Sequence, np.ndarray))
    data = getattr(msg, "data", None)
    if not isinstance(data, kind) or isinstance(data, str) and kind is not str:
        raise StreamError(f"'{spec.topic}' gave a {type(msg).__name__}; the robot file says {spec.type}")
    try:
        return spec.encode(data)
    except ConfigError as error:
        raise StreamError(f"'{spec.topic}': {error}") from error


def encode_goal(msg: Any, spec: GoalSpec, goal: np.ndarray) -> None:
    """Fill a String, Int32 or Float32MultiArray, whichever the robot file says, with a goal (G,).

    Raises:
        StreamError: another shape, NaN or infinity, or no one-hot of a task; the message is then as it was.
    """
    try:
        vector = spec.encode(goal)
    except ConfigError as error:
        raise StreamError(f"{error}; nothing is sent") from error
    place = int(vector.argmax())
    data = {"std_msgs/msg/String": lambda: spec.tasks[place], "std_msgs/msg/Int32": lambda: place}
    msg.data = data.get(spec.type, vector.tolist)()


def encode_trajectory(msg: Any, points: Sequence[Any], joints: Sequence[str], actions: np.ndarray, dt_ns: int) -> None:
    """Fill a JointTrajectory, all but its header: action k (from 0) stands at (k + 1) dt, "be there by then".

    Args:
        msg, points: the message and H fresh JointTrajectoryPoint objects.
        joints: the columns of `actions`.
        actions: (H, A), [action unit].
        dt_ns: [ns] time between two actions.

    Raises:
        StreamError: another shape, NaN or infinity; the message is then as it was.
    """
    values = _finite(actions, (len(points), len(joints)), "actions")
    for k, (point, row) in enumerate(zip(points, values), start=1):
        point.positions = row.tolist()
        point.time_from_start.sec, point.time_from_start.nanosec = divmod(k * dt_ns, 1_000_000_000)
    msg.joint_names, msg.points = list(joints), list(points)


def refill_trajectory(msg: Any, actions: np.ndarray) -> None:
    """Put other actions `(H, A)` into a JointTrajectory that `encode_trajectory` has filled; joints and times stay.

    Raises:
        StreamError: another shape, NaN or infinity; the message is then as it was.
    """
    for point, row in zip(msg.points, _finite(actions, (len(msg.points), len(msg.joint_names)), "actions")):
        point.positions = array.array("d", row.tobytes())


def encode_joint_state(msg: Any, joints: Sequence[str], positions: np.ndarray) -> None:
    """Fill the names and positions (A,) of a JointState, all but its header.

    Raises:
        StreamError: another shape, NaN or infinity; the message is then as it was.
    """
    values = _finite(positions, (len(joints),), "positions")
    msg.name, msg.position = list(joints), values.tolist()


def encode_array(msg: Any, values: np.ndarray, size: int) -> None:
    """Fill a Float64MultiArray, which names no joints, with (size,) values.

    Raises:
        StreamError: another shape, NaN or infinity; the message is then as it was.
    """
    msg.data = _finite(values, (size,), "values").tolist()


def _index(names: Sequence[str], what: str) -> dict[str, int]:
    """Return the place of each name."""
    if not len(names):
        raise StreamError(f"{what} names no joints; its publisher must fill the names")
    index = {str(name): i for i, name in enumerate(names)}
    if len(index) != len(names):
        twice = sorted({str(n) for n in names if list(names).count(n) > 1})
        raise StreamError(f"{what} names {', '.join(twice)} twice; each joint must stand there once")
    return index


def _by_name(index: dict[str, int], positions: Any, joints: Sequence[str], what: str) -> np.ndarray:
    """Return the positions of `joints`, float32 (A,)."""
    values = np.asarray(positions, np.float64)
    if values.shape != (len(index),):
        raise StreamError(f"{what} has {values.size} positions for {len(index)} joints ({', '.join(index)})")
    for joint in joints:
        if joint not in index:
            raise StreamError(f"{what} has no joint '{joint}'; {suggest(joint, index)}")
    ordered = values[[index[joint] for joint in joints]]
    for joint, value in zip(joints, ordered):
        if not abs(value) <= _LARGEST:
            raise StreamError(f"{what}: joint '{joint}' is {value}; expected a finite number")
    return ordered.astype(np.float32)


def _finite(values: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.shape != shape:
        raise StreamError(f"{what} have shape {values.shape}; expected {shape}")
    if not np.isfinite(values).all():
        raise StreamError(f"{what} hold NaN or infinity; nothing is sent")
    return values
