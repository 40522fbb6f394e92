# SPDX-License-Identifier: Apache-2.0
"""Joint limits of a robot description (URDF), and a robot file narrowed to them: the tighter of both holds.

Only what limits joints is read: the elements `joint` below `robot` with their `type`, and `limit` with `lower`, `upper` and
`velocity` (wiki.ros.org/urdf/XML/joint). A document type is refused before anything in it counts: no entity is ever expanded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple
from xml.parsers import expat

from ros_vdd.errors import ConfigError, suggest
from ros_vdd.streams.spec import RobotSpec

LARGEST = 64 << 20
"""Characters of a description; meshes lie in files of their own, so real ones have a few hundred thousand."""
UNITS = {"revolute": "rad", "continuous": "rad", "prismatic": "m"}


class JointLimits(NamedTuple):
    """Of one joint; None where the description gives no limit."""

    type: str
    lower: float | None = None
    upper: float | None = None
    velocity: float | None = None


@dataclass(frozen=True)
class Narrowed:
    """What a description makes of a robot file.

    Attributes:
        robot: with the tighter limits.
        changes: one line for each limit that is tighter in the description.
        open: one line for each action joint, or limit, that the description says nothing of; the robot file's holds there.
    """

    robot: RobotSpec
    changes: tuple[str, ...]
    open: tuple[str, ...]


def read_limits(xml: str) -> dict[str, JointLimits]:
    """Return the limits of every joint of a description by name; fixed joints are left out.

    Raises:
        ConfigError: it isn't XML or no URDF, has a document type, or a limit isn't a number.
    """
    if len(xml) > LARGEST:
        raise ConfigError(f"the robot description has {len(xml)} characters; expected at most {LARGEST}")
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    try:
        parser.Parse(xml, True)  # as text, so that an encoding it declares, which the file had, counts no more
    except (expat.ExpatError, ValueError) as error:
        raise ConfigError(f"the robot description isn't well-formed XML: {error}") from error
    return reader.joints


def narrow(robot: RobotSpec, xml: str) -> Narrowed:
    """Return a robot whose position and velocity limits are the tighter of its file and a description.

    Raises:
        ConfigError: the description can't be read, is of another robot, or leaves a joint no range.
    """
    if robot.action.unit not in UNITS.values():
        unit = f"'action.unit' is {robot.action.unit}, and a robot description has rad and m"
        raise ConfigError(f"{unit}; its limits can't be compared")
    limits = read_limits(xml)
    if not any(joint in limits for joint in robot.action.joints):
        given = f"none of the action joints {', '.join(robot.action.joints)} is in the robot description"
        raise ConfigError(f"{given}; {suggest(robot.action.joints[0], limits)}; is it of this robot?")
    changes: list[str] = []
    unknown: list[str] = []
    known = {joint: _known(joint, limits, robot.action.unit, unknown) for joint in robot.action.joints}
    action = robot.action
    lower = [_tighter("lower", j, own, known[j].lower, max, changes) for j, own in zip(action.joints, action.lower)]
    upper = [_tighter("upper", j, own, known[j].upper, min, changes) for j, own in zip(action.joints, action.upper)]
    for joint, low, high in zip(action.joints, lower, upper):
        if low > high:
            left = f"robot file and robot description leave no range ({low:g} to {high:g})"
            raise ConfigError(f"joint '{joint}': {left}; correct one of them")
    velocities = _velocities(robot, known, changes, unknown)
    narrowed = replace(action, lower=tuple(lower), upper=tuple(upper), max_velocity=velocities)
    return Narrowed(replace(robot, action=narrowed), tuple(changes), tuple(unknown))


class _Reader:
    """Collects joints while a parser goes through a description."""

    def __init__(self) -> None:
        self.joints: dict[str, JointLimits] = {}
        self._path: list[str] = []
        self._joint = ""

    def refuse(self, *declaration: object) -> None:
        raise ConfigError("the robot description declares a document type (DOCTYPE); a URDF has none; nothing of it is read")

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._path.append(name)
        if len(self._path) == 1 and name != "robot":
            expected = "expected <robot>: a URDF with its macros (xacro) expanded"
            raise ConfigError(f"the robot description begins with <{name}>; {expected}")
        if self._path == ["robot", "joint"]:
            self._joint, kind = attributes.get("name", ""), attributes.get("type", "")
            if self._joint in self.joints:
                raise ConfigError(f"the robot description has two joints '{self._joint}'; names must be unique")
            if kind in UNITS:
                self.joints[self._joint] = JointLimits(kind)
        elif self._path == ["robot", "joint", "limit"] and self._joint in self.joints:
            self.joints[self._joint] = self._limits(self.joints[self._joint].type, attributes)

    def end(self, name: str) -> None:
        self._path.pop()

    def _limits(self, kind: str, attributes: Mapping[str, str]) -> JointLimits:
        found = {key: self._number(key, attributes[key]) for key in ("lower", "upper", "velocity") if key in attributes}
        if kind == "continuous" or not {"lower", "upper"} & set(found):
            found |= {"lower": None, "upper": None}
        else:  # the one that is left out is 0
            found = {"lower": 0.0, "upper": 0.0} | found
            if found["lower"] > found["upper"]:
                given = f"lower {found['lower']:g} above upper {found['upper']:g}"
                raise ConfigError(f"joint '{self._joint}' of the robot description has {given}; exchange them")
        return JointLimits(kind, found["lower"], found["upper"], found.get("velocity") or None)

    def _number(self, key: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (key == "velocity" and value < 0):
            raise ConfigError(f"joint '{self._joint}' of the robot description has {key}=\"{text[:40]}\"; expected a number")
        return value


def _known(joint: str, limits: Mapping[str, JointLimits], unit: str, unknown: list[str]) -> JointLimits:
    """Return what counts of a joint's limits, and note why others don't."""
    if joint not in limits:
        unknown.append(f"joint '{joint}' isn't in the robot description; {suggest(joint, limits)}")
        return JointLimits("")
    found = limits[joint]
    if UNITS[found.type] != unit:
        theirs = f"joint '{joint}' is {found.type} ({UNITS[found.type]}) in the robot description"
        unknown.append(f"{theirs}; the action's unit is {unit}")
        return JointLimits(found.type)
    if found.type != "continuous" and found.lower is None:
        unknown.append(f"joint '{joint}' has no position limits in the robot description")
    return found


def _tighter(key: str, joint: str, own: float, other: float | None, choose, changes: list[str]) -> float:
    if other is None or choose(own, other) == own:
        return own
    changes.append(f"{key} of '{joint}' is {other:g} by the robot description, {own:g} in the robot file")
    return other


def _velocities(
    robot: RobotSpec, known: Mapping[str, JointLimits], changes: list[str], unknown: list[str]
) -> tuple[float, ...] | None:
    """Return the largest velocities; None stays None where the description leaves out any."""
    action, absent = robot.action, [joint for joint, found in known.items() if not found.velocity]
    unknown += [f"joint '{joint}' has no velocity limit in the robot description" for joint in absent if known[joint].type]
    if action.max_velocity is None and absent:
        return None
    own = action.max_velocity or (math.inf,) * len(action.joints)
    return tuple(_tighter("max_velocity", j, v, known[j].velocity, min, changes) for j, v in zip(action.joints, own))
