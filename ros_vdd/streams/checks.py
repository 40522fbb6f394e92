# SPDX-License-Identifier: Apache-2.0
"""The checks that robot descriptions share; each names the key in quotes so that the reader can add the line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from ros_vdd.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9_]+")
_JOINT = re.compile(r"[A-Za-z0-9_./-]+")  # URDF names can't be changed by whoever writes the robot file
_TOPIC = re.compile(r"/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")


def check_name(key: str, name: str) -> None:
    """Refuse a name that can't be part of an array key or a file name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"'{key}': the name {name!r} may hold only letters, digits and _; write {_plain(name)!r}")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_") or "robot"


def check_topic(key: str, topic: str) -> None:
    """Refuse what ROS 2 refuses as a topic name. Source: design.ros2.org, topic and service names."""
    if not _TOPIC.fullmatch(topic):
        raise ConfigError(
            f"'{key}' is {topic!r}; a topic holds letters, digits, _ and single /, no part starts with a digit, "
            "for example camera/image_raw"
        )


def check_joints(key: str, joints: Sequence[str]) -> None:
    """Refuse an empty joint list, a joint that stands twice, and characters no joint has."""
    if not joints:
        raise ConfigError(f"'{key}' is empty; name at least one joint")
    for joint in joints:
        if not _JOINT.fullmatch(joint):
            raise ConfigError(f"'{key}': joint {joint!r} may hold only letters, digits and _ . / -")
    check_unique(key, joints)


def check_unique(key: str, values: Sequence[str]) -> None:
    """Refuse a value that stands twice."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ConfigError(f"'{key}' names {value!r} twice (entries {values.index(value) + 1} and {index + 1})")


def check_per_joint(key: str, values: Sequence[float], joints: Sequence[str]) -> None:
    """Refuse a list that has not one finite number for each joint; the joint without one is named."""
    if len(values) < len(joints):
        missing = ", ".join(joints[len(values) :])
        raise ConfigError(f"'{key}' has {len(values)} numbers for {len(joints)} joints; none for {missing}")
    if len(values) > len(joints):
        raise ConfigError(f"'{key}' has {len(values)} numbers for {len(joints)} joints ({', '.join(joints)})")
    for joint, value in zip(joints, values):
        if not math.isfinite(value):
            raise ConfigError(f"'{key}' is {value} for joint {joint!r}; expected a finite number")


def check_positive(key: str, values: Iterable[float]) -> None:
    """Refuse what is not a finite number above zero."""
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"'{key}' is {value}; expected a finite number above 0")
