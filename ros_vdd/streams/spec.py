# SPDX-License-Identifier: Apache-2.0
"""One robot: its cameras, joint states, action, safe action and goal, and what must agree between robots."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ros_vdd import config, resources
from ros_vdd.errors import ConfigError, suggest
from ros_vdd.streams.checks import check_name, check_per_joint, check_positive
from ros_vdd.streams.goal import GoalSpec
from ros_vdd.streams.quality import QualitySpec
from ros_vdd.streams.stream_spec import ActionSource, ActionSpec, CameraSpec, JointStateSpec, SafeAction

__all__ = [
    "ActionSource",
    "ActionSpec",
    "CameraSpec",
    "GoalSpec",
    "JointStateSpec",
    "QualitySpec",
    "RobotSpec",
    "SafeAction",
    "load_robot",
    "robot_from_mapping",
]


@dataclass(frozen=True, kw_only=True)
class RobotSpec:
    """Everything the package knows about a robot.

    Attributes:
        rate_hz: [Hz] observations and actions per second of the policy.
        cameras: by name; an image is "images.NAME".
        states: by name; their arrays one after the other, in this order, are "state".
        goal: what the policy can be told to do, "goal"; or None.
        quality: when a recorded take is accepted, warned of or rejected.
    """

    name: str
    rate_hz: float
    cameras: Mapping[str, CameraSpec]
    states: Mapping[str, JointStateSpec]
    action: ActionSpec
    safe_action: SafeAction
    goal: GoalSpec | None = None
    quality: QualitySpec = QualitySpec()

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_positive("rate_hz", [self.rate_hz])
        for section in ("cameras", "states"):
            for name in getattr(self, section):
                check_name(f"{section}.{name}", name)
        if not self.cameras and not self.states:
            raise ConfigError("'states' and 'cameras' are both empty; a policy needs something to observe")
        _check_shared_topics(self)
        _check_safe_action(self)

    @property
    def dt_ns(self) -> int:
        """[ns] policy period."""
        return round(1e9 / self.rate_hz)

    @property
    def state_size(self) -> int:
        """Number of values in "state"."""
        return sum(state.size for state in self.states.values())

    @property
    def angles(self) -> tuple[int, ...]:
        """Where in "state" the positions of continuous joints are."""
        features = [(s, *feature) for s in self.states.values() for feature in s.features]
        return tuple(i for i, (s, joint, field) in enumerate(features) if field == "position" and joint in s.continuous)

    @property
    def action_size(self) -> int:
        """Number of action joints."""
        return len(self.action.joints)

    @property
    def goal_size(self) -> int:
        """G, number of values in "goal"; 0 without one."""
        return self.goal.length if self.goal else 0

    def observation_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each observation array at one tick, for example {"images.top": (96, 96, 3)}; without the goal."""
        shapes: dict[str, tuple[int, ...]] = {f"images.{n}": c.output_shape for n, c in self.cameras.items()}
        return shapes | ({"state": (self.state_size,)} if self.states else {})

    def topics(self) -> dict[str, str]:
        """Return the message type of every topic of the robot, sensors first."""
        return {topic: type_ for _, topic, type_ in _topics(self)}

    def contract(self) -> dict[str, Any]:
        """Return what data, policy and robot must agree on, as plain values.

        Names, shapes, order, units, limits, tasks and the policy's rate. Not topics, ages, the robot's own name, and
        what only the executor uses: those may differ between two robots that run the same policy.
        """
        cameras = {
            name: {"size": [c.width, c.height], "crop": c.crop, "resize": c.resize, "grey": c.encoding == "mono8"}
            for name, c in self.cameras.items()
        }
        states = [
            {"name": name, "joints": s.joints, "fields": s.fields, "unit": s.unit}
            | ({"continuous": s.continuous} if s.continuous else {})
            for name, s in self.states.items()
        ]
        action = {key: getattr(self.action, key) for key in ("joints", "unit", "lower", "upper")}
        contract = {"rate_hz": self.rate_hz, "cameras": cameras, "states": states, "action": action}
        if self.goal:  # a robot without one keeps the fingerprint it had before there were goals
            contract["goal"] = {"tasks": self.goal.tasks} if self.goal.tasks else {"size": self.goal.size}
        return config.to_plain(contract)

    def fingerprint(self) -> str:
        """Return the sha256 of `contract`: equal fingerprints may exchange data and policies."""
        text = json.dumps(self.contract(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def difference(self, other: RobotSpec) -> list[str]:
        """Return one line for each thing of the contract that differs; empty where the fingerprints agree."""
        ours, theirs = dict(_leaves(self.contract())), dict(_leaves(other.contract()))
        return [
            f"{key}: {ours.get(key, 'absent')} here, {theirs.get(key, 'absent')} there"
            for key in [*ours, *(k for k in theirs if k not in ours)]
            if ours.get(key, "absent") != theirs.get(key, "absent")
        ]


def load_robot(name: str | Path) -> RobotSpec:
    """Read a robot file: a path, or the name of a shipped one such as "pusht".

    Raises:
        ConfigError: no such file, or a mistake in it, with file, line, key and what exists.
    """
    return robot_from_mapping(config.read_yaml(resources.find("config/robots", str(name))))


def robot_from_mapping(mapping: Mapping[str, Any]) -> RobotSpec:
    """Build a robot from plain values, as `config.to_plain` writes them into data sets and policies."""
    return config.build(RobotSpec, mapping)


def _topics(robot: RobotSpec) -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, topic, message type) of every stream."""
    for name, camera in robot.cameras.items():
        yield f"cameras.{name}.topic", camera.topic, camera.type
    for name, state in robot.states.items():
        yield f"states.{name}.topic", state.topic, "sensor_msgs/msg/JointState"
    if robot.goal:
        yield "goal.topic", robot.goal.topic, robot.goal.type
    yield "action.topic", robot.action.topic, robot.action.type
    if robot.action.source:
        yield "action.source.topic", robot.action.source.topic, robot.action.source.type


def _check_shared_topics(robot: RobotSpec) -> None:
    """Refuse one topic with two types, commands on an observed topic, and one joint read twice from one topic."""
    seen: dict[str, tuple[str, str]] = {}
    for key, topic, type_ in _topics(robot):
        first, first_type = seen.setdefault(topic, (key, type_))
        if type_ != first_type:
            raise ConfigError(f"'{key}' and '{first}' are both {topic!r} but hold {type_} and {first_type}")
        if key == "action.topic" and first != key:
            raise ConfigError(f"'{key}' is {topic!r}, the topic of '{first}'; commands need a topic of their own")
    states = list(robot.states.items())
    for index, (name, state) in enumerate(states):
        for other_name, other in states[:index]:
            shared = [j for j in state.joints if j in other.joints]
            if state.topic == other.topic and shared:
                raise ConfigError(
                    f"'states.{name}.joints' has {', '.join(shared)}, read from {state.topic!r} by "
                    f"'states.{other_name}.joints' already; one stream may list several fields"
                )


def _check_safe_action(robot: RobotSpec) -> None:
    """Refuse safe positions outside the limits, and a hold whose joints no stream measures in the action's unit."""
    safe, action = robot.safe_action, robot.action
    if safe.positions is not None:
        check_per_joint("safe_action.positions", safe.positions, action.joints)
        for joint, value, low, high in zip(action.joints, safe.positions, action.lower, action.upper):
            if not low <= value <= high:
                raise ConfigError(f"'safe_action.positions' is {value} for joint {joint!r}; limits {low} to {high}")
    if safe.kind == "hold":
        streams = [s for s in robot.states.values() if "position" in s.fields and s.unit == action.unit]
        measured = {joint for stream in streams for joint in stream.joints}
        for joint in action.joints:
            if joint not in measured:
                raise ConfigError(
                    f"'safe_action.kind' is hold, but no stream measures the position of joint {joint!r} "
                    f"in {action.unit}; {suggest(joint, measured)}; add it to 'states' or choose kind: stop"
                )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) down to scalars and lists of scalars."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value
