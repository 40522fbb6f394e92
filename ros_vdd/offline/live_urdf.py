# SPDX-License-Identifier: Apache-2.0
"""A robot file held against the robot description that is published: what `limits_from_urdf` would make of it."""

from __future__ import annotations

from collections.abc import Iterator

from ros_vdd.errors import ConfigError
from ros_vdd.offline.finding import Finding
from ros_vdd.runtime.urdf_limits import UNITS, narrow
from ros_vdd.streams.spec import RobotSpec

CHECK = "robot_description"


def judge_urdf(robot: RobotSpec, xml: str | None) -> Iterator[Finding]:
    """Yield what is wrong between a robot file and a description, or one line that says they agree; nothing without one.

    Args:
        robot: the file.
        xml: the description, or None where none was published.
    """
    if xml is None or robot.action.unit not in UNITS.values():
        return
    try:
        found = narrow(robot, xml)
    except ConfigError as error:
        yield Finding(CHECK, "error", str(error), "correct the description or the robot file: the executor refuses limits_from_urdf")
        return
    for line in found.changes:
        yield Finding(CHECK, "warn", line, "correct the robot file, or set limits_from_urdf of the executor")
    for line in found.open:
        yield Finding(CHECK, "warn", line, "is the robot file's limit right? it is the only one")
    if not found.changes and not found.open:
        joints = len(robot.action.joints)
        yield Finding(CHECK, "ok", f"limits of all {joints} action joints; the robot file's are as tight or tighter")
